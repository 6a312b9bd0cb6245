"""Embedding of ids at positions: word vector + position vector, layer norm, dropout."""

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
