"""A report as one HTML file that loads nothing from elsewhere, escapes everything, and is readable without its script."""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

from mgen.evaluation.result import Result
from mgen.reports import data
from mgen.reports.compare import Group, best_of, columns, notes, run_names, same_for_all
from mgen.reports.curves import INSTALL, Curve, find_curves, plot
from mgen.reports.html import Html, cell, head, join, listing, picture, row_head, small, table, tag
from mgen.reports.read import ReportRun
from mgen.reports.style import CSS, JS

MANY_CLASSES = 30  # more get a filter and scroll
# The policy allows nothing but the contents of the file, whatever the results hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
POLICY += f"script-src 'sha256-{base64.b64encode(hashlib.sha256(JS.encode()).digest()).decode()}'"
_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy">
<title>$title</title>
<style>$css</style>
</head>
<body>
<main>
$body
</main>
<script>$js</script>
</body>
</html>
"""
)


def page(title: str, groups: Sequence[Group]) -> str:
    """The page of one run, or of groups of runs with a table for each group."""
    runs = sorted((run for group in groups for run in group.runs), key=lambda run: run.number)
    body = [tag("h1", title)]
    if len(runs) == 1:
        body.append(_run(runs[0], folded=False))
    else:
        if len(groups) > 1:
            body.append(notes_box(["Measured in several ways: compare numbers within a table, not between tables."]))
        body += [_group(group, index, mixed=len(groups) > 1) for index, group in enumerate(groups)]
        names = run_names(groups)
        links = [tag("li", tag("a", names[run.number], href=f"#run-{run.number}")) for run in runs]
        body.append(tag("nav", tag("h2", "Runs"), tag("ol", *links), aria_label="Runs"))
        for run in runs:
            heading = tag("h2", f"{run.number} {names[run.number]}")
            body.append(tag("section", heading, _run(run, folded=True), id=f"run-{run.number}", class_="run"))
    return document(title, body)


def document(title: str, body: Iterable[str]) -> str:
    """A whole page around the elements of its body."""
    return _PAGE.substitute(title=escape(title), policy=POLICY, css=CSS, js=JS, body=join(body, "\n"))


def _group(group: Group, index: int, *, mixed: bool) -> Html:
    """Comparable runs: the best values, one table, curves."""
    found, reason = find_curves(group)
    plots = [plot(curve, f"curve-{index}-{i}") for i, curve in enumerate(found)]
    facts = "; ".join(f"{key} {value}" for key, value in same_for_all(group))
    best = [join([f"{name} ", tag("strong", v), f" ({better}), {who}"]) for name, v, better, who in best_of(group)]
    out = [
        tag("h2", group.title) if mixed else tag("p", f"{group.title}.", class_="facts"),
        tag("p", f"The same for all: {facts}.", class_="facts") if facts else Html(),
        listing(best, class_="verdict"),
        notes_box(notes(group)),
        tag("h3", "Comparison") if len(group.runs) > 1 else Html(),
        _comparison(group),
    ]
    if found or reason:
        out.append(tag("h3", "Curves"))
    if reason or None in plots:
        out.append(tag("p", reason or INSTALL, class_="soft"))
    if found:
        out.append(tag("div", *map(_curve, found, plots), class_="curves"))
    return tag("section", *out)


def _comparison(group: Group) -> Html:
    shown = columns(group)
    heads = [head("run"), *(_metric_head(c.name, c.better, numeric=c.numeric) for c in shown)]
    rows = [
        [row_head(tag("a", f"{run.number} {run.title}", href=f"#run-{run.number}"), value=run.number)]
        + [cell(c.cells[i], c.values[i], numeric=c.numeric, best=i in c.best) for c in shown]
        for i, run in enumerate(group.runs)
    ]
    best = " Highlighted: the best value of a column." if any(c.best for c in shown) else ""
    note = next((run.result for run in group.runs if run.result["deviations"]), group.runs[0].result)
    return table(heads, rows, label="Comparison", caption=data.deviation_note(note) + best, kind="sortable compare")


def _metric_head(name: str, better: str | None, *, numeric: bool = True) -> Html:
    """The head of a column; the network in a metric's name goes on a line below, which keeps columns narrow."""
    match = re.fullmatch(r"([^()]+) \(([^()]+)\)", name)
    beneath = [match[2]] if match else []
    beneath += [data.direction(better)] if better else []
    return head(match[1] if match else name, numeric=numeric, sub=", ".join(beneath))


def _curve(curve: Curve, svg: str | None) -> Html:
    heads, rows = curve.table()
    cells = [[row_head(row[0]), *(cell(text, numeric=True) for text in row[1:])] for row in rows]
    numbers = table([head(heads[0]), *(head(h, numeric=True) for h in heads[1:])], cells, label=curve.title)
    return tag("figure", tag("h4", curve.title), Html(svg or ""), numbers)


def _run(run: ReportRun, *, folded: bool) -> Html:
    """Everything about one result. folded: one of several, with its notes in the group and its long tables collapsed."""
    result = run.result
    protocol, reference = result["protocol"], result["reference"]
    against = f"against {reference.get('name')}" if reference else "without a reference"
    facts = f"Protocol {protocol.get('name')} ({protocol.get('id')}), {against}. Measured {result['created']}."
    words: list[str] = []
    for name, value, better in data.headline(result):
        words += [f"{name} ", tag("strong", value), f" ({better}); " if better else "; "]
    out = [
        tag("p", *(words or ["Nothing was measured; "]), f"{result['count']:,} images.", class_="verdict"),
        tag("p", facts, class_="facts"),
        Html() if folded else notes_box(data.warnings(result)),
        tag("div", tag("code", result["command"]), class_="command") if result["command"] else Html(),
        _metrics(result),
        _part("Published and measured", _published(result)),
        tag("div", _grid(run), "" if folded else _part("Per class", _by_class(run)), class_="beside"),
        _part("Per class", _by_class(run), folded=True) if folded else Html(),
        _part("Nearest training images: a check for copies", _nearest(result), folded=folded),
        _part("How it was measured", _settings(result), folded=folded),
    ]
    return join(out, "\n")


def _part(title: str, content: Html, *, folded: bool = False) -> Html:
    """A part of a run with its heading; empty text if there is no content."""
    if content and folded:
        return tag("details", tag("summary", tag("h3", title)), content)
    return tag("section", tag("h3", title), content) if content else content


def notes_box(lines: Iterable[str]) -> Html:
    """Notes to read before the numbers; empty text if there are none."""
    items = listing(lines)
    return tag("aside", tag("h3", "Before comparing"), items, role="note", aria_label="Notes") if items else Html()


def _metrics(result: Result) -> Html:
    rows = []
    for name, value in result["metrics"].items():
        better = small(data.direction(result["better"].get(name)))
        rows.append([row_head(name, better), cell(data.metric(result, name), value, numeric=True)])
    heads = [head("metric"), head("value", numeric=True)]
    quality = table(heads, rows, label="Quality", caption=data.deviation_note(result))
    side = []
    if cost := data.cost_rows(result):
        rows = [[row_head(name), tag("td", text, class_="num wrap")] for name, text in cost]
        side += [
            tag("h3", "Cost"),
            table([head("cost"), head("value", numeric=True)], rows, label="Cost", caption=data.COST_CAPTION),
        ]
    if result["missing"]:
        lines = [join([tag("b", f"{name}: "), data.plain(why)]) for name, why in result["missing"].items()]
        side += [tag("h3", "Not computed"), listing(lines)]
    return tag("div", tag("div", tag("h3", "Quality"), quality), tag("div", *side) if side else Html(), class_="pair")


def _published(result: Result) -> Html:
    found = data.published_rows(result)
    if not found:
        return Html()
    rows = [[row_head(row[0]), *(cell(t, numeric=True) for t in row[1:3]), cell(row[3])] for row in found]
    name, *numbers, verdict = data.PUBLISHED_HEADS
    heads = [head(name), *(head(n, numeric=True) for n in numbers), head(verdict)]
    note = str(result["published"].get("note") or "")
    return table(heads, rows, label="Published and measured", caption=note)


def _grid(run: ReportRun) -> Html:
    if run.grid is None:
        return _part("Samples", tag("p", "There is no grid.png next to the result.", class_="soft"))
    kind = "png" if run.grid.startswith(b"\x89PNG") else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(run.grid).decode()}"
    words = f"Some of the {run.result['count']:,} images, one row per class where classes are known."
    if kind == "jpeg":
        words += " Shown as JPEG; grid.png next to the result has the exact pixels."
    names = ", ".join(str(name) for name in run.result["class_names"][:20])
    alt = f"Grid of samples{': ' if names else ''}{names}"
    return _part("Samples", picture(uri, alt=alt, caption=[words], class_="grid"))


def _by_class(run: ReportRun) -> Html:
    result = run.result
    ids = data.class_ids(result)
    if not ids:
        return Html()
    shown = {name: [column.get(c) for c in ids] for name, column in result["by_class"].items()}
    texts = {name: data.column_numbers(values) for name, values in shown.items()}
    heads = [head("class"), head("id", numeric=True)]
    heads += [_metric_head(name, result["better"].get(name)) for name in shown]
    rows = []
    for i, c in enumerate(ids):
        cells = [cell(c, data.class_number(c), numeric=True)]
        cells += [cell(texts[name][i], values[i], numeric=True) for name, values in shown.items()]
        rows.append([row_head(data.class_name(result, c)), *cells])
    many, name, field = len(ids) > MANY_CLASSES, f"classes-{run.number}", Html()
    if many:
        box = tag("input", type="search", aria_controls=name, placeholder="name or id")
        field = tag("p", tag("label", "Only classes with", box), tag("output"), class_="filter", hidden=True)
    numbers = table(heads, rows, label="Per class", caption=data.CLASS_CAPTION, kind="sortable", id=name, long=many)
    return join([field, numbers])


def _nearest(result: Result) -> Html:
    nearest = result["nearest"]
    if not nearest or not nearest.get("rows"):
        return Html()
    items = []
    for row in nearest["rows"]:
        label = data.class_name(result, row.get("label"))
        pictures = [picture(row["image"], alt=f"sampled image, {label}", caption=["sampled", tag("br"), label])]
        for other in row["neighbors"]:
            label, text = data.neighbor_name(result, other), data.number(other["distance"])
            shown = tag("strong", f"{text}, near") if data.is_near(nearest, other["distance"]) else text
            caption = [shown, tag("br"), label]
            pictures.append(picture(other["image"], alt=f"training image, {label}, distance {text}", caption=caption))
        items.append(tag("li", *pictures))
    return join([tag("p", data.nearest_note(nearest), class_="soft"), tag("ul", *items, class_="nearest")])


def _settings(result: Result) -> Html:
    boxes = []
    for name, settings in data.parts(result).items():
        texts = {key: data.plain(value) for key, value in settings.items()}
        long = {key for key, text in texts.items() if len(text) > 40 and " " not in text}
        rows = [[row_head(k), tag("td", text, class_="hash" if k in long else None)] for k, text in texts.items()]
        boxes.append(tag("section", tag("h4", name), table([], rows, label=name)))
    return tag("div", *boxes, class_="settings")
