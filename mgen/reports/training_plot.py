"""Curves of trainings as plots and tables: each run's values pale, smoothed ones strong, and the usual range behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgen.reports.data import column_numbers, number
from mgen.reports.svg import add_legend, draw, finish_axes, series
from mgen.reports.training import Points, Training, smooth, thinned, value_at
from mgen.utils.logged import in_order, logged

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

ROWS = 8  # of a table
MOST_CURVES = 40
SPOTS = 12  # values of a curve that tell themselves when pointed at


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One value of several trainings. over: "images seen" or "step". banded: the last line is what the others are compared with."""

    metric: str
    over: str
    lines: list[tuple[str, Points]]
    banded: bool

    @property
    def title(self) -> str:
        title = logged(self.metric).title
        return f"{title[0].upper()}{title[1:]}, over {self.over}"

    @property
    def smoothed(self) -> list[Points]:
        return [smooth(points, self.metric) for _, points in self.lines]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column heads and rows: smoothed values at some places, and of two lines how far they are apart."""
        curves = self.smoothed
        own = curves[:-1] if self.banded else curves
        low, high = min(c[0][0] for c in own), max(c[-1][0] for c in own)
        xs = sorted({round(low + (high - low) * i / (ROWS - 1)) for i in range(ROWS)})
        columns = [[value_at(curve, min(max(x, low), high)) for x in xs] for curve in curves]
        heads = [self.over, *(name for name, _ in self.lines)]
        texts = [column_numbers(column) for column in columns]
        if self.banded and len(curves) == 2:
            heads.append("difference")
            pairs = zip(*columns)
            texts.append(["–" if a is None or not b else f"{100 * (a / b - 1):+.1f} %" for a, b in pairs])
        return heads, [[f"{x:,}", *(text[i] for text in texts)] for i, x in enumerate(xs)]


def charts(runs: Sequence[Training], other: Training | None) -> list[Chart]:
    """The curves of what all runs and the other one log, or of what the runs do if there is no other: loss twice, over steps too."""
    everyone = [*runs, *([other] if other else [])]
    names = set.intersection(*(set(run.curves) for run in everyone))
    out = []
    for metric in in_order(names)[:MOST_CURVES]:
        lines = [(run.name, run.over_images(metric)) for run in everyone]
        out.append(Chart(metric=metric, over="images seen", lines=lines, banded=other is not None))
        if metric == "loss":
            lines = [(run.name, run.curves[metric]) for run in everyone]
            out.append(Chart(metric=metric, over="step", lines=lines, banded=other is not None))
    return out


def plot(chart: Chart, prefix: str) -> str | None:
    """The chart as an <svg> element; None without matplotlib."""
    return draw(lambda figure: _fill(figure, chart), prefix, chart.title, size=(4.6, 3.1 + 0.1 * len(chart.lines)))


def _fill(figure: "Figure", chart: Chart) -> dict[str, str]:
    axes, titles = figure.subplots(), dict[str, str]()
    handles: list[Line2D] = []
    band = logged(chart.metric).band
    for k, ((name, points), curve) in enumerate(zip(chart.lines, chart.smoothed)):
        color, last = series(k), chart.banded and k == len(chart.lines) - 1
        shown = thinned(curve)
        x, y = [p[0] for p in shown], [p[1] for p in shown]
        if last and band is not None:
            low, high = ([value - sign * band * abs(value) for value in y] for sign in (1, -1))
            axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
        raw = thinned(points)
        axes.plot([p[0] for p in raw], [p[1] for p in raw], color=color, linewidth=0.7, alpha=0.35)
        marker = "o" if len(points) < 6 else ""
        handles += axes.plot(x, y, "--" if last else "-", color=color, linewidth=1.6, marker=marker, markersize=4)
        for i, (px, py) in enumerate(thinned(shown, SPOTS)):
            (spot,) = axes.plot([px], [py], marker="o", markersize=14, color=color, alpha=0.0)
            spot.set_gid(f"point-{k}-{i}")
            titles[f"point-{k}-{i}"] = f"{name}, {chart.over} {px:,.0f}: {number(py)}"
    values = [value for curve in chart.smoothed for _, value in curve]
    if min(values) > 0 and max(values) / min(values) >= 8:
        axes.set_yscale("log")
        axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.set_xlabel(chart.over)
    axes.set_ylabel(logged(chart.metric).title.replace(", ", ",\n"), parse_math=False)
    finish_axes(axes)
    names = [name for name, _ in chart.lines]
    if chart.banded and band is not None:
        names[-1] += f" (band: ±{100 * band:g} %)"
    add_legend(figure, handles, names)
    return titles


def _short(value: float) -> str:
    """A number on an axis: 50k, 1.2M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
