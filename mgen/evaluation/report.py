"""A result as JSON, as Markdown for people, and a grid of the images it is about."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgen.evaluation.evaluate import Measured
from mgen.files import atomic_path, write_json, write_text
from mgen.grids import labelled_grid


def write_report(out: Path, result: dict[str, Any], measured: Measured, names: Sequence[str], command: str) -> Path:
    """Write result.json, report.md and grid.png into the folder `out`; returns the report's path."""
    with atomic_path(out / "grid.png") as path:
        labelled_grid(measured.examples, measured.example_labels.tolist(), names).save(path, format="PNG")
    write_json(out / "result.json", {"command": command, **result})
    write_text(out / "report.md", markdown(result, names, command))
    return out / "report.md"


def markdown(result: dict[str, Any], names: Sequence[str], command: str) -> str:
    """The readable report."""
    lines = ["# Evaluation", "", f"    {command}", "", "| metric | value |", "|---|---|"]
    by_class: dict[int, float] = {}
    for name, value in result["metrics"].items():
        if isinstance(value, dict):
            by_class = value
        else:
            lines.append(f"| {name} | {value:.4f} |")
    if result["note"]:
        lines += ["", f"Note: {result['note']}."]
    if by_class:
        lines += ["", "| class | accuracy |", "|---|---|"]
        lines += [f"| {names[c] if c < len(names) else c} | {value:.3f} |" for c, value in by_class.items()]
    lines += ["", "## How it was measured", "", "| | |", "|---|---|", f"| images | {result['count']} |"]
    lines += [f"| images: {key} | {value} |" for key, value in result["images"].items()]
    for part in ("extractor", "reference", "judge", "score_splits", "versions"):
        for key, value in (result[part] or {}).items():
            lines.append(f"| {part}: {key} | {value} |")
    return "\n".join([*lines, "", "![grid of the first images](grid.png)", ""])
