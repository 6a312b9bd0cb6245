"""Remasking: known tokens are taken back, so that a later step can draw them again. The setting `remask:`.

Wang et al., "Remasking Discrete Diffusion Models with Inference-Time Scaling" (ReMDM, arXiv 2503.00307): with α the share of decoded
tokens at masking time t and α' that at the next time s, a decoded token is masked again with probability σ, and a masked one is
decoded with probability (α' − (1 − σ) α) / (1 − α). For every σ up to σ_max = min(1, (1 − α') / α) the share decoded at s is α'.

| kind | σ |
|---|---|
| cap | min(η, σ_max) |
| rescale | η σ_max |
| conf | η σ_max softmax(−c) over the decoded positions, c the probability of each token when it was drawn |
| loop | 0, but between the masking times `start` and `stop`: η, while α is held at `share` |
| forward-backward | (α' − α) / α (Campbell et al., arXiv 2205.14987) |

Notation: T steps, B images, L positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mgen.samplers.schedule import Schedule, listed_fractions, mask_fraction, masking_times
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.schema import PositiveShare, build, schema

ETA = {"cap": 0.008, "rescale": 0.015, "conf": 1.0, "loop": 0.02, "forward-backward": 1.0}
LOOP = {"start": 0.55, "stop": 0.05, "share": 0.9}


class Rates(NamedTuple):
    """Probabilities of one step: that a decoded token is taken back, and that a masked one is revealed.

    Of the kind conf `back` is the sum over the decoded positions.
    """

    back: float
    reveal: float


@schema
class Remask:
    """Which known tokens are taken back.

    Args:
        kind: see the table above.
        eta: η; None: as published (cap 0.008, rescale 0.015, loop 0.02, conf 1). For conf it is the expected number of tokens taken
            back in a step, where σ_max allows it.
        counts: "kept": a step takes back n σ of the n known tokens, rounded, and reveals as many more, so that the schedule's numbers
            of known tokens stay. "free": as published, every position moves on its own, and the numbers are random.
        start, stop: of the kind loop, the masking times between which α is held (0.55, 0.05). share: the α that is held (0.9).
    """

    kind: Literal["cap", "rescale", "conf", "loop", "forward-backward"]
    eta: Annotated[float, Field(ge=0, le=10_000)] | None = None
    counts: Literal["free", "kept"] = "kept"
    start: PositiveShare | None = None
    stop: PositiveShare | None = None
    share: PositiveShare | None = None

    def __post_init__(self) -> None:
        for name in LOOP:
            if self.kind != "loop" and getattr(self, name) is not None:
                raise MgenError(f"remask.{name} is for the kind loop, not for {self.kind}: leave it out")
        if self.kind == "forward-backward" and self.eta is not None:
            raise MgenError("remask.eta is given, the kind forward-backward has none: leave it out")
        if self.kind != "conf" and self.rate > 1:
            raise MgenError(f"remask.eta is {self.eta:g}: with {self.kind} it is a probability, at most 1")
        on, off, held = self._loop
        if not off < on < 1 or not held < 1:
            raise MgenError(
                f"remask.start is {on:g}, stop {off:g} and share {held:g}: needed are stop < start < 1 and a share below 1"
            )

    @classmethod
    def of(cls, settings: Settings | None) -> "Remask | None":
        """From a mapping; None where nothing is ever taken back. MgenError for a key or value that is not allowed."""
        made = None if settings is None else build(cls, settings, "remask.")
        return None if made is None or (not made.rate and not made.free and made.kind != "loop") else made

    @property
    def rate(self) -> float:
        """η."""
        return ETA[self.kind] if self.eta is None else self.eta

    @property
    def free(self) -> bool:
        """Whether positions move on their own, as published."""
        return self.counts == "free"

    @property
    def _loop(self) -> tuple[float, float, float]:
        given = {name: getattr(self, name) for name in LOOP}
        on, off, held = (LOOP[name] if value is None else value for name, value in given.items())
        return on, off, held

    # -- the published probabilities -----------------------------------------------------------------------------------

    def rates(self, schedule: Schedule, *, steps: int, length: int) -> list[Rates]:
        """Of each of `steps` steps, with α by the schedule, of the kind loop by its own."""
        times = masking_times(steps)
        if self.kind == "loop":
            return [self._loop_rates(t, s) for t, s in pairwise(times)]
        if schedule == "single":
            shares = [1 - min(length, steps - t) / length for t in range(steps + 1)]
        elif isinstance(schedule, str):
            shares = [1 - mask_fraction(schedule, 1 - time, length=length) for time in times]
        else:
            shares = [0.0, *(1 - x for x in listed_fractions(schedule, steps)[: steps - 1]), 1.0]
        return [self._rates(before, after) for before, after in pairwise(shares)]

    def _rates(self, before: float, after: float) -> Rates:
        """From α = before to α' = after."""
        back = self._back(before, after)
        apart = 0.0 if self.kind == "conf" else back  # conf: σ is 0 at masked positions
        reveal = (after - (1 - apart) * before) / (1 - before) if before < 1 else 1.0
        return Rates(back, min(1.0, max(0.0, reveal)))

    def _back(self, before: float, after: float) -> float:
        most = min(1.0, (1 - after) / before) if before > 0 else 1.0
        match self.kind:
            case "cap":
                return min(self.rate, most)
            case "forward-backward":
                return min(1.0, (after - before) / before) if before > 0 else 1.0
        return self.rate * most

    def _loop_rates(self, t: float, s: float) -> Rates:
        on, off, held = self._loop
        if off < t <= on:
            return Rates(self.rate, min(1.0, self.rate * held / (1 - held)))
        before, after = ((1 - x) * held / (1 - on) if t > on else 1 - x * (1 - held) / off for x in (t, s))
        return Rates(0.0, min(1.0, (after - before) / (1 - before)))

    # -- kept counts ---------------------------------------------------------------------------------------------------

    def fractions(self, steps: int) -> list[float] | None:
        """The mask fractions after each step but the last that the kind loop has in place of the schedule's; None for others."""
        if self.kind != "loop":
            return None
        on, off, held = self._loop
        shares = (
            min(held, (1 - s) * held / (1 - on)) if s > off else 1 - s * (1 - held) / off
            for s in masking_times(steps)[1:-1]
        )
        return [round(1 - share, 9) for share in shares]

    def taken(self, before: Tensor, left: Tensor, total: Tensor, *, start: int, steps: int) -> Tensor:
        """Tokens (S, B) that each of the steps start … T − 1 takes back, if (S, B) are unknown before and after it, of total (1, B).

        What a step rounds off is left to the next ones, since n σ is often less than 1/2.
        """
        times = masking_times(steps)[start:steps]
        rows = zip(before.T.tolist(), left.T.tolist(), total[0].tolist())
        return torch.tensor([self._taken(times, *row) for row in rows], dtype=torch.int64).T

    def _taken(self, times: Sequence[float], before: Sequence[int], left: Sequence[int], total: int) -> list[int]:
        """The same of one image."""
        out, due = [], 0.0
        for t, unknown, later in zip(times, before, left):
            known = total - unknown
            due += self._expected(t, known, later, total)
            out.append(min(math.floor(due + 0.5), known, later))
            due = min(1.0, due - out[-1])
        return out

    def _expected(self, t: float, known: int, left: int, total: int) -> float:
        """n σ of a step at masking time t with n known tokens."""
        if not known:
            return 0.0
        on, off, _ = self._loop
        if self.kind == "loop":
            return known * self.rate if off < t <= on else 0.0
        if self.kind == "conf":
            return self.rate * min(1.0, left / known)
        return known * min(self._back(known / total, 1 - left / total), left / known)


# -- free counts: every position moves on its own --------------------------------------------------------------------------


def move(known: Tensor, uniform: Tensor, back: float | Tensor, reveal: float) -> tuple[Tensor, Tensor]:
    """One step of the published chain: which masked positions (B, L) are revealed, and which decoded ones are taken back.

    Args:
        known: bool (B, L). uniform: (B, L) in [0, 1). back, reveal: the probabilities, see Rates; `back` may be (B, L).
    """
    return ~known & (uniform < reveal), known & (uniform < back)


def confidence_back(confidence: Tensor, decoded: Tensor, back: float) -> Tensor:
    """σ (B, L) of the kind conf, from the probability (B, L) of each token when it was drawn; 0 where decoded (B, L) is False."""
    weights = (-confidence).exp() * decoded
    return (back * weights / weights.sum(1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)


@dataclass(frozen=True, kw_only=True)
class Path:
    """What every position of a run does, settled before it: the numbers do not depend on the network.

    Args:
        reveal, back: bool (S + 1, B, L), which positions each step reveals and takes back; the last one reveals what is left.
        left, taken: tokens (S + 1, B) unknown after each step, and taken back in it.
        fewest: none, or the least number of known tokens, where `left` is only the least that may be unknown.
    """

    reveal: Tensor
    back: Tensor
    left: Tensor
    taken: Tensor
    fewest: int | None = None


def make_path(rates: Sequence[Rates], uniform: Tensor, given: Tensor, *, conf: bool) -> Path:
    """The path of images whose given tokens are known (B, L), from the numbers (S, B, L) of the steps that are run.

    conf: which tokens are taken back depends on the draws. `reveal` then marks all positions that are drawn if they are masked.
    """
    known, moves, left = given, [], []
    for (back, reveal), numbers in zip(rates, uniform):
        shown, taken = move(known, numbers, back, reveal)
        if conf:
            shown, taken = ~given & (numbers < reveal), torch.zeros_like(given)
        else:
            taken = taken & ~given
        known = (known | shown) & ~taken
        moves.append((shown, taken))
        left.append(~known)
    last = ~known
    if conf:  # besides those that stayed masked, those that the last step may have taken back
        last = ~given & ((uniform[-1] >= rates[-1].reveal) | (uniform[-1] < rates[-1].back))
    moves.append((last, torch.zeros_like(given)))
    left.append(torch.zeros_like(given))
    shown, back_at = (torch.stack(parts) for parts in zip(*moves))
    before = torch.cat([(~given).sum(1).unsqueeze(0), (unknown := torch.stack(left).sum(-1))[:-1]])
    # So many positions are revealed that were known: for conf the most that can have been taken back before.
    fewest = int(given.sum(1).min()) if conf else None
    return Path(reveal=shown, back=back_at, left=unknown, taken=shown.sum(-1) - (before - unknown), fewest=fewest)


def expected_path(rates: Sequence[Rates], unknown: int, *, conf: bool) -> tuple[Tensor, Tensor]:
    """Expected tokens (S + 1, 1) unknown after each step, and taken back in it, rounded, of `unknown` at first; for plans."""
    known, lost, left, taken = 0.0, 0.0, [], [0]
    for back, reveal in rates:
        now = min(known, back) if conf else known * back
        known, lost = known + (unknown - known) * reveal - now, lost + now
        left.append(round(unknown - known))
        taken.append(round(lost))
    taken = [after - before for before, after in pairwise(taken)]
    return torch.tensor([*left, 0]).unsqueeze(1), torch.tensor([*taken, 0]).unsqueeze(1)
