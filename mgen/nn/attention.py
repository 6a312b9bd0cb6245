"""Multi-head self-attention with packed projections. Notation: B batch, L keys, Q queries, D width, H heads, d = D / H."""

from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.nn.cache import KVCache
from mgen.nn.dropout import dropout
from mgen.nn.kernels import slow_kernel

# CPUs with bf16 units train faster with explicit attention up to about so many keys, with AMX and without, where the fused kernel leaves
# the units idle (docs/experiments/training_speed.md); in fp32 the forms are equal.
EXPLICIT_KEYS, EXPLICIT_KEYS_WITHOUT_AMX = 128, 640
# Numbers of the scores (B, H, Q, L) that explicit attention of a pass holds at a time; images with more are left to the fused kernel.
PIECE, LARGEST = 2**23, 2**25


class Keys(TypedDict, total=False):
    """Which keys an attention layer reads and where it stores its own; see Attention.forward."""

    readable: Tensor | None
    kept: KVCache | None
    rows: Tensor | None
    until: int | None
    given: tuple[Tensor, Tensor] | None


def attend(q: Tensor, k: Tensor, v: Tensor, rate: float = 0.0, readable: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d) v for q (B, H, Q, d), k and v (B, H, L, d); the faster of two equal forms.

    `rate` of dropout on the probabilities; `readable` bool (B, L), True for the keys that may be read, None: all.
    """
    small = k.shape[2] <= (EXPLICIT_KEYS_WITHOUT_AMX if slow_kernel(q) else EXPLICIT_KEYS)
    if not q.requires_grad and not rate and can_be_explicit(q, k):
        return explicit(q, k, v, readable)
    mask = None if readable is None else readable[:, None, None]  # (B, 1, 1, L)
    learned = small and q.requires_grad and q.dtype != torch.float32
    if q.device.type == "cpu" and (learned or rate):  # with dropout there is no fused kernel on a CPU
        return explicit_with_gradient(q, k, v, rate, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)


def attend_filled(q: Tensor, k: Tensor, v: Tensor, filled: int) -> Tensor:
    """`attend` to the first `filled` of keys and values (B, H, C, d) with room behind, which holds finite numbers, such as zeros.

    Where attention is explicit, all C are multiplied and the scores of the room hidden: products would copy a part of k and v first.
    """
    if torch.compiler.is_compiling() or q.requires_grad or not can_be_explicit(q, k):
        return attend(q, k[:, :, :filled], v[:, :, :filled])
    return explicit(q, k, v, filled=filled if filled < k.shape[2] else None)


def can_be_explicit(q: Tensor, k: Tensor) -> bool:
    """Whether attention without gradients computes all scores: where the fused kernel is slow, unless there are too many."""
    return slow_kernel(q) and q.shape[1] * q.shape[2] * k.shape[2] <= LARGEST


def explicit(q: Tensor, k: Tensor, v: Tensor, readable: Tensor | None = None, *, filled: int | None = None) -> Tensor:
    """`attend` by two matrix products with the scores between them, some images at a time. Scores are rounded to the type of q.

    Of the keys the first `filled` may be read, None: all.
    """
    if len(q) > 1 and q[..., 0].numel() * k.shape[2] > PIECE:
        masks = readable.split(1) if readable is not None else [None] * len(q)
        parts = zip(q.split(1), k.split(1), v.split(1), masks)
        return torch.cat([explicit(*part, filled=filled) for part in parts])
    flat = q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)  # (B·H, Q, d), (B·H, d, L)
    scores = torch.baddbmm(q.new_empty(1, 1, 1), *flat, beta=0, alpha=q.shape[-1] ** -0.5)
    if readable is not None:
        hidden = ~readable.repeat_interleave(q.shape[1], dim=0).unsqueeze(1)  # (B·H, 1, L)
        scores = scores.masked_fill_(hidden, -torch.inf)
    if filled is not None:
        scores[..., filled:] = -torch.inf
    return (scores.softmax(-1) @ v.flatten(0, 1)).unflatten(0, q.shape[:2])  # (B, H, Q, d)


def explicit_with_gradient(q: Tensor, k: Tensor, v: Tensor, rate: float = 0.0, mask: Tensor | None = None) -> Tensor:
    """`attend` by two matrix products for training: nothing is changed in place. mask: bool, broadcast to the scores (B, H, Q, L)."""
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)  # (B, H, Q, L)
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    return dropout(scores.softmax(-1), rate, training=rate > 0) @ v


class AttentionLayers(nn.Module):
    """The layers of self-attention: packed projections to q, k and v, and the output's.

    Args:
        dim, heads: D and H. bias: of the q, k, v projection. out_bias: of the output projection.
        head_dim: d, where H·d is not D. qk_norm: q and k are divided by their root mean square over all heads together.
        dropout: on the attention probabilities. out_dropout: on the output.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        bias: bool = True,
        out_bias: bool = True,
        head_dim: int | None = None,
        qk_norm: float | None = None,
        dropout: float = 0.0,
        out_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.out_dropout, self.qk_norm = heads, dropout, out_dropout, qk_norm
        self.inner = dim if head_dim is None else heads * head_dim
        self.qkv = nn.Linear(dim, 3 * self.inner, bias=bias)
        self.proj = nn.Linear(self.inner, dim, bias=out_bias)

    def project(self, x: Tensor, first: int, count: int) -> tuple[Tensor, ...]:
        """`count` of q, k, v from number `first` on, (B, H, N, d) each, of x (B, N, D)."""
        rows = slice(first * self.inner, (first + count) * self.inner)
        if count == 3:  # not by rows of the weight: the gradient of a part is copied into one of the whole
            parts = self.qkv(x)
        elif type(self.qkv) is nn.Linear:
            bias = None if self.qkv.bias is None else self.qkv.bias[rows]
            parts = F.linear(x, self.qkv.weight[rows], bias)
        else:  # a layer with adapters (LoRA), which computes all three
            parts = self.qkv(x)[..., rows]
        parts = parts.unflatten(-1, (count, self.inner))  # (B, N, count, H·d)
        if self.qk_norm is not None:
            last = first + count == 3  # v is not normalized
            normed = F.rms_norm(parts[..., : count - last, :], (self.inner,), eps=self.qk_norm)
            parts = torch.cat([normed, parts[..., count - last :, :]], dim=-2)
        return parts.unflatten(-1, (self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class Attention(AttentionLayers):
    """Self-attention, of all positions to all that may be read. Arguments as for AttentionLayers."""

    def forward(
        self,
        x: Tensor,
        query: Tensor | None = None,
        *,
        readable: Tensor | None = None,
        kept: KVCache | None = None,
        rows: Tensor | None = None,
        until: int | None = None,
        given: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Output (B, Q, D) at `query` (B, Q, D), or at every position of x (B, L, D) if there is none.

        Args:
            readable: bool (B, N), keys that may be read; None: all.
            kept: where the keys and values are stored; with `rows` (B, L), the rows of it that x stands for: they are written
                there, and all rows (the first `until`) are read.
            given: keys and values (B, H, N, d) that are read in place of those of x.
        """
        if given is not None:
            (q,), (k, v) = self.project(x if query is None else query, 0, 1), given
        elif query is None and (kept is None or rows is not None):
            q, k, v = self.project(x, 0, 3)  # (B, H, L, d) each
        else:  # apart: keys and values that are kept would keep the queries of one product alive
            (q,), (k, v) = self.project(x if query is None else query, 0, 1), self.project(x, 1, 2)
        if kept is not None:
            k, v = kept.store(k, v) if rows is None else kept.put(k, v, rows, until)
        out = attend(q, k, v, self.dropout if self.training else 0.0, readable)
        out = self.proj(out.transpose(1, 2).flatten(2))  # (B, Q, D)
        return dropout(out, self.out_dropout, self.training)


Rows = Tensor | slice


def gather_rows(x: Tensor, positions: Rows) -> Tensor:
    """Rows of x (B, L, D) at positions (B, Q), or of a slice: (B, Q, D)."""
    if isinstance(positions, slice):
        return x[:, positions]
    return torch.gather(x, 1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def take(tokens: Tensor, positions: Tensor) -> Tensor:
    """Tokens (B, L) or (B, L, C) at positions (B, n)."""
    return tokens.gather(1, positions) if tokens.ndim == 2 else gather_rows(tokens, positions)


def put(tokens: Tensor, positions: Tensor, values: Tensor, where: Tensor | None = None) -> Tensor:
    """Write values (B, M) or (B, M, C) at positions (B, M) of tokens, in place; only where `where` (B, M) is True."""
    if tokens.ndim == 3:
        positions = positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        where = None if where is None else where.unsqueeze(-1)
    values = values.to(tokens.dtype)
    if where is not None:
        values = torch.where(where, values, tokens.gather(1, positions))
    return tokens.scatter_(1, positions, values)
