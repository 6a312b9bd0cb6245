"""Policies: samplers as points of a space of axes (mgen.tune.axes).

A point has a place on every axis: None, as in the start; the number of a choice; or, of a range, a place from 0 to 1.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np

from mgen.generators import Cascade, Generator
from mgen.samplers import ParallelSampler
from mgen.samplers.reuse import Reuse
from mgen.tune.axes import (
    Axis,
    Range,
    applies,
    base_value,
    between,
    lacking,
    place_of,
    replaced,
    resolved,
    value_at,
)
from mgen.tune.strategies import own_settings
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, first_line

Place: TypeAlias = float | int | None
Point: TypeAlias = tuple[Place, ...]
SPREAD = 0.15  # standard deviation of a change of a place in a range


@dataclass(frozen=True)
class Values:
    """The values of an axis for one start: overrides by choice, or the ends of a range and the place of the start in it.

    Attributes:
        of, default: the setting that multiples in choices are of, "" for their own; the number where settings name none.
    """

    choices: tuple[Settings, ...] = ()
    of: str = ""
    default: float | int | None = None
    key: str = ""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    start: float = 0.5

    def at(self, place: float | int, settings: Settings) -> Settings:
        """The overrides of `settings` at a place; multiples in choices are of the numbers there."""
        if not self.choices:
            return {self.key: between(self.low, self.high, place, log=self.log)}
        return {
            key: resolved(value, base_value(settings, self.of or key, self.default), key)
            for key, value in self.choices[int(place)].items()
        }


class Policies:
    """The samplers that a search may try, for one generator; the origin is the start.

    Args:
        start: the sampler that they change. axes: of the search.

    Attributes:
        axes: those that have values on this generator. left_out: axis or choice → why the generator or the sampler does not take it.
    """

    def __init__(self, start: ParallelSampler, generator: Generator | Cascade, axes: Sequence[Axis]) -> None:
        start.check(generator)
        self.start, self.generator, self.left_out = own_settings(start), generator, dict[str, str]()
        made = [(axis, values) for axis in axes if (values := self._values(axis)) is not None]
        self.axes, self.values = tuple(a for a, _ in made), tuple(v for _, v in made)
        if not self.axes:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())
            raise MgenError(f"there is nothing to search with this model: {why}")

    @property
    def origin(self) -> Point:
        """The point of the start."""
        return (None,) * len(self.axes)

    def changes(self, point: Point) -> Settings:
        """The overrides of a point, by dotted key; those of axes without an effect are left out."""
        settings, out = self.start, Settings()
        for axis, values, place in zip(self.axes, self.values, point):
            if place is not None and applies(axis, settings):
                own = values.at(place, settings)
                settings, out = replaced(settings, own), {k: v for k, v in out.items() if k not in own} | own
        # A later axis may have overruled an earlier one, or led back to the start.
        return {k: v for k, v in out.items() if value_at(settings, k) == v != value_at(self.start, k)}

    def sampler(self, point: Point) -> ParallelSampler:
        """The sampler at a point; MgenError if there is none, or the generator does not take it."""
        return self._made(self.changes(point))

    def _made(self, changes: Settings) -> ParallelSampler:
        settings = tidy(with_shares(replaced(self.start, changes), self.start, changes))
        sampler = ParallelSampler(**settings)
        sampler.plan(self.generator)  # checks it
        return sampler

    # -- points --------------------------------------------------------------------------------------------------------

    def spread(self, count: int, rng: np.random.Generator) -> list[Point]:
        """Points all over the space (a Latin hypercube), each of which leaves about half of the axes as in the start."""
        columns = []
        for values in self.values:
            unit = (rng.permutation(count) + rng.random(count)) / count
            keep = rng.permutation(count) < count // 2
            size = len(values.choices)
            places: list[Place] = [int(u * size) if size else round(u, 4) for u in unit.tolist()]
            columns.append([None if kept else place for kept, place in zip(keep.tolist(), places)])
        return list(zip(*columns))

    def child(self, parents: Sequence[Point], rng: np.random.Generator) -> Point:
        """A point near one of `parents`: with one or two places changed, now and then crossed with another of them."""
        point = list(parents[int(rng.integers(len(parents)))])
        if len(parents) > 1 and rng.random() < 0.3:
            other = parents[int(rng.integers(len(parents)))]
            point = [b if rng.random() < 0.5 else a for a, b in zip(point, other)]
        for i in rng.permutation(len(point))[: 1 + int(rng.random() < 0.5)].tolist():
            point[i] = self._moved(self.values[i], point[i], rng)
        return tuple(point)

    def _moved(self, values: Values, place: Place, rng: np.random.Generator) -> Place:
        if values.choices:
            others: list[Place] = [k for k in (None, *range(len(values.choices))) if k != place]
            return others[int(rng.integers(len(others)))]
        if place is not None and rng.random() < 0.1:
            return None
        moved = (values.start if place is None else place) + SPREAD * rng.standard_normal()
        return round(float(np.clip(moved, 0, 1)), 4)

    # -- values of an axis ---------------------------------------------------------------------------------------------

    def _values(self, axis: Axis) -> Values | None:
        """The values of an axis that the generator takes, each alone; None, with a reason in `left_out`, if it takes none."""
        able = self.generator.capabilities
        if why := lacking(axis, able, null_class=self.generator.null_class is not None):
            self.left_out[axis.name] = why
            return None
        if axis.range is not None:
            return self._range(axis, axis.range)
        kept, refused = [], Settings()
        for choice in axis.choices:
            own = Values(choices=(choice,), of=axis.of or "", default=axis.default).at(0, self.start)
            if tidy(replaced(self.start, own)) == tidy(self.start):
                continue  # that of the start
            if why := self._refusal(own):
                refused[shown_changes(own)] = why
            else:
                kept.append(choice)
        if kept:
            self.left_out |= {f"{axis.name}: {name}": why for name, why in refused.items()}
            return Values(choices=tuple(kept), of=axis.of or "", default=axis.default)
        self.left_out[axis.name] = "; ".join(dict.fromkeys(refused.values())) or "every choice is as in the start"
        return None

    def _range(self, axis: Axis, given: Range) -> Values | None:
        base = base_value(self.start, given.key, axis.default)
        if base is None and any(isinstance(end, str) for end in (given.low, given.high)):
            self.left_out[axis.name] = f"the start names no {given.key} that the range is a multiple of"
            return None
        low, high = (resolved(end, base, f"axis {axis.name}") for end in (given.low, given.high))
        if low > high or (given.log and low <= 0):
            raise MgenError(
                f"axis {axis.name}: the range is {low:g} … {high:g}: low must be at most high, and above 0 if log"
            )
        if low == high:
            self.left_out[axis.name] = f"low and high are both {low:g}"
            return None
        start = 0.5 if base is None else place_of(low, high, base, log=given.log)
        values = Values(key=given.key, low=low, high=high, log=given.log, start=start)
        reasons = [self._refusal(values.at(place, self.start)) for place in (0.0, 0.5, 1.0)]
        if all(reasons):
            self.left_out[axis.name] = reasons[1]
            return None
        return values

    def _refusal(self, changes: Settings) -> str:
        """Why the start with these overrides is no sampler for the generator; "" if it is one."""
        try:
            self._made(changes)
        except MgenError as error:
            return first_line(error)
        return ""


def tidy(settings: Settings) -> Settings:
    """Settings without entries of `reuse` that are as by default, so that equal samplers are equal."""
    reuse = settings.get("reuse")
    if not isinstance(reuse, Mapping):
        return settings
    usual = asdict(Reuse())
    return {**settings, "reuse": {k: v for k, v in reuse.items() if k not in usual or usual[k] != v} or None}


def with_shares(settings: Settings, start: Settings, changes: Mapping[str, object]) -> Settings:
    """Settings with `reuse.full_first` as a number of steps: a share of them, or that of the start in proportion to the steps."""
    reuse = settings.get("reuse")
    first = reuse.get("full_first") if isinstance(reuse, Mapping) else None
    steps = settings["steps"] or sum(stage["steps"] for stage in settings.get("stages") or ())  # of stages: their sum
    if isinstance(first, float) and 0 <= first <= 1:
        first = round(first * steps)
    elif isinstance(first, int) and "steps" in changes and "reuse.full_first" not in changes:
        first = round(first * steps / start["steps"])
    return settings if first is None else {**settings, "reuse": {**settings["reuse"], "full_first": first}}


def shown_changes(changes: Settings) -> str:
    """Overrides as they are written on the command line."""
    texts = {key: json.dumps(value).replace('"', "") for key, value in changes.items()}
    return " ".join(f"{key}={text}" for key, text in texts.items()) or "the start"
