"""Embedding of tokens at positions: vector of the token + vector of the position, layer norm, dropout."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
