"""The search over policies: successive halving (Jamieson & Talwalkar, arXiv 1502.07943) of candidates that evolve.

Half of the candidates are spread over the space; the others come in rounds, as mutations of the best so far. After every round the best
third of those with few images gets more of them, rung by rung. Candidates that the sampler refuses, or that cost more than the budget, are
never measured. Images of a candidate are nested: those of a rung begin with those of the rung below.

A search is replayed, not restored: its path is a function of seed, costs and distances, and those measured before are read from the trace.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from mgen.tune.budget import shown_cost, unit_of
from mgen.tune.proposals import Candidate, Proposals
from mgen.tune.trials import Objective, Trace
from mgen.utils import seeds
from mgen.utils.errors import MgenError

ROUNDS = 4  # the first with half of the candidates
KEEP = 3  # one of so many goes to the next rung
PARENTS = 5  # so many candidates are mutated, the best


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How far to search.

    Args:
        trials: different candidates at most, with the start if it is within the budget. rungs: numbers of images, rising.
        seed: of the images and of the candidates. finalists: at least so many get the most images.
        seconds: of measuring, after which nothing more is measured; None: any.
    """

    trials: int
    rungs: Sequence[int]
    seed: int = 0
    finalists: int = 3
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.rungs or min(self.rungs) < 2 or any(a >= b for a, b in zip(self.rungs, self.rungs[1:])):
            raise MgenError(
                f"--rungs {','.join(map(str, self.rungs))}: give numbers of images that rise, the first at least 2"
            )

    @property
    def sizes(self) -> list[int]:
        """Candidates of each round."""
        first = -(-self.trials // 2)
        return [first, *(len(part) for part in np.array_split(np.arange(self.trials - first), ROUNDS - 1))]

    @property
    def images(self) -> int:
        """About how many images are sampled, if all candidates are found."""
        steps = np.diff([0, *self.rungs])
        return int(sum(-(-self.trials // KEEP**i) * step for i, step in enumerate(steps.tolist())))


@dataclass(frozen=True, kw_only=True)
class Found:
    """The candidates of a search, the best first, and whether the time was used up."""

    candidates: list[Candidate]
    stopped: bool = False


class _Spent(Exception):
    """The time is used up."""


def search(proposals: Proposals, objective: Objective, trace: Trace, plan: Plan, *, progress: bool = True) -> Found:
    """Search; MgenError if nothing is within the budget. The bar goes over what the images cost."""
    candidates: dict[str, Candidate] = {}
    stopped = False
    total, unit = plan.images * proposals.limit, unit_of(proposals.cost.measure)
    with tqdm(total=total, unit=unit, unit_scale=True, desc="searching", disable=not progress) as bar:

        def measure(candidate: Candidate, images: int) -> None:
            more = images - max(candidate.trials, default=0)
            known = (candidate.key, "search", plan.seed, images) in trace.trials
            if not known and plan.seconds is not None and trace.seconds >= plan.seconds:
                raise _Spent
            candidate.trials[images] = trace.measure(
                candidate.sampler, objective, side="search", seed=plan.seed, images=images
            )
            bar.update(more * candidate.cost)
            best = ranked(candidates.values())[0]
            bar.set_postfix_str(
                f"{len(candidates)} candidates, best {best.last.distance:.3f} of {max(best.trials)} images"
            )

        try:
            for number, size in enumerate(plan.sizes):
                rng = np.random.default_rng(seeds.fold(plan.seed, "policies", number))
                if number == 0:
                    new = proposals.first(size, candidates, rng)
                else:
                    new = proposals.later(size, candidates, ranked(candidates.values())[:PARENTS], rng)
                for candidate in new:
                    candidates[candidate.key] = candidate
                    measure(candidate, plan.rungs[0])
                if not candidates:
                    break
                least = plan.finalists if number == ROUNDS - 1 else 1
                for low, high in zip(plan.rungs, plan.rungs[1:]):
                    for candidate in promoted(list(candidates.values()), low, high, least):
                        measure(candidate, high)
        except _Spent:
            stopped = True
    if not candidates:
        raise MgenError(_nothing(proposals))
    return Found(candidates=ranked(candidates.values()), stopped=stopped)


def check_budget(proposals: Proposals, plan: Plan) -> None:
    """Raise MgenError if no candidate is within the budget."""
    if not proposals.first(1, (), np.random.default_rng(plan.seed)):
        raise MgenError(_nothing(proposals))


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that were measured, the best first."""
    return sorted((c for c in candidates if c.trials), key=lambda candidate: candidate.rank)


def promoted(candidates: Sequence[Candidate], low: int, high: int, least: int) -> list[Candidate]:
    """Those that go from a rung of `low` images to the one of `high`: the best third of it, at least `least`, if they are not there yet."""
    there = sorted((c for c in candidates if low in c.trials), key=lambda candidate: candidate.trials[low].distance)
    best = there[: max(least, -(-len(there) // KEEP))]
    return [candidate for candidate in best if high not in candidate.trials]


def _nothing(proposals: Proposals) -> str:
    """Why there are no candidates."""
    if proposals.over:
        least, limit = (shown_cost(x, proposals.cost.measure) for x in (proposals.least, proposals.limit))
        return f"no sampler of the space is within the budget of {limit} per image: the least that was found is {least}"
    reasons = "; ".join(proposals.refused) or "there are no points"
    return f"the sampler takes no point of the space: {reasons}"
