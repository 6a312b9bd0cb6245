"""Candidates of a search over policies: points that the sampler takes and the budget allows."""

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mgen.samplers import ParallelSampler
from mgen.tune.budget import Cost, key_of
from mgen.tune.policies import Point, Policies
from mgen.tune.strategies import own_settings
from mgen.tune.trials import Trial
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, first_line

MISSES = 30  # points in a row that are no candidates, after which a round ends: the space or the budget is small
FITS = 3  # guesses of the place on an axis at which the budget is just met
FRESH = 0.2  # share of later candidates that are no mutations


@dataclass(kw_only=True, eq=False)
class Candidate:
    """A sampler of the space, what an image of it costs, and its trials by number of images."""

    point: Point
    sampler: ParallelSampler
    changes: Settings
    key: str
    cost: float
    trials: dict[int, Trial] = field(default_factory=dict)

    @property
    def last(self) -> Trial:
        """The trial with the most images."""
        return self.trials[max(self.trials)]

    @property
    def rank(self) -> tuple[int, float]:
        """The best candidate has the lowest: those with more images come first, since distances fall with their number."""
        return -max(self.trials), self.last.distance


class Proposals:
    """Makes candidates, and counts the points that are none.

    Args:
        policies: the space. cost: of an image. limit: the most that it may be.

    Attributes:
        refused: reason, without its numbers → points that the sampler does not take. over: points over the budget that could not be
            moved onto it, and `least`, the lowest cost that was seen. repeated: points whose settings were a candidate's before.
    """

    def __init__(self, policies: Policies, cost: Cost, limit: float) -> None:
        self.policies, self.cost, self.limit = policies, cost, limit
        self.refused: Counter[str] = Counter()
        self.over = self.repeated = 0
        self.least = np.inf

    def start(self) -> Candidate:
        """The start, whatever it costs."""
        return self._candidate(self.policies.origin)

    def first(self, count: int, known: Collection[str], rng: np.random.Generator) -> list[Candidate]:
        """Up to `count` candidates from all over the space, with the start in front if it is within the budget."""
        spread = (point for _ in itertools.count() for point in self.policies.spread(max(2, count), rng))
        return self._propose(itertools.chain([self.policies.origin], spread), count, known, rng)

    def later(
        self, count: int, known: Collection[str], parents: Sequence[Candidate], rng: np.random.Generator
    ) -> list[Candidate]:
        """Up to `count` candidates near the parents, a few from anywhere."""
        near = [parent.point for parent in parents]

        def points() -> Iterator[Point]:
            while True:
                yield self.policies.spread(2, rng)[0] if rng.random() < FRESH else self.policies.child(near, rng)

        return self._propose(points(), count, known, rng)

    def _propose(
        self, points: Iterator[Point], count: int, known: Collection[str], rng: np.random.Generator
    ) -> list[Candidate]:
        found: dict[str, Candidate] = {}
        misses = 0
        while len(found) < count and misses < MISSES:
            point = next(points)
            misses += 1
            try:
                made = self._within(point, rng)
            except MgenError as error:
                self.refused[re.sub(r"[0-9][0-9.,]*", "…", first_line(error))] += 1
                continue
            if made is None:
                self.over += 1
            elif made.key in known or made.key in found:
                self.repeated += 1
            else:
                found[made.key] = made
                misses = 0
        return list(found.values())

    def _candidate(self, point: Point) -> Candidate:
        """The candidate at a point, within the budget or not; MgenError if the sampler does not take it."""
        sampler = self.policies.sampler(point)
        cost = self.cost(sampler)
        self.least = min(self.least, cost)
        changes = self.policies.changes(point)
        return Candidate(point=point, sampler=sampler, changes=changes, key=key_of(own_settings(sampler)), cost=cost)

    def _within(self, point: Point, rng: np.random.Generator) -> Candidate | None:
        """The candidate at a point, moved onto the budget if it is over it; None if it can't be."""
        made = self._candidate(point)
        return made if made.cost <= self.limit else self._fitted(point, rng)

    def _fitted(self, point: Point, rng: np.random.Generator) -> Candidate | None:
        """The candidate at a point that is moved onto the budget, along one of the axes that cost or several; None if that fails."""
        axes = [i for i, axis in enumerate(self.policies.axes) if axis.cost]
        for i in rng.permutation(axes).tolist():
            place, values = point[i], self.policies.values[i]
            high = values.start if place is None else float(place)
            low, point = 0.0, (*point[:i], 0.0, *point[i + 1 :])
            best = self._allowed(point)
            if best is None or best.cost > self.limit:
                continue
            for _ in range(FITS):  # numbers of steps are few: halves come near enough
                middle = round((low + high) / 2, 4)
                made = self._allowed((*point[:i], middle, *point[i + 1 :]))
                if made is not None and made.cost <= self.limit:
                    low, best = middle, made
                else:
                    high = middle
            return best
        return None

    def _allowed(self, point: Point) -> Candidate | None:
        try:
            return self._candidate(point)
        except MgenError:
            return None
