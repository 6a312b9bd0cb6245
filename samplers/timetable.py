"""The timetable of a run: how many tokens each row knows and reveals in each step, settled before the first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Steps that reveal the tokens first … stop − 1 alone; `counts(unknown=, length=)` says how many are left after each."""

    steps: int
    first: int
    stop: int
    counts: Callable[..., list[int]]

    @property
    def length(self) -> int:
        return self.stop - self.first

    def left(self, unknown: int) -> list[int]:
        """Of `unknown` tokens of the phase at first, those left after each step."""
        return self.counts(unknown=unknown, length=self.length) if unknown else [0] * self.steps


def remaining(phases: Sequence[Phase]) -> list[int]:
    """Tokens unknown after each step that is run, where none is known at first."""
    out = []
    for i, phase in enumerate(phases):
        later = sum(p.length for p in phases[i + 1 :])
        out += [left + later for left in phase.left(phase.length)]
    return out


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """One entry per step that is run.

    Args:
        phase: the phase of the step. wanting: most unknown tokens of that phase in a row before the step.
        fewest, widest: fewest and most unknown tokens of a row before the step. most: the most a row reveals in it.
        done, reveal: (steps run, B), by row: how many were revealed before, how many are revealed now.
    """

    phase: list[int]
    wanting: list[int]
    fewest: list[int]
    widest: list[int]
    most: list[int]
    done: Tensor
    reveal: Tensor


def timetable(known: Tensor, phases: Sequence[Phase]) -> Timetable:
    """The timetable for bool known (B, L).

    This is the only read-back from the device before the end of a run.
    """
    hidden: Any = torch.stack([(~known[:, p.first : p.stop]).sum(1) for p in phases]).tolist()  # [phase][row]
    after, wanting = [], []  # of each step, by row
    for i, (phase, unknown) in enumerate(zip(phases, hidden)):
        plans = {u: phase.left(u) for u in set(unknown)}
        later = torch.tensor(hidden[i + 1 :], dtype=torch.int64).sum(0)
        left = torch.tensor([plans[u] for u in unknown]).T  # (steps, B)
        after.append(left + later)
        wanting += torch.cat([torch.tensor(unknown).unsqueeze(0), left[:-1]]).amax(1).tolist()
    total = torch.tensor(hidden).sum(0, keepdim=True)  # (1, B)
    left = torch.cat(after)  # (steps run, B)
    before = torch.cat([total, left[:-1]])
    reveal = before - left
    return Timetable(
        phase=[i for i, phase in enumerate(phases) for _ in range(phase.steps)],
        wanting=wanting,
        fewest=before.amin(1).tolist(),
        widest=before.amax(1).tolist(),
        most=reveal.amax(1).tolist(),
        done=(total - before).to(known.device),
        reveal=reveal.to(known.device),
    )
