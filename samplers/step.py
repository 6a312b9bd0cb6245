"""What a sampler shows after every step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mgen.samplers.state import put


@dataclass(frozen=True, kw_only=True)
class Step:
    """State after step `index` of `count`. The tensors are live: clone what you keep.

    tokens (B, L) or (B, L, C) and known (B, L); positions (B, M) and drawn (B, M) or (B, M, C): what was drawn in this step,
    revealed or not (M may be 0). `pivots`: these are the pivots of a generator that draws them first, not yet the tokens.
    map (B, L, C): what a head that draws all positions together made of them.
    """

    tokens: Tensor
    known: Tensor
    positions: Tensor
    drawn: Tensor
    index: int
    count: int
    pivots: bool = False
    map: Tensor | None = None

    @property
    def draft(self) -> Tensor:
        """The known tokens, and this step's draws where it evaluated unknown positions; shaped like `tokens`."""
        known = self.known.view(*self.known.shape, *[1] * (self.tokens.ndim - 2))
        if self.map is not None:
            return torch.where(known, self.tokens, self.map)
        return torch.where(known, self.tokens, put(self.tokens.clone(), self.positions, self.drawn))
