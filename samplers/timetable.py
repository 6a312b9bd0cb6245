"""The timetable of a run: how many tokens each row knows and reveals in each step, settled before the first."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """One entry per step that is run.

    Args:
        fewest, widest: fewest and most unknown tokens of a row before the step. most: the most a row reveals in it.
        done, reveal: (steps run, B), by row: how many were revealed before, how many are revealed now.
    """

    fewest: list[int]
    widest: list[int]
    most: list[int]
    done: Tensor
    reveal: Tensor


def timetable(known: Tensor, counts: Callable[..., list[int]]) -> Timetable:
    """The timetable for bool known (B, L); `counts` is SamplerSettings.counts.

    This is the only read-back from the device before the end of a run.
    """
    length = known.shape[1]
    unknown = (~known).sum(1).tolist()
    steps = len(counts(unknown=length, length=length))
    plans = {u: counts(unknown=u, length=length) if u else [0] * steps for u in set(unknown)}
    after = torch.tensor([plans[u] for u in unknown]).T  # (steps run, B)
    before = torch.cat([torch.tensor(unknown).unsqueeze(0), after[:-1]])
    reveal = before - after
    return Timetable(
        fewest=before.amin(1).tolist(),
        widest=before.amax(1).tolist(),
        most=reveal.amax(1).tolist(),
        done=(before[0] - before).to(known.device),
        reveal=reveal.to(known.device),
    )
