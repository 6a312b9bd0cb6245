"""Stages: a run cut into parts, each with a number of tokens and steps of its own; the setting `stages:`.

    stages: [{tokens: 64, steps: 24}, {tokens: 64, steps: 6}, {steps: 2, select: {share: 0.1, head_steps: 50}}]

A reading of "Generation then Reconstruction" (GtR, arXiv 2510.17171), for which no code was published: half of the tokens, evenly
spread (the order `checkerboard`), are drawn in many steps, the other half, whose neighbors are all known, in a few. Set sizes and
steps are not stated exactly by what is known of it, so they are settings; any order takes stages.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from mgen.samplers.counts import remaining_counts
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, shown
from mgen.utils.plain import check_plain
from mgen.utils.schema import PositiveShare, Text, build, schema

MOST = 100_000  # steps
Tokens = Annotated[int, Field(ge=1)] | PositiveShare


@schema
class Selection:
    """Tokens of a step whose chain has another length (GtR's frequency-weighted token selection, see mgen.samplers.selection).

    Args:
        share: of the step's tokens, rounded, at least one. head_steps: of their chain.
        by: "frequency", those whose context vectors have the most high frequencies; "random", any, to compare with.
    """

    share: PositiveShare
    head_steps: Annotated[int, Field(ge=1, le=MOST)]
    by: Literal["frequency", "random"] = "frequency"

    def counts(self, reveal: Sequence[int]) -> list[int]:
        """How many are selected, of so many tokens that each row reveals."""
        return [min(n, max(1, _rounded(self.share * n))) for n in reveal]


@schema
class Stage:
    """A part of a run.

    Args:
        steps: that it takes. tokens: a number or a share of all that the stages reveal; None, of the last stage: the rest.
        schedule: how its tokens are split among its steps, by a name of mgen.samplers.schedule; linear is evenly.
        select: tokens with another chain; None: all have the same.
    """

    steps: Annotated[int, Field(ge=1, le=MOST)]
    tokens: Tokens | None = None
    schedule: Text = "linear"
    select: Selection | None = None


@schema
class Stages:
    """The stages of a run, at least one."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise MgenError("stages is []: at least one is needed")
        *others, last = self.stages
        for i, stage in enumerate(others):
            if stage.tokens is None:
                raise MgenError(f"missing key 'stages.{i}.tokens': only the last stage takes the rest")
        if all(isinstance(stage.tokens, float) for stage in others) and isinstance(last.tokens, float | None):
            total = math.fsum(stage.tokens or 0.0 for stage in self.stages)
            if total > 1 - 1e-6 and last.tokens is None:
                raise MgenError(
                    f"the shares of the stages sum to {total:.6g}, so that nothing is left for the last one: give less to those before it"
                )
            if total > 1 + 1e-6 or (total > 1 - 1e-6) != isinstance(last.tokens, float):
                raise MgenError(
                    f"the shares of the stages sum to {total:.6g}: they must sum to 1, or to less if the last has none and takes the rest"
                )

    @classmethod
    def of(cls, settings: Sequence[Settings] | None) -> "Stages | None":
        """From a list of mappings, None for None; MgenError for a key or value that is not allowed."""
        if settings is None:
            return None
        if not isinstance(settings, list | tuple):
            raise MgenError(
                f"stages is {shown(settings)}: expected a list such as [{{tokens: 0.5, steps: 6}}, {{steps: 2}}]"
            )
        check_plain({"stages": settings})
        made = build(cls, {"stages": list(settings)})
        for i, stage in enumerate(made.stages):  # raises for a bad schedule; numbers of tokens are known later
            most = stage.steps if stage.schedule == "single" else max(2, stage.steps)
            try:
                remaining_counts(stage.schedule, steps=stage.steps, unknown=most, length=most)
            except MgenError as error:
                raise MgenError(f"stages.{i}: {error}") from error
        return made

    @property
    def steps(self) -> int:
        """The steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> tuple[int, Stage]:
        """The number of the stage that a step belongs to, from 0 on, and the stage."""
        for i, stage in enumerate(self.stages):
            if step < stage.steps:
                return i, stage
            step -= stage.steps
        raise IndexError(step)

    @property
    def selections(self) -> list[Selection]:
        """Those of the stages that have one."""
        return [stage.select for stage in self.stages if stage.select is not None]

    def ends(self, length: int) -> list[int]:
        """Of `length` tokens, those revealed after each stage.

        Raises:
            MgenError: the stages reveal another number of tokens, or one of them has more steps than tokens.
        """
        totals, done = [], 0.0
        for stage in self.stages:
            tokens = length - done if stage.tokens is None else stage.tokens
            done += tokens * length if isinstance(stage.tokens, float) else tokens
            totals.append(_rounded(done))
        if totals[-1] != length or max(totals) > length:
            raise MgenError(
                f"the stages reveal {totals[-1]} tokens, this model has {length}: give shares such as tokens: 0.25, or no tokens for "
                "the last stage, which then takes the rest"
            )
        for i, (stage, (first, stop)) in enumerate(zip(self.stages, pairwise([0, *totals]))):
            if stop - first < stage.steps:
                raise MgenError(
                    f"stages.{i} has {stage.steps} steps for {stop - first} tokens: at most one step per token"
                )
        return totals

    def left(self, *, unknown: int, length: int, counts: str) -> list[int]:
        """Tokens unknown after each step, of `unknown` of `length` at first; `counts`: a rule of mgen.samplers.counts.

        Where some are given, the unknown ones are split as all would be, but that every step reveals a token if there are enough.
        """
        out: list[int] = []
        done, later, enough = 0, self.steps, unknown >= self.steps
        for stage, (first, stop) in zip(self.stages, pairwise([0, *self.ends(length)])):
            end, later = _rounded(unknown * stop / length), later - stage.steps
            if enough:
                end = min(max(end, done + stage.steps), unknown - later)
            own, before = end - done, unknown - end
            after = [0] * stage.steps
            if own:
                after = remaining_counts(
                    stage.schedule, steps=stage.steps, unknown=own, length=stop - first, counts=counts
                )
            if own >= stage.steps:  # rules may reveal nothing in a step
                after = [max(n, stage.steps - 1 - i) for i, n in enumerate(after)]
            out += [before + n for n in after]
            done = end
        return out


def _rounded(number: float) -> int:
    """To the nearest whole number, halves up; 1e-9 forgives the rounding of shares such as 0.1."""
    return math.floor(number + 0.5 + 1e-9)
