"""Embedding of tokens at positions: vector of the token + vector of the position, layer norm, dropout; and of windows of tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.nn.windows import TokenShuffle, Windows


class TokenEmbedding(nn.Module):
    """LN(word[id] + position[place]).

    Args:
        rows: number of ids. length: number of positions. dim: width. eps: of the layer norm. dropout: in training.
    """

    def __init__(self, *, rows: int, length: int, dim: int, eps: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.word = nn.Embedding(rows, dim)
        self.position = nn.Embedding(length, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.dropout = dropout

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """(B, N) → (B, N, dim) at positions (B, N); None: at the first N."""
        place = self.position.weight[: ids.shape[1]] if positions is None else self.position(positions)
        x = self.norm(self.word(ids) + place)
        return F.dropout(x, self.dropout, self.training)


class WindowEmbedding(TokenEmbedding):
    """Windows of ids: each id as TokenEmbedding has it, then those of a window joined to one row (Token-Shuffle).

    Args:
        windows: the layout; `length` counts tokens, plus `front` positions before them. blocks: of TokenShuffle.
    """

    def __init__(self, *, windows: Windows, blocks: int, front: int = 0, dim: int, **settings: Any) -> None:
        super().__init__(dim=dim, **settings)
        self.windows, self.front = windows, front
        self.join = TokenShuffle(dim, windows.side, blocks=blocks)

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """(B, n, s²) → (B, n, dim) of windows `positions` (B, n), None: all; ids (B, n) as TokenEmbedding has them, not joined."""
        if ids.ndim == 2:
            return super().forward(ids, positions)
        numbers = (
            torch.arange(ids.shape[1], device=ids.device).expand(ids.shape[:2]) if positions is None else positions
        )
        places = self.windows.places(numbers) + self.front  # (B, n, s²)
        x = super().forward(ids.flatten(1), places.flatten(1))  # (B, n·s², dim)
        return self.join(x.unflatten(1, (-1, ids.shape[2])))


def token_embedding(*, windows: Windows, blocks: int = 0, front: int = 0, **settings: Any) -> TokenEmbedding:
    """A TokenEmbedding, or a WindowEmbedding where windows hold more than a token."""
    if windows.side == 1:
        return TokenEmbedding(**settings)
    return WindowEmbedding(windows=windows, blocks=blocks, front=front, **settings)


class VectorEmbedding(nn.Module):
    """LN(proj x + position[place]), with a learned vector in the place of proj x where there is no token yet.

    Args:
        channels: C, numbers of a token; the others as for TokenEmbedding.
    """

    def __init__(self, *, channels: int, length: int, dim: int, eps: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, dim)
        self.mask = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.position = nn.Embedding(length, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.dropout = dropout

    def forward(self, x: Tensor, known: Tensor, positions: Tensor | None = None) -> Tensor:
        """(B, N, C), known where bool (B, N) → (B, N, dim) at positions (B, N); None: at the first N."""
        place = self.position.weight[: x.shape[1]] if positions is None else self.position(positions)
        x = torch.where(known.unsqueeze(-1), self.proj(x), self.mask)
        return F.dropout(self.norm(x + place), self.dropout, self.training)
