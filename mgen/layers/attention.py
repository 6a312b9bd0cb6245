"""Multi-head self-attention with packed projections. Notation: B batch, L keys, Q queries, D width, H heads, d = D / H."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.errors import MgenError

# CPUs with bf16 matrix units train faster with explicit attention up to about this many keys; in fp32 the forms are equal.
EXPLICIT_KEYS = 128


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, readable: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d) v for q (B, H, Q, d), k and v (B, H, L, d); the faster of two equal forms.

    Args:
        dropout: on the probabilities. readable: bool (B, L), True for the keys that may be read; None: all.
    """
    small = q.device.type == "cpu" and q.requires_grad and q.dtype != torch.float32 and k.shape[2] <= EXPLICIT_KEYS
    if small and readable is None:
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)  # (B, H, Q, L)
        return F.dropout(weights, dropout, training=dropout > 0) @ v
    mask = None if readable is None else readable[:, None, None]  # (B, 1, 1, L)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


class Attention(nn.Module):
    """Self-attention.

    Args:
        dim, heads: D and H. bias: of the q, k, v projection.
        dropout: on the attention probabilities. out_dropout: on the output.
    """

    def __init__(
        self, dim: int, heads: int, *, bias: bool = True, dropout: float = 0.0, out_dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not isinstance(heads, int) or heads < 1 or dim % heads:
            fits = [h for h in (1, 2, 3, 4, 6, 8, 12, 16) if dim % h == 0]
            raise MgenError(f"heads {heads!r} does not divide the width {dim}: give a divisor, such as {fits}")
        self.heads, self.dropout, self.out_dropout = heads, dropout, out_dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, query: Tensor | None = None, *, readable: Tensor | None = None) -> Tensor:
        """Output (B, Q, D) at `query` (B, Q, D), or at every position of x (B, L, D) if there is none.

        `readable` bool (B, L): positions of x that may be read; None: all.
        """
        b, _, dim = x.shape
        heads = (self.heads, dim // self.heads)
        if query is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, *heads)).permute(2, 0, 3, 1, 4)  # 3 × (B, H, L, d)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(query, weight[:dim], None if bias is None else bias[:dim])
            q = q.unflatten(-1, heads).transpose(1, 2)  # (B, H, Q, d)
            kv = F.linear(x, weight[dim:], None if bias is None else bias[dim:])
            k, v = kv.unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4)  # 2 × (B, H, L, d)
        out = attend(q, k, v, self.dropout if self.training else 0.0, readable)
        out = self.proj(out.transpose(1, 2).reshape(b, -1, dim))  # (B, Q, D)
        return F.dropout(out, self.out_dropout, self.training)


def gather_rows(x: Tensor, positions: Tensor) -> Tensor:
    """Rows of x (B, L, D) at positions (B, Q): (B, Q, D)."""
    return torch.gather(x, 1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
