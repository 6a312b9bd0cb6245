"""Transformer block and last norm whose shifts, scales and gates come from a condition (adaLN of DiT, arXiv 2212.09748, §3.2).

A modulation is computed apart from the tokens, by `adaln`, and handed to `forward`: where the condition stays the same, so does it.
Notation: B batch, L tokens, Q asked rows, D width, F hidden width.
"""

from collections.abc import Callable
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.nn.attention import Attention, Keys, Rows, gather_rows
from mgen.nn.dropout import dropout


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) · x + shift for x (B, L, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


class GatedMLP(nn.Module):
    """w2(silu(w1 x) · w3 x) (SwiGLU, arXiv 2002.05202, without biases there); w1 and w3 are packed. `dropout` before w2.

    `activation`: in the place of silu.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        bias: bool = False,
        activation: Callable[[Tensor], Tensor] = F.silu,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.dropout, self.activation = dropout, activation

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)  # (B, L, F) each
        return self.fc2(dropout(self.activation(gate) * value, self.dropout, self.training))


class ModulatedBlock(nn.Module):
    """x += gate1 · attn(RMS(x) · (1 + scale1) + shift1); x += gate2 · mlp(RMS(x) · (1 + scale2) + shift2).

    Args:
        dim, heads, head_dim: width, heads, width of a head. hidden: F. eps: of the norms, those of q and k too.
        dropout: on the attention probabilities, on the attention's output and inside the MLP.
    """

    called_apart = ("adaln",)  # parts that others call, see mgen.training.sharded

    def __init__(
        self, dim: int, heads: int, *, head_dim: int, hidden: int, eps: float = 1e-5, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=eps)
        self.attn = Attention(
            dim, heads, bias=False, out_bias=False, head_dim=head_dim, qk_norm=eps, dropout=dropout, out_dropout=dropout
        )
        self.norm2 = nn.RMSNorm(dim, eps=eps)
        self.mlp = GatedMLP(dim, hidden, dropout=dropout)
        self.adaln = nn.Linear(dim, 6 * dim)

    def forward(self, x: Tensor, modulation: Tensor, *, positions: Rows | None = None, **keys: Unpack[Keys]) -> Tensor:
        """(B, L, D) → (B, L, D), or (B, Q, D) at `positions` (B, Q); `keys` as in Attention.

        `modulation` (B, 6D): shift, scale and gate of the attention, then of the MLP.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unsqueeze(1).chunk(6, dim=-1)  # (B, 1, D) each
        h = modulate(self.norm1(x), shift1, scale1)
        x, query = (x, None) if positions is None else (gather_rows(x, positions), gather_rows(h, positions))
        x = torch.addcmul(x, gate1, self.attn(h, query, **keys))
        return torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))


class ModulatedNorm(nn.Module):
    """(RMS(x) · weight + bias) · (1 + scale) + shift."""

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.adaln = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x (B, L, D), modulation (B, 2D): shift, scale."""
        shift, scale = modulation.unsqueeze(1).chunk(2, dim=-1)  # (B, 1, D) each
        return modulate(F.rms_norm(x, x.shape[-1:], self.weight, self.eps) + self.bias, shift, scale)
