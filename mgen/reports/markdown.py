"""A report in Markdown: the same as the page, without images and curves."""

from collections.abc import Iterable, Sequence
from urllib.parse import quote

from mgen.evaluation.result import Result
from mgen.reports import data
from mgen.reports.compare import Group, best_of, columns, notes, run_names, same_for_all
from mgen.reports.curves import find_curves
from mgen.reports.read import ReportRun
from mgen.utils.markdown import words

SAFE = "/ ()&,+=@~$!;:'"  # characters that a link in angle brackets may hold as they are


def markdown(title: str, groups: Sequence[Group]) -> str:
    """One run, or groups of runs with a table for each group."""
    runs = sorted((run for group in groups for run in group.runs), key=lambda run: run.number)
    lines = [f"# {words(title)}", ""]
    if len(runs) == 1:
        return "\n".join([*lines, *_run(runs[0], level=2)])
    if len(groups) > 1:
        lines += ["> Measured in several ways: compare numbers within a table, not between tables.", ""]
    for group in groups:
        lines += _group(group)
    names = run_names(groups)
    for run in runs:
        lines += [f"## {run.number} {words(names[run.number])}", "", *_run(run, level=3)]
    return "\n".join(lines)


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """A table whose columns from `left` on are right-aligned."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    lines = [list(map(words, heads)), rule, *(list(map(words, row)) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def _notes(lines: Iterable[str]) -> list[str]:
    found = [f"> {words(line)}" for line in lines]
    return [*(line for text in found for line in (text, ">")), ""][:-2] + [""] if found else []


def _group(group: Group) -> list[str]:
    best = [
        f"- {words(name)} **{words(value)}** ({better}), {words(who)}" for name, value, better, who in best_of(group)
    ]
    lines = [f"## {words(group.title)}", "", *best, "", *_notes(notes(group))]
    if facts := same_for_all(group):
        lines += [f"The same for all: {words('; '.join(f'{key} {value}' for key, value in facts))}.", ""]
    shown = columns(group)
    heads = ["run", *(c.name + (f" ({c.better} is better)" if c.better else "") for c in shown)]
    rows = [[f"{run.number} {run.title}", *(c.cells[i] for c in shown)] for i, run in enumerate(group.runs)]
    lines += [*markdown_table(heads, rows), words(data.deviation_note(group.runs[0].result)), ""]
    curves, reason = find_curves(group)
    lines += [words(reason), ""] if reason else []
    for curve in curves:
        lines += [f"**{words(curve.title)}**", "", *markdown_table(*curve.table())]
    return lines


def _run(run: ReportRun, *, level: int) -> list[str]:
    result, sharps = run.result, "#" * level
    shown = [f"{words(n)} **{words(v)}**{f' ({better})' if better else ''}" for n, v, better in data.headline(result)]
    lines = [f"{'; '.join(shown) or 'Nothing was measured'}; {result['count']:,} images.", ""]
    lines += _notes(data.warnings(result))
    if result["command"]:
        lines += [f"    {' '.join(result['command'].split())}", ""]
    lines += [f"{sharps} Quality", ""]
    rows = [[name, data.metric(result, name), result["better"].get(name, "")] for name in result["metrics"]]
    lines += [*markdown_table(["metric", "value", "better"], rows), words(data.deviation_note(result)), ""]
    if result["missing"]:
        lines += ["Not computed:", ""]
        lines += [f"- {words(name)}: {words(data.plain(why))}" for name, why in result["missing"].items()] + [""]
    if published := data.published_rows(result):
        lines += [f"{sharps} Published and measured", "", *markdown_table(data.PUBLISHED_HEADS, published)]
        lines += [words(result["published"].get("note") or ""), ""]
    if cost := data.cost_rows(result):
        lines += [f"{sharps} Cost", "", *markdown_table(["cost", "value"], cost), data.COST_CAPTION, ""]
    if run.grid is not None:
        lines += [f"![grid of samples](<{quote(run.grid_path, safe=SAFE)}>)", ""]
    lines += _by_class(result, sharps) + _nearest(result, sharps)
    lines += [f"{sharps} How it was measured", ""]
    settings = [(f"{name}: {key}", value) for name, part in data.parts(result).items() for key, value in part.items()]
    return lines + markdown_table(["setting", "value"], [[key, data.plain(value)] for key, value in settings], left=2)


def _by_class(result: Result, sharps: str) -> list[str]:
    ids = data.class_ids(result)
    if not ids:
        return []
    texts = [data.column_numbers([column.get(c) for c in ids]) for column in result["by_class"].values()]
    rows = [[data.class_name(result, c), c, *(text[i] for text in texts)] for i, c in enumerate(ids)]
    return [
        f"{sharps} Per class",
        "",
        *markdown_table(["class", "id", *result["by_class"]], rows),
        data.CLASS_CAPTION,
        "",
    ]


def _nearest(result: Result, sharps: str) -> list[str]:
    nearest = result["nearest"]
    if not nearest or not nearest.get("rows"):
        return []
    rows = []
    for row in nearest["rows"]:
        near = ", near" if data.is_near(nearest, row["distance"]) else ""
        others = [f"{data.number(o['distance'])} ({data.neighbor_name(result, o)})" for o in row["neighbors"]]
        rows.append([data.class_name(result, row.get("label")), data.number(row["distance"]) + near, ", ".join(others)])
    heads = ["sampled image", "nearest training image", "all of them"]
    note = words(data.nearest_note(nearest))
    return [f"{sharps} Nearest training images", "", note, "", *markdown_table(heads, rows, left=3)]
