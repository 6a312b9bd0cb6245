"""Orders with remasking: strategies that take known tokens back (the setting `remask:`, mgen.samplers.remask).

With kept counts a strategy of mgen.samplers.order goes on choosing what is revealed. A fixed order is a queue: a token that was taken
back stands again where its sequence has it, in a random order at a random place among the unknown ones. Orders that rank draws rank it
anew. With free counts every position moves on its own, as published.

Notation: T steps, B images, L positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mgen.nn.attention import put
from mgen.samplers.forward import Drawn
from mgen.samplers.noise import Noise
from mgen.samplers.order import Choice, OrderSettings, Strategy, first_of
from mgen.samplers.plan import PlannedStep
from mgen.samplers.remask import Path, Rates, Remask, confidence_back, move
from mgen.samplers.state import State
from mgen.tokens import TokenSpec


def remasked(
    remask: Remask,
    order: OrderSettings,
    noise: Noise,
    units: TokenSpec,
    known: Tensor,
    rates: Sequence[Rates],
    path: Path | None,
) -> Strategy:
    """The strategy of a run with given tokens known (B, L). rates: of the steps that are run. path: where counts are free."""
    conf, uniform, device = remask.kind == "conf", noise.remask, known.device
    if path is not None:
        assert uniform is not None
        start = len(uniform) - len(rates)
        if conf:
            return FreeByConfidence(shown=path.reveal.to(device), uniform=uniform.to(device), rates=rates, start=start)
        return Free(shown=path.reveal.to(device), back=path.back.to(device), start=start)
    if order.ranked:
        inner = order.strategy(noise, units, known, raster=False)
    else:
        fresh = noise.queue if order.name == "random" else None
        inner = Queue(priority=order.priorities(noise, units), fresh=fresh)
    return Kept(inner=inner, uniform=None if conf or uniform is None else uniform.to(device))


class _Remembers(Strategy):
    """Keeps the probability of every token when it was drawn, if `by_confidence`."""

    by_confidence = True

    def begin(self, state: State) -> State:
        if not self.by_confidence:
            return state
        return replace(state, confidence=torch.zeros(state.known.shape, device=state.known.device))

    def reveal(self, state: State, step: PlannedStep, choice: Choice, drawn: Drawn) -> State:
        if state.confidence is not None:
            assert drawn.log_prob is not None
            put(state.confidence, choice.positions, drawn.log_prob.float().exp(), choice.shown)
        return super().reveal(state, step, choice, drawn)


@dataclass(frozen=True, kw_only=True)
class Queue(Strategy):
    """A fixed order that tokens can enter again: `priority` (B, L), the first one to be revealed highest.

    fresh: uniform (T, B, L), where a token that was taken back stands among the unknown ones; None: where it stood.
    """

    priority: Tensor
    fresh: Tensor | None = None
    settled = True

    def begin(self, state: State) -> State:
        return replace(state, priority=self.priority.clone())

    def ranked(self, state: State) -> tuple[Tensor, Tensor]:
        """Priorities (B, L) of unknown positions, descending, −∞ behind them, and the positions."""
        assert state.priority is not None
        priority = state.priority.masked_fill(state.known, -torch.inf)
        ranked = priority.sort(dim=1, descending=True, stable=True)
        return ranked.values, ranked.indices

    def candidates(self, state: State, step: PlannedStep) -> Tensor:
        return self.ranked(state)[1][:, : step.count]

    def choose(self, state: State, step: PlannedStep, candidates: Tensor, drawn: Drawn) -> Choice:
        return first_of(candidates, step)

    def enter(self, state: State, step: PlannedStep, taken: Tensor) -> State:
        """Tokens taken (B, L) join the tokens that will be unknown after the step, whose priorities lie evenly below those it reveals."""
        if self.fresh is not None:
            assert state.priority is not None
            lowest = self.ranked(state)[0].gather(
                1, (step.quota - 1).clamp(min=0)
            )  # (B, 1), of those that the step reveals
            state.priority.copy_(torch.where(taken, self.fresh[step.index] * lowest, state.priority))
        return state


@dataclass(frozen=True, kw_only=True)
class Kept(_Remembers):
    """Takes back as many tokens as the plan says: random ones, by `uniform` (T, B, L), or (None) those drawn with the least probability."""

    inner: Strategy
    uniform: Tensor | None

    @property
    def settled(self) -> bool:  # type: ignore[override]
        return self.inner.settled

    @property
    def redraw(self) -> bool:  # type: ignore[override]
        return self.inner.redraw

    @property
    def by_confidence(self) -> bool:  # type: ignore[override]
        return self.uniform is None

    def begin(self, state: State) -> State:
        return self.inner.begin(super().begin(state))

    def candidates(self, state: State, step: PlannedStep) -> Tensor:
        return self.inner.candidates(state, step)

    def choose(self, state: State, step: PlannedStep, candidates: Tensor, drawn: Drawn) -> Choice:
        return self.inner.choose(state, step, candidates, drawn)

    def take_back(self, state: State, step: PlannedStep) -> State:
        if self.uniform is None:
            assert state.confidence is not None
            score = -state.confidence
        else:
            score = self.uniform[step.index]
        score = score.masked_fill(~state.known | state.given, -torch.inf)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        taken = rank < step.taken
        if isinstance(self.inner, Queue):
            state = self.inner.enter(state, step, taken)
        return state.take_back(taken)


@dataclass(frozen=True, kw_only=True)
class Free(Strategy):
    """Positions that move on their own, on a path settled before the run, whose first step is `start`: see Path."""

    shown: Tensor
    back: Tensor
    start: int
    settled = True

    def candidates(self, state: State, step: PlannedStep) -> Tensor:
        marks = self.shown[step.index - self.start].to(torch.uint8)
        return marks.argsort(dim=1, descending=True, stable=True)[:, : step.count]

    def choose(self, state: State, step: PlannedStep, candidates: Tensor, drawn: Drawn) -> Choice:
        return first_of(candidates, step)

    def take_back(self, state: State, step: PlannedStep) -> State:
        return state.take_back(self.back[step.index - self.start])


@dataclass(frozen=True, kw_only=True)
class FreeByConfidence(_Remembers):
    """The same for the kind conf: which tokens are taken back, by `uniform` (T, B, L), depends on the draws, and so does what is masked."""

    shown: Tensor
    uniform: Tensor
    rates: Sequence[Rates]
    start: int
    settled = True
    candidates = Free.candidates

    def choose(self, state: State, step: PlannedStep, candidates: Tensor, drawn: Drawn) -> Choice:
        choice = first_of(candidates, step)
        return replace(choice, shown=choice.shown & ~state.known.gather(1, choice.positions))

    def take_back(self, state: State, step: PlannedStep) -> State:
        assert state.confidence is not None
        decoded = state.known & ~state.given
        back = confidence_back(state.confidence, decoded, self.rates[step.index - self.start].back)
        return state.take_back(move(state.known, self.uniform[step.index], back * decoded, 0.0)[1])
