"""What a search has tried, as points of cost and distance: for points.json, and plotted (pareto.svg)."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mgen.reports.svg import INK, add_legend, draw, finish_axes, series, standalone
from mgen.tune.budget import Measure, shown_cost
from mgen.tune.finals import Outcome
from mgen.tune.policies import shown_changes
from mgen.tune.proposals import Candidate
from mgen.tune.strategies import own_settings
from mgen.utils.config import Settings

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

    from mgen.reports.svg import Canvas

MARKERS = "os^vPX"
SIZE = (7.2, 4.8)  # inches


@dataclass(frozen=True, kw_only=True)
class Point:
    """One candidate, measured on one side.

    Attributes:
        key: of its settings. label: "start" or "chosen" on the side of the test, else "". side, images: how it was measured; on the side of
            the search with the most images that it got. seeds: of the images.
        cost: of an image. distance: the mean over seeds. low, high: of its error bar, one standard deviation of the bootstrap to both
            sides in the search, the 95 % confidence interval in the test; None: not computed.
        front: no other with as many images on the side of the search has both a lower cost and a lower distance.
    """

    key: str
    label: str
    side: str
    images: int
    seeds: list[int]
    cost: float
    distance: float
    low: float | None
    high: float | None
    front: bool
    changes: Settings
    settings: Settings

    @property
    def text(self) -> str:
        """In one line."""
        return f"{self.label + ': ' if self.label else ''}{self.distance:.4f} of {self.images} images ({shown_changes(self.changes)})"


def points_of(candidates: Sequence[Candidate], outcome: Outcome) -> list[Point]:
    """All candidates of the search, by cost, then the start and the finalists on the side of the test."""
    most = max((max(candidate.trials) for candidate in candidates), default=0)
    ordered = sorted(candidates, key=lambda candidate: (candidate.cost, candidate.last.distance))
    front, least = set[str](), float("inf")
    for candidate in ordered:
        if max(candidate.trials) == most and candidate.last.distance < least:
            least = candidate.last.distance
            front.add(candidate.key)
    found = []
    for candidate in ordered:
        trial = candidate.last
        spread = trial.deviation
        found.append(
            _point(
                candidate,
                label="",
                side="search",
                images=trial.images,
                seeds=[trial.seed],
                distance=trial.distance,
                low=None if spread is None else trial.distance - spread,
                high=None if spread is None else trial.distance + spread,
                front=candidate.key in front,
            )
        )
    for final in (outcome.start, *outcome.finalists):
        own, trials = final.interval, final.trials
        label = "start" if final is outcome.start else ""
        label = " and ".join(filter(None, [label, "chosen" if final is outcome.chosen else ""]))
        found.append(
            _point(
                final.candidate,
                label=label,
                side="test",
                images=trials[0].images,
                seeds=[trial.seed for trial in trials],
                distance=own.mean,
                low=None if own.deviation is None else own.low,
                high=None if own.deviation is None else own.high,
                front=False,
            )
        )
    return found


def _point(candidate: Candidate, **measured: object) -> Point:
    settings = own_settings(candidate.sampler)
    return Point(key=candidate.key, cost=candidate.cost, changes=candidate.changes, settings=settings, **measured)  # type: ignore[arg-type]


def as_json(points: Sequence[Point], measure: Measure, limit: float, distance: str) -> Settings:
    """The contents of points.json."""
    return {"cost": f"{measure} per image", "limit": limit, "distance": distance, "points": list(map(asdict, points))}


def plot(points: Sequence[Point], measure: Measure, limit: float, distance: str) -> str | None:
    """The points as an SVG file: cost on a logarithmic axis, distance with error bars; None without matplotlib."""
    element = draw(
        lambda canvas: _fill(canvas, points, measure, limit, distance),
        "pareto",
        f"{distance} over {measure} per image",
        size=SIZE,
    )
    return None if element is None else standalone(element)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two: 1, 2 and 5 times powers of ten, fewer if there are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1,)):
        found = [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]
        if len(found) <= 7:
            break
    return found


def _fill(canvas: "Canvas", points: Sequence[Point], measure: Measure, limit: float, distance: str) -> dict[str, str]:
    """Plot the points; returns the tooltip of each by its id."""
    axes, titles = canvas.subplots(), dict[str, str]()
    handles: list[Line2D] = []
    names: list[str] = []
    groups = list(
        dict.fromkeys((point.side, point.images) for point in sorted(points, key=lambda p: (p.side, p.images)))
    )
    for k, group in enumerate(groups):
        own = [point for point in points if (point.side, point.images) == group]
        test, color = group[0] == "test", series(k)
        x, y = [point.cost for point in own], [point.distance for point in own]
        for point in own:
            if point.low is not None and point.high is not None:
                bars = [[point.distance - point.low], [point.high - point.distance]]
                axes.errorbar(
                    [point.cost], [point.distance], bars, fmt="none", ecolor=color, capsize=2, lw=0.8, alpha=0.7
                )
        marker = "D" if test else MARKERS[k % len(MARKERS)]
        handles += axes.plot(x, y, "", ls="", marker=marker, color=color, markersize=6 if test else 4.5)
        names.append(f"{'test, ' if test else ''}{group[1]:,} images{' of each seed' if test else ''}")
    front = [point for point in points if point.front]
    handles += axes.plot([p.cost for p in front], [p.distance for p in front], "--", color=series(5), linewidth=1)
    names.append("front of the search")
    handles.append(axes.axvline(limit, color=series(4), linewidth=1, linestyle=":"))
    names.append(f"budget, {shown_cost(limit, measure)}")
    for i, point in enumerate(points):
        # An invisible disk over the marker, large enough to touch, carries the tooltip.
        (spot,) = axes.plot([point.cost], [point.distance], marker="o", markersize=12, color=series(0), alpha=0.0)
        spot.set_gid(f"point-{i}")
        titles[f"point-{i}"] = f"{shown_cost(point.cost, measure)}, {point.text}"
        if point.label:
            axes.annotate(
                point.label,
                (point.cost, point.distance),
                xytext=(7, 7),
                textcoords="offset points",
                fontsize=9,
                color=INK,
            )
    axes.set_xscale("log")
    axes.minorticks_off()
    marks = ticks(*axes.get_xlim())
    axes.set_xticks(marks, [shown_cost(mark, measure) for mark in marks])
    axes.set_xlabel("cost per image", parse_math=False)
    axes.set_ylabel(f"{distance}\n(lower is better)", parse_math=False)
    finish_axes(axes)
    add_legend(canvas, handles, names)
    return titles
