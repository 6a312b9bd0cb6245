"""Causal transformer layer with rotary positions on a grid, and keys and values that are kept as they come.

Rotary positions: Su et al., "RoFormer" (arXiv 2104.09864), on two axes: the first half of a head's pairs turns with the grid row, the
other with the column (Sun et al., LlamaGen, arXiv 2406.06525, §3.2).

Notation: B batch, N rows of the sequence at hand, T of the whole sequence, H heads, d head width, D width, F hidden width of the MLP.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.nn.attention import AttentionLayers, attend, attend_filled
from mgen.nn.dropout import dropout
from mgen.nn.kernels import slow_kernel
from mgen.nn.modulated import GatedMLP
from mgen.nn.packed import PackedWeight
from mgen.utils.errors import MgenError

# Keys and values that explicit attention reads grow by so many rows: it multiplies those without content too, see attend_filled.
ROOM = 32


def check_rotary(head_dim: int) -> None:
    """Raise MgenError for heads of a width that is no multiple of 4."""
    if head_dim % 4:
        raise MgenError(
            f"heads of width {head_dim} cannot be turned with row and column: the width must be a multiple of 4"
        )


def rotary_table(grid: tuple[int, ...], head_dim: int, base: float = 10000.0) -> Tensor:
    """cos and sin (N, d / 2, 2) of the angles of every cell, row by row, in fp32, of heads that `check_rotary` lets pass.

    `grid`: (rows, columns), each of which turns one half of the pairs; or (N,), tokens in a row that turn all of them.
    """
    own = head_dim // len(grid)
    speeds = base ** (-torch.arange(0, own, 2).float() / own)  # (d / 4,), or (d / 2,) in a row
    cells = torch.meshgrid(*(torch.arange(n).float() for n in grid), indexing="ij")
    angles = torch.cat([place.flatten().unsqueeze(1) * speeds for place in cells], dim=-1)  # (N, d / 2)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """x (…, N, d) with each pair of neighboring numbers turned by the angle of its row in table (N, d / 2, 2), in fp32."""
    cos, sin = table.unbind(-1)  # (N, d / 2)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (…, N, d / 2)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


@dataclass(frozen=True)
class RowSpan:
    """Rows first … stop − 1 of a sequence."""

    first: int
    stop: int

    def place(self, x: Tensor) -> Tensor:
        """Queries or keys, or both (…, H, N, d), with their positions: none here."""
        return x


@dataclass(frozen=True)
class CausalRows(RowSpan):
    """Rows of a sequence, and what their queries and keys get: `shift` (n, D) is added to the first n of them, the others are turned
    by `turn` (N − n, d / 2, 2)."""

    shift: Tensor | None
    turn: Tensor

    def place(self, x: Tensor) -> Tensor:
        """Queries or keys, or both (…, H, N, d), with their positions."""
        if self.shift is None:
            return rotate(x, self.turn)
        n = len(self.shift)
        shift = self.shift.unflatten(-1, (x.shape[-3], -1)).transpose(0, 1)  # (H, n, d)
        shifted = x[..., :n, :] + shift.to(x.dtype)
        return shifted if n == x.shape[-2] else torch.cat([shifted, rotate(x[..., n:, :], self.turn)], dim=-2)


class LiveKV:
    """Keys and values (B, H, C, d) of one layer, of which the first rows are filled; the others are zeros and never attended to.

    Memory is allocated once, for all T rows; k and v are its first C of every head, all T unless explicit attention reads them.

    Args:
        length: T. rows: B, where the first pass may have fewer; None: those of the first pass.
    """

    def __init__(self, length: int, rows: int | None = None) -> None:
        self.length, self.rows = length, rows
        self.k: Tensor | None = None
        self.v: Tensor
        self._memory: tuple[Tensor, Tensor] | None = None  # flat, of k and of v

    def add(self, k: Tensor, v: Tensor, rows: RowSpan) -> tuple[Tensor, Tensor]:
        """Write k and v (B, H, N, d) at `rows`; returns all up to them. A smaller batch than before stands for its first images."""
        if self.k is None or rows.stop > self.k.shape[2]:
            self._make_room(k, v, rows.stop)
        assert self.k is not None
        if len(k) > len(self.k):
            raise MgenError(f"{len(k)} sequences go on where {len(self.k)} were begun")
        out = []
        for kept, new in ((self.k, k), (self.v, v)):
            kept[: len(new), :, rows.first : rows.stop] = new
            out.append(kept[: len(new), :, : rows.stop])
        return out[0], out[1]

    def attend(self, q: Tensor, stop: int) -> Tensor:
        """Attention (B, H, N, d) of queries q (B, H, N, d) to the rows up to `stop`, all of them and without dropout."""
        assert self.k is not None  # `add` came before
        return attend_filled(q, self.k[: len(q)], self.v[: len(q)], stop)

    def _make_room(self, k: Tensor, v: Tensor, stop: int) -> None:
        """Let k and v have room for `stop` rows of the kind of these."""
        heads, d = k.shape[1], k.shape[3]
        b = (self.rows or len(k)) if self.k is None else len(self.k)
        grows = slow_kernel(k) and not torch.compiler.is_compiling()
        size = min(self.length, -(-stop // ROOM) * ROOM) if grows else self.length
        if self._memory is None:
            self._memory = k.new_zeros(b * heads * self.length * d), v.new_zeros(b * heads * self.length * d)
        old = None if self.k is None else (self.k, self.v)
        self.k, self.v = (flat[: b * heads * size * d].view(b, heads, size, d) for flat in self._memory)
        for new, before in zip((self.k, self.v), old or ()):
            # Rows move within the same memory, so they are copied first.
            new.copy_(F.pad(before, (0, 0, 0, size - before.shape[2])))


class CausalAttention(AttentionLayers):
    """Self-attention of each row to itself and the rows before it. Arguments as for AttentionLayers."""

    def normalize(self, parts: Tensor) -> Tensor:
        """Queries and keys (2, B, H, N, d) before they get positions."""
        return parts

    def forward(self, x: Tensor, rows: RowSpan, kept: LiveKV | None = None) -> Tensor:
        """(B, N, D) → (B, N, D); x stands for `rows` of the sequence: all from the first on unless `kept` holds those before."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, N, d)
        v = parts[2]
        q, k = rows.place(self.normalize(parts[:2])).type_as(v).unbind(0)  # together: few rows, many small products
        if kept is not None:
            k, v = kept.add(k, v, rows)
        n, rate = x.shape[1], self.dropout if self.training else 0.0
        mask = None
        if n > 1 and rows.first:  # a piece in the middle sees all before it, and of itself what stands before
            mask = torch.ones(n, rows.stop, dtype=torch.bool, device=x.device).tril(rows.first)
        if n == 1:
            out = attend(q, k, v, rate) if kept is None else kept.attend(q, rows.stop)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate, is_causal=mask is None)
        return dropout(self.proj(out.transpose(1, 2).flatten(2)), self.out_dropout, self.training)


def optimize_layout(module: nn.Module, rows: int) -> None:
    """Lay the weights out in memory for products with `rows` rows; values, shapes and names stay, sums differ by rounding.

    A CPU multiplies one or two rows with a matrix of more outputs than inputs 1.1 to 1.9 times faster if it lies column by column, and
    four or more rows up to 1.3 times slower (MKL on AVX2, fp32; the row "weights by columns" of python -m tools.ablations).
    """
    few = rows <= 2
    with torch.inference_mode(False), torch.no_grad():  # the parameters must stay fit for training
        for layer in module.modules():
            if not isinstance(layer, nn.Linear) or layer.out_features <= layer.in_features:
                continue
            weight = layer.weight
            if isinstance(weight, PackedWeight):
                continue
            if weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous() == few:
                weight.data = weight.data.t().contiguous().t() if few else weight.data.contiguous()


class CausalBlock(nn.Module):
    """x += attn(RMS(x)); x += mlp(RMS(x)), without biases. Args: D, H, F; `dropout` of the attention's output and the MLP's."""

    def __init__(self, dim: int, heads: int, *, hidden: int, eps: float = 1e-5, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=eps)
        self.attn = CausalAttention(dim, heads, bias=False, out_bias=False, out_dropout=dropout)
        self.norm2 = nn.RMSNorm(dim, eps=eps)
        self.mlp = GatedMLP(dim, hidden)
        self.dropout = dropout

    def forward(self, x: Tensor, rows: CausalRows, kept: LiveKV | None = None) -> Tensor:
        """(B, N, D) → (B, N, D); arguments as in CausalAttention."""
        x = x + self.attn(self.norm1(x), rows, kept)
        return x + dropout(self.mlp(self.norm2(x)), self.dropout, self.training)
