"""Orders: which unknown positions are revealed next. The strategies that the setting `order:` names.

| order | positions | from |
|---|---|---|
| random, raster, halton, halton-rolled, a list | settled before the run: only those of the step are computed | MAR, Halton-MaskGIT |
| checkerboard, {name: checkerboard, levels: 4} | the same: one set of a checkerboard after the other | GtR (a reading of the paper) |
| confidence | a token is drawn at every unknown position and the likeliest draws are revealed | MaskGIT |
| {name: confidence, redraw: true} | the same, but tokens are drawn a second time at the positions found | ReCAP's MaskGIT-r |
| remasking | every step draws all positions, known ones too, and ranks them anew | Halton-MaskGIT's confidence sampler |
| {name: remasking, random_steps: 2} | the same, but the first 2 steps rank at random | its randomize "warm_up" ("random": all) |
| moment | positions are chosen by their whole distributions, then tokens are drawn there alone | arXiv 2510.04525 |

The setting `remask:` goes with all but order remasking: see mgen.samplers.remask_order.

Notation: B images, L positions, M positions computed in a step, G positions of a group (see mgen.samplers.reuse).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mgen.samplers.forward import Drawn
from mgen.samplers.noise import Noise, rows_at
from mgen.samplers.plan import PlannedStep
from mgen.samplers.sequences import LEVELS, SEQUENCES, priorities
from mgen.samplers.state import State
from mgen.tokens import TokenSpec
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, check_choice, check_keys, shown
from mgen.utils.schema import Natural, Text, build, schema

RANKED = ("confidence", "moment", "remasking")
ORDERS = tuple(sorted((*SEQUENCES, *RANKED)))
Order = str | Sequence[int] | Settings


@schema
class OrderSettings:
    """The setting `order:`: one of ORDERS, or "list" with `positions`, the first to be revealed first.

    `redraw`: rank one draw at temperature 1 and keep a second one. `levels`: sets of a checkerboard (3); 1 is the order random.
    `random_steps`: so many steps, the first, of order remasking rank positions at random.
    """

    name: Text
    positions: tuple[Natural, ...] = ()
    redraw: bool = False
    levels: Annotated[int, Field(ge=1, le=16)] | None = None
    random_steps: Natural = 0

    def __post_init__(self) -> None:
        if self.name != "list":
            check_choice("order", self.name, ORDERS)
        if self.redraw and self.name != "confidence":
            raise MgenError(f"redraw is true with {self.name}: it is for confidence only")
        if self.levels is not None and self.name != "checkerboard":
            raise MgenError(f"levels is {self.levels} with {self.name}: it is for checkerboard only")
        if self.random_steps and self.name != "remasking":
            raise MgenError(f"random_steps is {self.random_steps} with {self.name}: it is for remasking only")

    @classmethod
    def of(cls, order: Order) -> "OrderSettings":
        """From a name, a list or a mapping; MgenError for unknown names and options, and lists but of 0 … L − 1, each once."""
        if isinstance(order, str):
            return cls(name=check_choice("order", order, ORDERS))
        if isinstance(order, Mapping):
            check_keys(order, {"name", "redraw", "levels", "random_steps"}, "order.")
            return build(cls, {"name": order.get("name"), **order}, "order.")
        whole = isinstance(order, list | tuple) and all(type(p) is int for p in order)
        if not whole or not order or sorted(order) != list(range(len(order))):
            raise MgenError(
                f"order is {shown(order)}: expected a name ({', '.join(ORDERS)}) or all positions 0 … L − 1, each once"
            )
        return cls(name="list", positions=tuple(order))  # type: ignore[arg-type]

    @property
    def ranked(self) -> bool:
        """Whether positions are ranked by the probability of their draws, or of all draws there could be."""
        return self.name in RANKED

    def priorities(self, noise: Noise, units: TokenSpec) -> Tensor:
        """Priority (B, L) of the positions of an order that is settled before the run, the first to be revealed highest."""
        levels = LEVELS if self.levels is None else self.levels
        return priorities(self.positions or self.name, noise, units.grid, units.global_tokens, levels=levels)

    def strategy(self, noise: Noise, units: TokenSpec, known: Tensor, *, raster: bool) -> "Strategy":
        """The strategy for a run with given tokens known (B, L); `raster`: the positions of a group are revealed row by row."""
        if self.ranked:
            assert noise.confidence is not None
            if self.name == "remasking":
                v = units.vocab_size
                return Remasking(gumbel=noise.confidence, vocab_size=v, random_steps=self.random_steps)
            if self.name == "moment":
                return Moment(gumbel=noise.confidence)
            return Confidence(gumbel=noise.confidence, redraw=self.redraw)
        ranking = (
            self.priorities(noise, units).masked_fill(known, -torch.inf).argsort(dim=1, descending=True, stable=True)
        )
        return FixedOrder(ranking=ranking, raster=raster)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a step reveals: positions (B, M), of them those where `shown` (B, M); and the positions (B, G) of the step's group.

    `rows` (B, M): where a token is drawn a second time, which of the candidates the positions are.
    """

    positions: Tensor
    shown: Tensor
    group: Tensor
    rows: Tensor | None = None


class Strategy:
    """Which positions a full step may reveal, which of them it does, and what revealing does.

    `settled`: the candidates are the group's positions in the order in which they are revealed, so that only those of the step are
    computed. `redraw`: tokens are drawn a second time at the positions chosen.
    """

    settled = False
    redraw = False

    def candidates(self, state: State, step: PlannedStep) -> Tensor:
        """Positions (B, N) that the step and its group may reveal."""
        raise NotImplementedError

    def ahead(self, candidates: Tensor, step: PlannedStep) -> Tensor:
        """Positions (B, N) that are revealed from this step on until the next one that computes null rows, the step's own first."""
        return candidates

    def choose(self, state: State, step: PlannedStep, candidates: Tensor, drawn: Drawn) -> Choice:
        """What the step reveals of them, given what was drawn: at all candidates, or, if `settled`, at those of the step."""
        raise NotImplementedError

    def begin(self, state: State) -> State:
        """The state before the first step, with what the strategy remembers in it."""
        return state

    def take_back(self, state: State, step: PlannedStep) -> State:
        """The state without the known tokens that the step takes back, before it reveals others; called if `step.takes`."""
        raise NotImplementedError

    def reveal(self, state: State, step: PlannedStep, choice: Choice, drawn: Drawn) -> State:
        """The state with the drawn tokens (B, M) or (B, M, C) that are shown."""
        return state.reveal(choice.positions, drawn.tokens, choice.shown)


@dataclass(frozen=True, kw_only=True)
class FixedOrder(Strategy):
    """Positions in an order that is settled before the run: `ranking` (B, L), the first one first, given ones last."""

    ranking: Tensor
    raster: bool
    settled = True

    def candidates(self, state: State, step: PlannedStep) -> Tensor:
        length, place = self.ranking.shape[1], torch.arange(step.group_size, device=self.ranking.device)
        # Rows that reveal fewer than others are filled up with further positions, which are not revealed now.
        group = self.ranking.gather(1, (step.done + place) % length)
        if self.raster:
            group = (group + length * (place >= step.group_quota)).sort(dim=1).values % length  # fillers stay behind
        return group

    def ahead(self, candidates: Tensor, step: PlannedStep) -> Tensor:
        if step.ahead <= step.group_size:
            return candidates
        length = self.ranking.shape[1]
        place = torch.arange(step.group_size, step.ahead, device=self.ranking.device)
        return torch.cat([candidates, self.ranking.gather(1, (step.done + place) % length)], dim=1)

    def choose(self, state: State, step: PlannedStep, candidates: Tensor, drawn: Drawn) -> Choice:
        return first_of(candidates, step)


@dataclass(frozen=True, kw_only=True)
class Confidence(Strategy):
    """The likeliest draws first, with Gumbel noise (T, B, L) on their log-probabilities (MaskGIT, arXiv 2202.04200, §3.2)."""

    gumbel: Tensor
    redraw: bool = False

    def candidates(self, state: State, step: PlannedStep) -> Tensor:
        return state.unknown(step.stop, step.unknown)

    def scores(self, step: PlannedStep, candidates: Tensor, drawn: Drawn) -> Tensor:
        """Confidence (B, N) of the draws."""
        assert drawn.log_prob is not None
        return drawn.log_prob + step.confidence_temperature * rows_at(self.gumbel[step.index], candidates)

    def choose(self, state: State, step: PlannedStep, candidates: Tensor, drawn: Drawn) -> Choice:
        fillers = state.known.gather(1, candidates)
        score = self.scores(step, candidates, drawn).masked_fill(fillers, -torch.inf)
        rank = score.argsort(dim=1, descending=True, stable=True)  # (B, N), the surest first
        best = rank[:, : step.group_size]
        group = candidates.gather(1, best)
        if self.redraw:
            return replace(first_of(group, step), rows=best[:, : step.count])
        return Choice(positions=candidates, shown=rank.argsort(dim=1) < step.quota, group=group)


@dataclass(frozen=True, kw_only=True)
class Moment(Confidence):
    """Positions first, then tokens there alone: MaskGIT's order for many unknown tokens (arXiv 2510.04525).

    With confidence temperature a, MaskGIT keeps a token of probability p at a rate of p · p^(1/a), nearly. So positions are ranked by
    log Σ p^(1 + 1/a) and Gumbel noise, and tokens drawn from p^(1 + 1/a). At a = 0 the likeliest tokens of all are revealed.
    """

    redraw: bool = True

    def scores(self, step: PlannedStep, candidates: Tensor, drawn: Drawn) -> Tensor:
        """Log-moments (B, N) with noise."""
        assert drawn.log_prob is not None
        if math.isinf(step.exponent):
            return drawn.log_prob
        return drawn.log_prob + rows_at(self.gumbel[step.index], candidates)


@dataclass(frozen=True, kw_only=True)
class Remasking(Confidence):
    """Every step draws all positions; the scheduled number of them, known ones first, take this step's draws.

    A drawn mask, where the head can draw one, stays unknown. Given tokens never change.
    """

    vocab_size: int | None
    random_steps: int = 0

    def scores(self, step: PlannedStep, candidates: Tensor, drawn: Drawn) -> Tensor:
        """Confidence (B, N) of the draws, in the first steps their noise alone."""
        if step.index < self.random_steps:
            return rows_at(self.gumbel[step.index], candidates)
        return super().scores(step, candidates, drawn)

    def candidates(self, state: State, step: PlannedStep) -> Tensor:
        b, length = state.known.shape
        return torch.arange(length, device=state.known.device).expand(b, -1)

    def choose(self, state: State, step: PlannedStep, candidates: Tensor, drawn: Drawn) -> Choice:
        score = self.scores(step, candidates, drawn).masked_fill(state.known, torch.inf)
        target = step.done + step.quota + state.given.sum(1, keepdim=True)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return Choice(positions=candidates, shown=(rank < target) | state.known, group=candidates)

    def reveal(self, state: State, step: PlannedStep, choice: Choice, drawn: Drawn) -> State:
        assert self.vocab_size is not None
        tokens, fresh = drawn.tokens, choice.shown & ~state.given
        tokens = torch.where(fresh.view(*fresh.shape, *[1] * (tokens.ndim - 2)), tokens, state.tokens)
        ids = (tokens < self.vocab_size).view(*fresh.shape, -1).all(-1)
        return replace(state, tokens=tokens, known=choice.shown & (ids | state.given))


def first_of(group: Tensor, step: PlannedStep) -> Choice:
    """The first positions of a group (B, G), as many as a full step reveals."""
    shown = torch.arange(step.count, device=group.device) < step.quota
    return Choice(positions=group[:, : step.count], shown=shown, group=group)


def next_of(group: Tensor, step: PlannedStep) -> Choice:
    """The positions of a group (B, G) that a cached step reveals; every row reveals as many."""
    positions = group[:, step.first : step.first + step.count]
    return Choice(positions=positions, shown=torch.ones_like(positions, dtype=torch.bool), group=group)
