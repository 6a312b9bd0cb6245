"""Transformer blocks, pre-norm and post-norm. Both can be asked for the output at some positions only."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar, Unpack, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.nn.attention import Attention, Keys, Rows, gather_rows
from mgen.nn.dropout import dropout

BlockT = TypeVar("BlockT", bound=nn.Module)


class Blocks(nn.ModuleList, Generic[BlockT]):
    """A ModuleList whose modules are all of one class, which type checkers then know."""

    if TYPE_CHECKING:

        def __init__(self, modules: Iterable[BlockT]) -> None: ...

        def __iter__(self) -> Iterator[BlockT]: ...

        @overload
        def __getitem__(self, idx: slice) -> "Blocks[BlockT]": ...

        @overload
        def __getitem__(self, idx: int) -> BlockT: ...

        def __getitem__(self, idx: int | slice) -> "Blocks[BlockT] | BlockT": ...


def run_blocks(
    blocks: nn.ModuleList, x: Tensor, read: Rows | None, options: Callable[[int], Mapping[str, object]]
) -> Tensor:
    """x (B, N, D) after all blocks, or its rows `read` of these: only they pass the end of the last block.

    `options` gives the keyword arguments of a block by its number, such as what its attention stores and reads (`Keys`).
    """
    for i, block in enumerate(blocks):
        x = block(x, positions=read if i == len(blocks) - 1 else None, **options(i))
    return x if len(blocks) or read is None else gather_rows(x, read)


class MLP(nn.Module):
    """Two linear layers with GELU between, exact or approximated by "tanh"; `hidden_dropout` behind that, `dropout` at the end."""

    def __init__(
        self, dim: int, hidden: int, *, approximate: str = "none", dropout: float = 0.0, hidden_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.approximate, self.dropout, self.hidden_dropout = approximate, dropout, hidden_dropout

    def forward(self, x: Tensor) -> Tensor:
        x = dropout(F.gelu(self.fc1(x), approximate=self.approximate), self.hidden_dropout, self.training)
        return dropout(self.fc2(x), self.dropout, self.training)


class PreNormBlock(nn.Module):
    """x += attn(LN(x)); x += mlp(LN(x)). With `skip`, x is first mixed with the output of an earlier block (U-ViT).

    Args:
        mlp_ratio: hidden width of the MLP over the width. bias: of the q, k, v projection. eps: of the layer norms.
        attn_dropout: on the attention probabilities. dropout: on the attention's output and after both layers of the MLP.
        mlp_dropout: the latter, if it is another.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        bias: bool = True,
        eps: float = 1e-5,
        skip: bool = False,
        attn_dropout: float = 0.0,
        dropout: float = 0.0,
        mlp_dropout: float | None = None,
    ) -> None:
        super().__init__()
        if skip:
            self.skip_linear = nn.Linear(2 * dim, dim)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, bias=bias, dropout=attn_dropout, out_dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        inside = dropout if mlp_dropout is None else mlp_dropout
        self.mlp = MLP(dim, int(dim * mlp_ratio), dropout=inside, hidden_dropout=inside)

    def forward(
        self, x: Tensor, *, skip: Tensor | None = None, positions: Rows | None = None, **keys: Unpack[Keys]
    ) -> Tensor:
        """(B, L, D) → (B, L, D), or (B, Q, D) at `positions` (B, Q); `keys` as in Attention."""
        if skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        h = self.norm1(x)
        x, query = (x, None) if positions is None else (gather_rows(x, positions), gather_rows(h, positions))
        x = x + self.attn(h, query, **keys)
        return x + self.mlp(self.norm2(x))

    def keys(self, x: Tensor) -> tuple[Tensor, ...]:
        """Keys and values (B, H, L, d) of x (B, L, D)."""
        return self.attn.project(self.norm1(x), 1, 2)


class ScaledBlock(nn.Module):
    """x += gate1 · attn(LN(x) · (1 + scale1)); x += gate2 · mlp(LN(x) · (1 + scale2)), alike for all tokens and images.

    The four vectors are those of a task: `modulation(task vector, task)`. So one block serves several tasks (Hi-MAR,
    arXiv 2505.20288, §3.3). Args: `tasks`, their number; the others as in PreNormBlock.
    """

    called_apart = ("modulation",)  # parts that others call, see mgen.training.sharded

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        tasks: int,
        mlp_ratio: float = 4.0,
        eps: float = 1e-5,
        attn_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, dropout=attn_dropout, out_dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim, int(dim * mlp_ratio), dropout=dropout, hidden_dropout=dropout)
        self.task_scale = nn.Parameter(torch.zeros(tasks, 4 * dim))
        self.task_shift = nn.Parameter(torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat_interleave(dim).repeat(tasks, 1))

    def modulation(self, vector: Tensor, task: int) -> tuple[Tensor, ...]:
        """scale1, gate1, scale2, gate2 (D,) each, from the vector (4D,) that all blocks share."""
        return (vector * self.task_scale[task] + self.task_shift[task]).chunk(4)

    def forward(
        self, x: Tensor, *, modulation: tuple[Tensor, ...], positions: Rows | None = None, **keys: Unpack[Keys]
    ) -> Tensor:
        """(B, L, D) → (B, L, D), or (B, Q, D) at `positions`; `keys` as in Attention."""
        scale1, gate1, scale2, gate2 = modulation
        h = _scaled_norm(self.norm1, x, scale1)
        x, query = (x, None) if positions is None else (gather_rows(x, positions), gather_rows(h, positions))
        x = torch.addcmul(x, gate1, self.attn(h, query, **keys))
        return torch.addcmul(x, gate2, self.mlp(_scaled_norm(self.norm2, x, scale2)))

    def keys(self, x: Tensor, *, modulation: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Keys and values (B, H, L, d) of x (B, L, D)."""
        return self.attn.project(_scaled_norm(self.norm1, x, modulation[0]), 1, 2)


def _scaled_norm(norm: nn.LayerNorm, x: Tensor, scale: Tensor) -> Tensor:
    """LN(x) · (1 + scale) with the scale (D,) folded into the norm's own weights."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight * (1 + scale), norm.bias * (1 + scale), norm.eps)


class PostNormBlock(nn.Module):
    """x = LN(attn(x) + x); x = LN(mlp(x) + x), as in BERT (Devlin et al., arXiv 1810.04805)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        hidden: int,
        eps: float = 1e-12,
        approximate: str = "tanh",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attn = Attention(dim, heads, dropout=dropout, out_dropout=dropout)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim, hidden, approximate=approximate, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor, *, positions: Rows | None = None, **keys: Unpack[Keys]) -> Tensor:
        """(B, L, D) → (B, L, D), or (B, Q, D) at `positions` (B, Q); `keys` as in Attention."""
        own = x if positions is None else gather_rows(x, positions)
        own = self.norm1(self.attn(x, None if positions is None else own, **keys) + own)
        return self.norm2(self.mlp(own) + own)
