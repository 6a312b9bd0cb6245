"""Strategies: AutoNAT's lists (Ni et al., arXiv 2406.05478), one value per step, as points with few coordinates.

A list is its start plus a piecewise linear curve through a few knots, so that a strategy of 8 steps takes some 8 numbers, not 30.
Notation: T steps.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from operator import mul

import numpy as np

from mgen.generators import Cascade, Generator
from mgen.samplers import ParallelSampler
from mgen.samplers.binomial import reveal_shares
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, check_choice

NAMES = ("schedule", "confidence_temperature", "temperature", "guidance")
# What 1 at a knot means: a factor e^0.4 of the tokens revealed; of the others this share of the start's mean, or of 1.
UNITS = {"schedule": 0.4, "confidence_temperature": 0.25, "temperature": 0.15, "guidance": 0.25}
LEAST = {"confidence_temperature": 0.0, "temperature": 1e-4, "guidance": 1.0}
REACH = 4.0  # a knot stays within ± this

Lists = dict[str, list[float]]


def own_settings(sampler: ParallelSampler) -> Settings:
    """The settings of a sampler as they are written to files."""
    return json.loads(json.dumps(sampler.settings))


def applicable(sampler: ParallelSampler, generator: Generator | Cascade) -> list[str]:
    """The lists that have an effect on this sampler and generator."""
    names = ["schedule"]
    if sampler.order.ranked:
        names.append("confidence_temperature")
    with suppress(MgenError):  # a chain that adds no noise
        sampler.override(temperature=0.9).check(generator)
        names.append("temperature")
    return names + ["guidance"] * (generator.null_class is not None)


def mask_fractions(sampler: ParallelSampler, length: int) -> list[float]:
    """The schedule of a sampler as a list: `length` tokens are revealed as they were."""
    if sampler.random_counts:  # the law of the counts depends on the fractions themselves
        shares = reveal_shares(sampler.config.schedule, steps=sampler.config.steps, length=length)
        return list(accumulate((1 - share for share in shares[:-1]), mul))
    # Half a token above the counts: their floor is then the count, by any rule.
    counts = sampler.remaining(unknown=length, length=length)
    return [min(1.0, (n + 0.5) / length) for n in counts[:-1]]


class Space:
    """Strategies as points: the origin is the start.

    Args:
        sampler: the start; its lists are its curves evaluated. generator: that it draws with.
        search: names of lists that change; default: all that apply. knots: numbers per list.
        limit: most forward passes per image. Guidance is set to 1 in as many of the first steps as this takes, in the start too;
            `held` says whether it was.
    """

    def __init__(
        self,
        sampler: ParallelSampler,
        generator: Generator | Cascade,
        *,
        search: Sequence[str] | None = None,
        knots: int = 2,
        limit: int | None = None,
    ) -> None:
        c, length = sampler.config, generator.units.length
        sampler.check(generator)
        if generator.capabilities.one_by_one or generator.units.global_tokens:
            raise MgenError("a strategy is searched for masked generators with tokens of one kind")
        if c.steps < 2:
            raise MgenError(f"steps is {c.steps}: a strategy that changes over the steps needs at least 2")
        if c.start:
            raise MgenError(f"start is {c.start}: a strategy is searched for whole runs, from step 0")
        if knots < 1:
            raise MgenError(f"knots is {knots}: at least 1 is needed")
        usable = applicable(sampler, generator)
        for name in search or ():
            if check_choice("list to search", name, NAMES) not in usable:
                raise MgenError(f"{name} does nothing in this sampler: search {', '.join(usable)}")
        self.search = tuple(name for name in usable if search is None or name in search)
        if not self.search:
            raise MgenError(f"there is nothing to search: name some of {', '.join(usable)}")
        self.generator, self.limit = generator, limit
        lists = {"schedule": mask_fractions(sampler, length)}
        lists |= {name: sampler.values(name, length) for name in usable[1:]}
        if "confidence_temperature" in lists:
            lists["confidence_temperature"].pop()  # the last step reveals all: nothing is ranked
        own = own_settings(sampler)
        if own["counts"].startswith("halton"):
            own["counts"] = "maskgit"  # Halton's rule takes no list; the numbers of tokens stay
        if (stages := own.get("stages")) and not any(stage.get("select") for stage in stages):
            own["stages"] = None  # the list has their numbers of tokens
        self.settings = own
        self.least = {name: min(LEAST[name], *lists[name]) for name in usable[1:]}
        self.start = self.project(lists)
        self.held = "guidance" in lists and self.start["guidance"] != _rounded(lists["guidance"])
        self.sizes = {
            name: min(knots + 1, c.steps) - 1 if name == "schedule" else min(knots, len(lists[name]))
            for name in self.search
        }
        self.size = sum(self.sizes.values())  # numbers of a point
        self.sampler(self.start).check(generator)

    def sampler(self, lists: Lists) -> ParallelSampler:
        """The start's sampler with other lists."""
        return ParallelSampler.from_settings({**self.settings, **lists}, "strategy")

    def at(self, point: Sequence[float] | np.ndarray) -> Lists:
        """The lists of a strategy; those that are not searched are the start's."""
        lists, x = dict(self.start), np.clip(np.asarray(point, dtype=float), -REACH, REACH)
        for name, size in self.sizes.items():
            knots, x = x[:size], x[size:]
            start = np.array(self.start[name])
            if name == "schedule":  # tokens a step reveals, against the first step's: fractions cannot but fall
                shares = -np.diff([1.0, *start, 0.0])
                shares *= np.exp(UNITS[name] * _curve([0.0, *knots], len(shares)))
                lists[name] = (1 - np.cumsum(shares / shares.sum()))[:-1].tolist()
            else:
                mean = abs(start - (1 if name == "guidance" else 0)).mean()
                lists[name] = (start + UNITS[name] * max(1.0, mean) * _curve(knots, len(start))).tolist()
        return self.project(lists)

    def project(self, lists: Lists) -> Lists:
        """The nearest allowed lists: fractions in 0 … 1 that never rise, values of at least their least, the cost in its limit."""
        out = {}
        for name, values in lists.items():
            x = np.asarray(values, dtype=float)
            x = np.minimum.accumulate(x.clip(0, 1)) if name == "schedule" else x.clip(min=self.least[name])
            out[name] = _rounded(x.tolist())
        if self.limit is None:
            return out
        for step in range(self.settings["steps"] if "guidance" in out else 0):
            if self.cost(out) > self.limit:
                out["guidance"][step] = 1.0
        if self.cost(out) > self.limit:
            raise MgenError(
                f"{self.limit} forward passes per image are too few: these {self.settings['steps']} steps take {self.cost(out)} "
                "without guidance; use fewer steps"
            )
        return out

    def cost(self, lists: Lists) -> int:
        """Forward passes per image."""
        return self.sampler(lists).plan(self.generator).forward_passes


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in values]


def _curve(knots: Sequence[float], count: int) -> np.ndarray:
    """`count` values on the lines between evenly spaced knots."""
    return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(knots)), knots)
