"""Random counts: how many tokens each image reveals in a step, drawn before the run (the rule `counts: binomial`).

In masked diffusion (Sahoo et al., arXiv 2406.07524; You et al., "Effective and Efficient Masked Image Generation Models", eMIGM,
arXiv 2503.07197) masking time falls from 1 to 0, and every masked token is revealed between times t and s with probability
1 − γ(s) / γ(t), whatever became of the others. The number of them is binomial and every set of so many is as likely: a count, and
an order of the positions. A step that would reveal nothing reveals one token, as published.

Each image has numbers of its own here. The official code shares a count among the images of a batch: the same law for each image.

Notation: T steps, B images, L positions.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mgen.samplers.schedule import Schedule, listed_fractions, mask_fraction, masking_times


def reveal_shares(schedule: Schedule, *, steps: int, length: int) -> list[float]:
    """The probability with which a masked token is revealed, in each of the steps; the last one is 1."""
    if isinstance(schedule, str):
        fractions = [mask_fraction(schedule, 1 - time, length=length) for time in masking_times(steps)[:-1]]
    else:
        fractions = [1.0, *listed_fractions(schedule, steps)[: steps - 1]]
    return [1 - after / before if before > 0 else 1.0 for before, after in pairwise(fractions)] + [1.0]


def expected_left(shares: Sequence[float], unknown: int) -> list[int]:
    """Tokens left after each step if every step reveals the expected number, rounded, at least one."""
    left = []
    for share in shares:
        unknown -= min(unknown, max(1, round(unknown * share)))
        left.append(unknown)
    return left


def random_left(shares: Sequence[float], unknown: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (T, B) left in each image after each step.

    Args:
        shares: of the T steps. unknown: (B,), masked tokens at first.
        uniform: (T, B, L) in [0, 1): of m masked tokens, those are revealed whose number, one of the first m, lies below the share.
    """
    left, place = [], torch.arange(uniform.shape[-1])
    for share, numbers in zip(shares, uniform):
        due = ((numbers < share) & (place < unknown.unsqueeze(1))).sum(1)
        unknown = unknown - torch.minimum(unknown, due.clamp(min=1))
        left.append(unknown)
    return torch.stack(left)
