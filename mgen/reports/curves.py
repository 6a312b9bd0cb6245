"""Metrics plotted over the setting in which results differ, as SVG for a page, by matplotlib."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mgen.evaluation.result import Facts
from mgen.reports.compare import Group, differing
from mgen.reports.data import number, plain, plus_minus
from mgen.reports.read import is_number
from mgen.reports.svg import SERIES, add_legend, draw, finish_axes, series

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

INSTALL = (
    "The curves need matplotlib: pip install 'mgen[plots]' and rerun the command. Their numbers are in the tables."
)
MARKERS, DASHES = "osD^vPX", ("-", "--", "-.", ":")


@dataclass(frozen=True, kw_only=True)
class Point:
    x: float
    y: float
    deviation: float | None
    run: int

    @property
    def text(self) -> str:
        return plus_minus(self.y, self.deviation)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric over a setting. lines: name (the value of a second setting, or "") and points sorted by x."""

    metric: str
    setting: str
    better: str | None
    lines: list[tuple[str, list[Point]]]

    @property
    def title(self) -> str:
        return f"{self.metric} over {self.setting}"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column heads and rows: the setting, and the metric of each line."""
        xs = sorted({point.x for _, points in self.lines for point in points})
        heads = [self.setting, *(name or self.metric for name, _ in self.lines)]
        rows = [
            [number(x), *(" and ".join(p.text for p in points if p.x == x) or "–" for _, points in self.lines)]
            for x in xs
        ]
        return heads, rows


def find_curves(group: Group) -> tuple[list[Curve], str]:
    """The curves of a group, and the reason if there are none."""
    if len(group.runs) < 2:
        return [], ""
    axes = _axes(differing([run.result for run in group.runs]))
    if not axes:
        return [], "No curves: no setting differs between these results."
    if len(axes) > 2:
        return [], f"No curves: more than two settings differ ({', '.join(axes)})."
    numeric = {
        name: [x for x in values if is_number(x)]
        for name, values in axes.items()
        if name != "seed" and all(map(is_number, values))
    }
    if not numeric:
        return [], f"No curves: {' and '.join(axes)} {'is' if len(axes) == 1 else 'are'} not numeric."
    setting = max(numeric, key=lambda name: len(set(numeric[name])))  # the first one with the most values
    xs = numeric[setting]
    del axes[setting]
    other = next(iter(axes), None)
    names = [f"{other} {plain(value)}" for value in axes[other]] if other else [""] * len(xs)
    curves = []
    for metric in group.metrics:
        if "deviation" in metric:
            continue  # belongs to another metric
        lines: dict[str, list[Point]] = {}
        for run, x, name in zip(group.runs, xs, names):
            y = run.result["metrics"].get(metric)
            if y is not None and abs(y) < float("inf"):
                deviation = run.result["deviations"].get(metric)
                lines.setdefault(name, []).append(Point(x=x, y=y, deviation=deviation, run=run.number))
        if sum(map(len, lines.values())) > 1:
            ordered = [(name, sorted(points, key=lambda p: p.x)) for name, points in lines.items()]
            curves.append(Curve(metric=metric, setting=setting, better=group.better(metric), lines=ordered))
    return curves, ""


def _axes(columns: dict[str, list[object]]) -> dict[str, list[object]]:
    """The settings that differ; those of one mapping that change together (guidance.start, guidance.end) count as one."""
    axes: dict[str, list[object]] = {}
    merged: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for key, values in columns.items():
        parent = key.rpartition(".")[0]
        seen = list(map(plain, values))
        merged.setdefault((parent or key, tuple(seen.index(x) for x in seen)), []).append(key)
    for keys in merged.values():
        first = next((key for key in keys if all(map(is_number, columns[key]))), keys[0])
        rest = [key for key in keys if key != first]
        axes[first + (f" (with {', '.join(rest)})" if rest else "")] = columns[first]
    return axes


def plot(curve: Curve, prefix: str) -> str | None:
    """The curve as an <svg> element for a page, with a prefix of its own for the ids inside; None without matplotlib."""
    size = (4.6, 3.1 + 0.1 * len(curve.lines))
    return draw(lambda figure: _fill(figure, curve), prefix, curve.title, size=size)


def _fill(figure: "Figure", curve: Curve) -> dict[str, str]:
    """Plot the curve; returns the tooltip of each point by its id."""
    axes, titles = figure.subplots(), dict[str, str]()
    handles: list[Line2D] = []
    for k, (name, points) in enumerate(curve.lines):
        color, marker = series(k), MARKERS[k % len(MARKERS)]
        x, y, dashes = [p.x for p in points], [p.y for p in points], DASHES[k // SERIES % len(DASHES)]
        handles += axes.plot(x, y, dashes, color=color, marker=marker, linewidth=1.4, markersize=4.5)
        for i, point in enumerate(points):
            if point.deviation:
                axes.errorbar([point.x], [point.y], yerr=point.deviation, fmt="none", ecolor=color, capsize=2.5, lw=1)
            # An invisible disk over the marker, large enough to touch, carries the tooltip.
            (spot,) = axes.plot([point.x], [point.y], marker="o", markersize=14, color=color, alpha=0.0)
            spot.set_gid(f"point-{k}-{i}")
            words = f"{curve.setting} {number(point.x)}{', ' + name if name else ''}: {point.text} (run {point.run})"
            titles[f"point-{k}-{i}"] = words
    xs = sorted({p.x for _, points in curve.lines for p in points})
    if xs[0] > 0 and xs[-1] / xs[0] >= 16:
        axes.set_xscale("log")
        axes.minorticks_off()
    if len(xs) <= 9:
        axes.set_xticks(xs, list(map(number, xs)))
    axes.set_xlabel(curve.setting, parse_math=False)
    axes.set_ylabel(curve.metric + (f"\n({curve.better} is better)" if curve.better else ""), parse_math=False)
    finish_axes(axes)
    names = [name for name, _ in curve.lines]
    if any(names):
        add_legend(figure, handles, names)
    return titles


def as_json(curves: Sequence[Curve]) -> list[Facts]:
    """The curves for report.json."""
    return [
        {
            **asdict(curve),
            "lines": [{"name": name, "points": list(map(asdict, points))} for name, points in curve.lines],
        }
        for curve in curves
    ]
