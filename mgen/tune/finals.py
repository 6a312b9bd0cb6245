"""The final comparison: the finalists and the start on images and a reference that the search did not use, over several seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy.special import ndtri, stdtrit
from tqdm import tqdm

from mgen.tune.budget import Measure, unit_of
from mgen.tune.proposals import Candidate
from mgen.tune.trials import Objective, Trace, Trial

CONFIDENCE = 0.95
Verdict = Literal["better", "equal", "worse"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean, its standard deviation (between seeds, or between replicates of one), and the 95 % confidence interval.

    Attributes:
        deviation: None if there is one seed and no bootstrap; the interval is then the mean alone.
    """

    mean: float
    deviation: float | None
    low: float
    high: float


def interval(trials: Sequence[Trial]) -> Interval:
    """The interval of a distance: Student's t over n seeds, mean ± t(n − 1) · s / √n; of one seed, mean ± 1.96 · s of the bootstrap."""
    values = [trial.distance for trial in trials]
    mean, count = fmean(values), len(values)
    if count > 1:
        deviation: float | None = stdev(values)
        half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * stdev(values) / count**0.5
    else:
        deviation = trials[0].deviation
        half = float(ndtri((1 + CONFIDENCE) / 2)) * (deviation or 0.0)
    return Interval(mean=mean, deviation=deviation, low=mean - half, high=mean + half)


def verdict(own: Interval, start: Interval) -> Verdict:
    """Whether a distance is lower than the start's: "equal" if the intervals overlap."""
    if own.high < start.low:
        return "better"
    return "worse" if own.low > start.high else "equal"


@dataclass(frozen=True, kw_only=True)
class Final:
    """A candidate on the side of the test: a trial for each seed."""

    candidate: Candidate
    trials: list[Trial]

    @property
    def interval(self) -> Interval:
        """Of its distance."""
        return interval(self.trials)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The start and the finalists, the best of the search first. limit: of the cost of an image, in the unit of `measure`."""

    start: Final
    finalists: list[Final]
    limit: float
    measure: Measure

    @property
    def best(self) -> Final:
        """The finalist with the least mean distance; the start if the search found nothing else."""
        return min(self.finalists or [self.start], key=lambda final: final.interval.mean)

    @property
    def chosen(self) -> Final:
        """What to use: the best finalist, unless the start is within the budget and not beaten: equal and no dearer, or better."""
        best, start = self.best, self.start
        if start.candidate.cost > self.limit:
            return best
        found = verdict(best.interval, start.interval)
        cheaper = best.candidate.cost < start.candidate.cost
        return best if found == "better" or (found == "equal" and cheaper) else start


def compare(
    start: Candidate,
    found: Sequence[Candidate],
    objective: Objective,
    trace: Trace,
    *,
    limit: float,
    measure: Measure,
    images: int,
    seeds: Sequence[int],
    finalists: int,
    progress: bool = True,
) -> Outcome:
    """Measure the start and the first `finalists` of `found`, the start left out, with the objective of the test."""
    chosen = [start, *[candidate for candidate in found if candidate.key != start.key][:finalists]]
    total = sum(candidate.cost for candidate in chosen) * images * len(seeds)
    finals = []
    with tqdm(total=total, unit=unit_of(measure), unit_scale=True, desc="testing", disable=not progress) as bar:
        for candidate in chosen:
            trials = []
            for seed in seeds:
                trials.append(trace.measure(candidate.sampler, objective, side="test", seed=seed, images=images))
                bar.update(candidate.cost * images)
            finals.append(Final(candidate=candidate, trials=trials))
    return Outcome(start=finals[0], finalists=finals[1:], limit=limit, measure=measure)
