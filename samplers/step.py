"""What a sampler shows after every step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mgen.nn.attention import put


@dataclass(frozen=True, kw_only=True)
class Step:
    """State after step `index` of `count`. The tensors are live: clone what you keep.

    Args:
        tokens: (B, L) or (B, L, C). known: (B, L).
        positions, drawn: (B, M) and (B, M) or (B, M, C), what was drawn in this step, revealed or not; M may be 0.
        first_stage: these are the first stage's tokens, of a generator of two stages.
        map: (B, L, C), what a joint head made of all positions.
    """

    tokens: Tensor
    known: Tensor
    positions: Tensor
    drawn: Tensor
    index: int
    count: int
    first_stage: bool = False
    map: Tensor | None = None

    @property
    def draft(self) -> Tensor:
        """The known tokens, and this step's draws at unknown positions that it computed; shaped like `tokens`."""
        known = self.known.view(*self.known.shape, *[1] * (self.tokens.ndim - 2))
        drawn = put(self.tokens.clone(), self.positions, self.drawn) if self.map is None else self.map
        return torch.where(known, self.tokens, drawn)
