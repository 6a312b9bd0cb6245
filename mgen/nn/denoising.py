"""What networks of noisy tokens share: the embedding of a time, modulations made ahead of the steps, and the call a head makes.

Notation: R rows of the network, M positions, C numbers of a token, W width, n steps of a chain.
"""

import math
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

T = TypeVar("T")
# Rows of one matrix product for the modulations: enough to be bound by arithmetic, few enough to stay near the cache.
MODULATION_ROWS = 1024
Network = Callable[
    [Tensor, int], Tensor
]  # noisy tokens (R, M, C) and the number of the step → the network's answer (R, M, …)


class TimeEmbedding(nn.Module):
    """Timesteps (…,) → (…, W): sinusoids [cos | sin] of 10000^(−i/128), linear, SiLU, linear."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.fc1 = nn.Linear(frequencies, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        half = self.frequencies // 2
        f = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angles = t.unsqueeze(-1).float() * f
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.fc2(F.silu(self.fc1(waves.to(self.fc1.weight.dtype))))


class Ahead(Generic[T]):
    """What steps need that knows nothing of the state, made for many steps in one product, as many as MODULATION_ROWS allow.

    Args:
        make: of a slice of the steps. count: n. rows: R, of each step.
    """

    def __init__(self, make: Callable[[slice], list[T]], *, count: int, rows: int) -> None:
        self.make, self.count = make, count
        self.size = max(1, MODULATION_ROWS // max(1, rows))
        self._number = -1
        self._made: list[T] = []

    def __call__(self, j: int) -> tuple[list[T], int]:
        """What was made for the part of the steps that step j is in, and its place there."""
        number, place = divmod(j, self.size)
        if number != self._number:
            first = number * self.size
            self._number, self._made = number, self.make(slice(first, min(first + self.size, self.count)))
        return self._made, place


class Denoiser:
    """A trunk in the place of a context: the head asks it for the context of noisy tokens at every step of its chain."""

    def at(self, times: Tensor) -> Network:
        """The network at times (n,), the whole numbers or fractions of them that its time embedding takes.

        The network maps noisy tokens (R, M, C) to their context; R is the number of images, twice with null rows.
        """
        raise NotImplementedError
