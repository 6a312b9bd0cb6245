"""Reports of results: an HTML page, the same in Markdown, and JSON for programs."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from mgen.evaluation.result import FORMAT, Facts, Result
from mgen.reports import training_page
from mgen.reports.compare import Group, columns, grouped
from mgen.reports.curves import as_json, find_curves
from mgen.reports.markdown import markdown
from mgen.reports.page import page
from mgen.reports.read import MOST_GRID, PICTURES, ReportRun, check_result, cleaned, read_result
from mgen.reports.training_page import read_report
from mgen.utils.errors import MgenError, first_line
from mgen.utils.files import atomic_path, write_json, write_text
from mgen.utils.grids import labeled_grid
from mgen.utils.reading import check_file, read_json

INLINE = 3 * 2**20  # bytes; larger grids go into the page as JPEG


def write_report(out: Path, result: Result, examples: Tensor, labels: Sequence[int]) -> list[Path]:
    """Write grid.png, result.json, report.md and report.html into the folder `out`; everything is rendered before anything is written.

    Args:
        result: of mgen eval, format 2. examples: uint8 (n, C, H, W). labels: class ids (n); −1 is unknown.

    Returns:
        The files, the page last.

    Raises:
        MgenError: the result lacks keys, or the folder cannot be written to.
    """
    result = check_result(result, "the result")
    stream = io.BytesIO()
    labeled_grid(examples, labels, [str(name) for name in result["class_names"]]).save(stream, format="PNG")
    run = ReportRun(number=1, result=result, grid=for_page(stream.getvalue()))
    groups = [Group(runs=[run])]
    texts = {"report.md": markdown(run.title, groups), "report.html": page(run.title, groups)}
    write_json(out / "result.json", result)  # first: it says whose the others are
    with atomic_path(out / "grid.png") as path:
        path.write_bytes(stream.getvalue())
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in ("grid.png", "result.json", *texts)]


def write_page(paths: Sequence[str], out: Path, *, title: str | None = None, allow_mixed: bool = False) -> list[Path]:
    """Put the results of files or folders on one page; returns out.html, out.md and out.json.

    Raises:
        MgenError: a result is unreadable, given twice or would be overwritten, or the results are not comparable.
    """
    outputs = [out.with_suffix(suffix) for suffix in (".html", ".md", ".json")]
    runs: list[ReportRun] = []
    files: list[Path] = []
    for path in paths:
        result, file = read_result(path)
        if Path(os.path.realpath(file)) in files:
            raise MgenError(f"{path} is given twice: leave one out")
        files.append(Path(os.path.realpath(file)))
        grid = file.with_name("grid.png")
        image, beside = (
            _grid(grid) if grid.is_file() else None,
            os.path.relpath(os.path.realpath(grid), os.path.dirname(os.path.realpath(out))),
        )
        runs.append(
            ReportRun(number=len(runs) + 1, result=result, grid=image, grid_path=cleaned(Path(beside).as_posix()))
        )
    if taken := [path for path in outputs if Path(os.path.realpath(path)) in files]:
        raise MgenError(f"{taken[0]} is a result and would be overwritten: choose another --out")
    check_own(outputs)
    groups = grouped(runs, allow_mixed=allow_mixed)
    title = cleaned(title) if title else (runs[0].title if len(runs) == 1 else f"{len(runs)} results compared")
    texts = [page(title, groups), markdown(title, groups)]
    write_json(outputs[2], summary(title, groups))  # first: it says whose the others are
    for file, text in zip(outputs, texts):
        write_text(file, text)
    return outputs


def write_trainings(
    folders: Sequence[Path], out: Path, *, against: tuple[Path, str] | None = None, title: str | None = None
) -> list[Path]:
    """Put the logs of trainings on one page, beside another one if its folder and name are given; returns the files like `write_page`.

    Raises:
        MgenError: a log is unreadable or given twice, or the files are not mgen report's to replace.
    """
    outputs = [out.with_suffix(suffix) for suffix in (".html", ".md", ".json")]
    report = read_report(folders, against, title=cleaned(title) if title else None)
    check_own(outputs)
    texts = [training_page.html(report), training_page.markdown(report)]
    write_json(outputs[2], training_page.summary_json(report))  # first: it says whose the others are
    for file, text in zip(outputs, texts):
        write_text(file, text)
    return outputs


def check_own(outputs: Sequence[Path]) -> None:
    """Raise MgenError if there are files of these names that mgen report did not write; its JSON file tells."""
    there = [path for path in outputs if os.path.lexists(path)]
    if not there:
        return
    try:
        data = read_json(outputs[2])
    except MgenError:
        data = None
    kinds = ({"format", "title", "groups", "results"}, {"format", "title", "trainings", "verdicts"})
    if not isinstance(data, dict) or not any(keys <= data.keys() for keys in kinds):
        names = " and ".join(path.name for path in there)
        raise MgenError(
            f"{there[0].parent or '.'} holds {names}, which mgen report did not write and does not replace: choose another --out"
        )


def summary(title: str, groups: Sequence[Group]) -> Facts:
    """The page for programs: groups of comparable runs with their tables and curves, and all results."""
    runs = sorted((run for group in groups for run in group.runs), key=lambda run: run.number)
    return {
        "format": FORMAT,
        "title": title,
        "groups": [
            {
                "title": group.title,
                "protocol": group.runs[0].result["protocol"],
                "reference": group.runs[0].result["reference"],
                "runs": [run.number for run in group.runs],
                "table": [
                    {"column": c.name, "kind": c.kind, "better": c.better, "values": c.values, "text": c.cells}
                    for c in columns(group)
                ],
                "curves": as_json(find_curves(group)[0]),
            }
            for group in groups
        ],
        "results": [{"run": run.number, **run.result} for run in runs],
    }


def _grid(file: Path) -> bytes:
    try:
        if (size := check_file(file).stat().st_size) > MOST_GRID:
            raise OSError(f"{size} bytes are no grid")
        return for_page(file.read_bytes())
    except MgenError:
        raise
    except Exception as error:  # decoders of damaged images fail in many ways
        raise MgenError(f"cannot read {file} ({first_line(error)}): run mgen eval again, or remove it") from error


def for_page(png: bytes) -> bytes:
    """A grid for the page: unchanged, or as JPEG if it is large. OSError if it is no image."""
    with Image.open(io.BytesIO(png), formats=PICTURES) as image:
        image.load()
        if len(png) <= INLINE and image.format == "PNG":
            return png
        stream = io.BytesIO()
        image.convert("RGB").save(stream, format="JPEG", quality=90)
        return stream.getvalue()
