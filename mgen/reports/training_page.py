"""A report of trainings: whether each is normal beside another one, the settings that differ, and all curves; HTML, Markdown, JSON."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mgen.evaluation.result import FORMAT, Facts
from mgen.reports.curves import INSTALL
from mgen.reports.data import number, plain
from mgen.reports.html import Html, cell, head, listing, row_head, table, tag
from mgen.reports.markdown import markdown_table
from mgen.reports.page import document, notes_box
from mgen.reports.training import Training, read_training
from mgen.reports.training_plot import Chart, charts, plot
from mgen.reports.usual import RULE, Difference, Verdict, differences, sentences, summary, verdicts
from mgen.utils.errors import MgenError
from mgen.utils.markdown import words

UNKNOWN = "{name} has no settings beside its log (config.json): whether they are the same is not known."


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A run, and what is said of it beside another one."""

    run: Training
    differences: Sequence[Difference] = ()
    verdicts: Sequence[Verdict] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    title: str
    runs: Sequence[Compared]
    other: Training | None
    charts: Sequence[Chart]


def read_report(folders: Sequence[Path], other: tuple[Path, str] | None, *, title: str | None = None) -> Report:
    """The report of the trainings in these folders, beside another one if it is given with its name.

    Raises:
        MgenError: a log or its settings can't be read, or a folder is given twice.
    """
    real = [os.path.realpath(folder) for folder in [*folders, *([other[0]] if other else [])]]
    for i, path in enumerate(real):
        if path in real[:i]:
            again = " and is what --against names" if other and i == len(real) - 1 else ""
            raise MgenError(f"{folders[real.index(path)]} is given twice{again}: leave one out")
    names = [Path(path).name or path for path in real[: len(folders)]]
    names = [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders)]
    runs = [read_training(folder, name) for folder, name in zip(folders, names)]
    against = None
    if other is not None:
        against = read_training(other[0], f"{other[1]} (given)" if other[1] in names else other[1])
    compared = [
        Compared(run=run, differences=differences(run, against), verdicts=verdicts(run, against))
        if against
        else Compared(run=run)
        for run in runs
    ]
    found = charts(runs, against)
    if not found:
        raise MgenError(f"the logs of {', '.join(names)} have no value in common: give runs of one kind")
    usual = " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} trainings"
    usual = f"{usual} against {against.name}" if against else usual
    return Report(title=title or usual, runs=compared, other=against, charts=found)


def facts(run: Training) -> list[tuple[str, str]]:
    """What one wants to know of a run, with units."""
    rows = [("steps", f"{run.steps:,}"), ("images seen", f"{run.steps * run.batch:,.0f}")]
    if run.seconds:
        rows.append(("hours", number(run.seconds / 3600)))
    return rows + [(key, _value(value)) for key, value in run.about.items()]


def _value(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else plain(value)


def notes(report: Report) -> list[str]:
    """What to know before one believes the comparison."""
    other = report.other
    if other is None:
        return []
    everyone = [*(compared.run for compared in report.runs), other]
    out = [UNKNOWN.format(name=run.name) for run in everyone if not run.settings]
    for compared in report.runs:
        if compared.differences:
            keys = ", ".join(d.setting for d in compared.differences[:8])
            more = f" and {len(compared.differences) - 8} more" if len(compared.differences) > 8 else ""
            out.append(f"{compared.run.name} differs from {other.name} in {keys}{more}: see the table.")
    return out


# -- HTML --------------------------------------------------------------------------------------------------------------


def html(report: Report) -> str:
    body: list[str] = [tag("h1", report.title), notes_box(notes(report))]
    for compared in report.runs:
        body.append(_compared(compared, report))
    body.append(tag("h2", "Curves"))
    if report.other is not None:
        body.append(tag("p", RULE, class_="soft"))
    plots = [plot(chart, f"chart-{i}") for i, chart in enumerate(report.charts)]
    if None in plots:
        body.append(tag("p", INSTALL, class_="soft"))
    body.append(tag("div", *map(_figure, report.charts, plots), class_="curves"))
    everyone = [*(compared.run for compared in report.runs), *([report.other] if report.other else [])]
    body += [tag("h2", "What was trained"), tag("div", *map(_facts, everyone), class_="settings")]
    return document(report.title, body)


def _compared(compared: Compared, report: Report) -> Html:
    if report.other is None:
        return Html()
    rows = [[row_head(d.setting), cell(_value(d.run)), cell(_value(d.other))] for d in compared.differences]
    heads = [head("setting"), head(compared.run.name), head(report.other.name)]
    settings = table(heads, rows, label=f"Settings in which {compared.run.name} differs")
    return tag(
        "section",
        tag("h2", compared.run.name) if len(report.runs) > 1 else Html(),
        tag("p", summary(list(compared.verdicts), report.other.name), class_="verdict"),
        listing([_sentence(verdict) for verdict in sentences(list(compared.verdicts))]),
        tag("h3", "Settings that differ"),
        settings if rows else tag("p", "None of those that both know.", class_="soft"),
    )


def _sentence(verdict: Verdict) -> Html | str:
    return tag("strong", verdict.text) if verdict.usual is False else verdict.text


def _figure(chart: Chart, svg: str | None) -> Html:
    heads, rows = chart.table()
    cells = [[row_head(row[0]), *(cell(text, numeric=True) for text in row[1:])] for row in rows]
    numbers = table([head(heads[0]), *(head(h, numeric=True) for h in heads[1:])], cells, label=chart.title)
    return tag("figure", tag("h4", chart.title), Html(svg or ""), numbers)


def _facts(run: Training) -> Html:
    rows = [[row_head(name), tag("td", value)] for name, value in facts(run)]
    return tag("section", tag("h4", run.name), table([], rows, label=run.name))


# -- Markdown and JSON -------------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    lines = [f"# {words(report.title)}", ""]
    for note in notes(report):
        lines += [f"> {words(note)}", ""]
    for compared in report.runs if report.other else ():
        assert report.other is not None
        lines += [f"## {words(compared.run.name)}", "", words(summary(list(compared.verdicts), report.other.name)), ""]
        lines += [f"- {words(verdict.text)}" for verdict in sentences(list(compared.verdicts))] + [""]
        if compared.differences:
            rows = [[d.setting, _value(d.run), _value(d.other)] for d in compared.differences]
            lines += markdown_table(["setting that differs", compared.run.name, report.other.name], rows)
    lines += [words(RULE), ""] if report.other else []
    for chart in report.charts:
        lines += [f"**{words(chart.title)}**", "", *markdown_table(*chart.table())]
    for run in [*(compared.run for compared in report.runs), *([report.other] if report.other else [])]:
        lines += [f"## What was trained: {words(run.name)}", "", *markdown_table(["", "value"], facts(run))]
    return "\n".join(lines)


def summary_json(report: Report) -> Facts:
    """The report for programs."""
    everyone = [*(compared.run for compared in report.runs), *([report.other] if report.other else [])]
    return {
        "format": FORMAT,
        "title": report.title,
        "against": report.other.name if report.other else None,
        "rule": RULE,
        "trainings": [
            {
                "name": run.name,
                "about": run.about,
                "settings": run.settings,
                "steps": run.steps,
                "batch size": run.batch,
            }
            for run in everyone
        ],
        "verdicts": [{"training": c.run.name, **asdict(verdict)} for c in report.runs for verdict in c.verdicts],
        "differences": [{"training": c.run.name, **asdict(d)} for c in report.runs for d in c.differences],
        "curves": [
            {
                "metric": chart.metric,
                "over": chart.over,
                "lines": [{"name": name, "points": points} for name, points in chart.lines],
            }
            for chart in report.charts
        ],
    }
