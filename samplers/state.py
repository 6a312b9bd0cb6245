"""What a run knows: tokens, which of them are known, and how draws are written. Notation: B images, L positions, M drawn in a step."""

import warnings
from typing import Any

import torch
from torch import Tensor

EXPLODED = 50.0  # tokens have unit variance; an undertrained head magnifies its errors in the noisiest steps


class State:
    """Tokens (B, L) or (B, L, C), real or ids, and known (B, L); `given` are those that were known at the start and never change."""

    def __init__(
        self, spec: Any, count: int, device: torch.device, tokens: Tensor | None, known: Tensor | None
    ) -> None:
        self.length, self.vocab_size = spec.length, spec.vocab_size
        if tokens is None:
            tokens = torch.zeros((count, *spec.shape), dtype=spec.dtype, device=device)
        self.tokens = tokens.clone()
        empty = torch.zeros(count, spec.length, dtype=torch.bool, device=device)
        self.known = empty if known is None else known.clone()
        self.given = self.known.clone()

    def reveal(self, positions: Tensor, drawn: Tensor, shown: Tensor) -> None:
        """Write drawn (B, M) or (B, M, C) at positions (B, M) where shown (B, M), and call them known."""
        put(self.tokens, positions, drawn, shown)
        self.known.scatter_(1, positions, shown | self.known.gather(1, positions))

    def warn_if_exploded(self) -> None:
        """Warn of vectors far beyond unit variance. One text for all batches, so that a long run says it once."""
        if self.tokens.is_floating_point() and not self.tokens.abs().amax().item() <= EXPLODED:
            warnings.warn(
                f"drawn tokens pass {EXPLODED:.0f}, where trained ones stay near 1: the head is undertrained or its chain too "
                "coarse; try head.clip=5, more head steps, or the weights without EMA",
                stacklevel=2,
            )

    def revise_all(self, drawn: Tensor, score: Tensor, count: Tensor) -> None:
        """Halton-MaskGIT's confidence step: the scheduled number of positions, known ones first, take this step's draws.

        Args:
            drawn, score: at all positions (B, L). A drawn mask stays unknown. Given tokens never change.
            count: (B,), of the positions that are known after the step, given ones aside.
        """
        target = count + self.given.sum(1)
        rank = score.masked_fill(self.known, torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        shown = (rank < target.unsqueeze(1)) | self.known
        fresh = shown & ~self.given
        wide = fresh.view(*fresh.shape, *[1] * (self.tokens.ndim - 2))
        self.tokens = torch.where(wide, drawn, self.tokens)
        codes = (self.tokens < self.vocab_size).view(*fresh.shape, -1).all(-1)
        self.known = shown & (codes | self.given)


def put(tokens: Tensor, positions: Tensor, values: Tensor, where: Tensor | None = None) -> Tensor:
    """Write values (B, M) or (B, M, C) at positions (B, M) of tokens, in place; only where `where` (B, M) is True."""
    if tokens.ndim == 3:
        positions = positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        where = None if where is None else where.unsqueeze(-1)
    values = values.to(tokens.dtype)
    if where is not None:
        values = torch.where(where, values, tokens.gather(1, positions))
    return tokens.scatter_(1, positions, values)
