"""Permuted causal trunk: tokens one after the other, in any order that is settled before the run. RAR.

Yu et al., "Randomized Autoregressive Visual Generation" (arXiv 2411.00776): the sequence of tokens is permuted in training, and each
row is told where the token stands that it predicts (target-aware positions, §3.2). Which order an image is trained or sampled in comes
from outside.

The sequence is a start row, the class, then the tokens in their order. Row i + 1 predicts the i-th token of the order, row i + 2 holds it;
the last token is never an input. Modulations (adaLN of DiT, arXiv 2212.09748, §3.2) depend on the class and the place in the sequence.

Notation: B batch, L tokens (or windows of them), N rows of the sequence at hand, U distinct classes of a run, D width, F hidden width
of the MLP.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.generators.embedder import TokenRows
from mgen.generators.trunk import (
    FULL,
    Capabilities,
    Layout,
    PassOptions,
    Trunk,
    known_first,
    register_trunk,
    table,
    truncated_normal,
)
from mgen.nn import MLP, Blocks, Cache, Epsilon, check_heads, gather_rows, span
from mgen.nn.causal import CausalAttention, LiveKV, RowSpan
from mgen.nn.modulated import modulate
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import Depth, Rate, Size, schema

PUBLISHED_POSITIONS, PUBLISHED_STEPS = 1024, 100  # rows of the published tables beyond those of the tokens


@schema
class PermutedConfig:
    """Settings; defaults are those of RAR-B.

    Args:
        dim, depth, heads, hidden: D, blocks, attention heads, F. eps: of all norms.
        dropout: on the attention's output and after both layers of the MLP. attn_dropout: on the attention probabilities. In training.
        spare_rows: the tables of positions and places have the rows that published files have and nothing reads.
    """

    dim: Size = 768
    depth: Depth = 24
    heads: Size = 16
    hidden: Size = 3072
    eps: Epsilon = 1e-6
    dropout: Rate = 0.1
    attn_dropout: Rate = 0.1
    spare_rows: bool = False

    def __post_init__(self) -> None:
        check_heads(self.dim, self.heads)


class NormedAttention(CausalAttention):
    """Causal attention whose queries and keys are normalized in each head, with weights that all heads share."""

    def __init__(self, dim: int, heads: int, *, eps: float, dropout: float, out_dropout: float) -> None:
        super().__init__(dim, heads, dropout=dropout, out_dropout=out_dropout)
        self.q_norm = nn.LayerNorm(dim // heads, eps=eps)
        self.k_norm = nn.LayerNorm(dim // heads, eps=eps)

    def normalize(self, parts: Tensor) -> Tensor:
        return torch.stack([self.q_norm(parts[0]), self.k_norm(parts[1])])


class PermutedBlock(nn.Module):
    """x += gate1 · attn(LN(x) · (1 + scale1) + shift1); x += gate2 · mlp(LN(x) · (1 + scale2) + shift2), row by row."""

    called_apart = ("adaln",)  # parts that others call, see mgen.training.sharded

    def __init__(self, config: PermutedConfig) -> None:
        super().__init__()
        c = config
        self.norm1 = nn.LayerNorm(c.dim, eps=c.eps)
        self.attn = NormedAttention(c.dim, c.heads, eps=c.eps, dropout=c.attn_dropout, out_dropout=c.dropout)
        self.norm2 = nn.LayerNorm(c.dim, eps=c.eps)
        self.mlp = MLP(c.dim, c.hidden, dropout=c.dropout, hidden_dropout=c.dropout)
        self.adaln = nn.Linear(c.dim, 6 * c.dim)

    def forward(self, x: Tensor, modulation: Tensor, rows: RowSpan, kept: LiveKV | None = None) -> Tensor:
        """(B, N, D) → (B, N, D); modulation (B, N, 6D): shift, scale, gate of the attention, then of the MLP."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)  # (B, N, D) each
        x = torch.addcmul(x, gate1, self.attn(modulate(self.norm1(x), shift1, scale1), rows, kept))
        return torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))


class PermutedNorm(nn.Module):
    """LN(x) · (1 + scale) + shift, the norm without weights of its own."""

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.adaln = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D); modulation (B, N, 2D): scale, then shift, the other way round than in the blocks."""
        scale, shift = modulation.chunk(2, dim=-1)
        return modulate(F.layer_norm(x, x.shape[-1:], eps=self.eps), shift, scale)


Modulation = Callable[
    [int], Tensor
]  # layer → its modulation (B, N, 6D) of the rows at hand, of the last norm (B, N, 2D)


class PermutedCache(Cache):
    """Keys and values of every layer, of which the first `done` rows are filled, and what the class decides.

    Args:
        classes: (U, D), the distinct class vectors of the run. index: int64 (B,), which of them an image has.
        modulations: of every layer for all places, (U, L + 1, 6D), where they are made once for the whole run.
    """

    def __init__(
        self, layers: list[LiveKV], *, classes: Tensor, index: Tensor, modulations: list[Tensor] | None
    ) -> None:
        super().__init__()
        self.live, self.done = layers, 0
        self.classes, self.index, self.modulations = classes, index, modulations
        self.last: Tensor | None = None  # (B, 1), the position that the last row predicted

    def free(self) -> None:
        """Nothing is freed between steps: later rows read all before them."""


@register_trunk("permuted", PermutedConfig)
class Permuted(Trunk):
    """Decoder-only trunk for tokens in any order, with learned positions: tokens need no grid."""

    capabilities = Capabilities(order="sequential", cached_steps=False)
    masks_inputs = False
    initial_values = (truncated_normal, truncated_normal)  # as the official code

    def __init__(self, config: PermutedConfig, *, layout: Layout) -> None:
        super().__init__()
        c, self.config, self.width, self.context_width = config, config, config.dim, config.dim
        self.layout, length = layout, layout.length
        self.start_row = nn.Parameter(torch.zeros(c.dim))
        spare = length + PUBLISHED_POSITIONS, length + PUBLISHED_POSITIONS, length + PUBLISHED_STEPS
        position, target, place = spare if c.spare_rows else (length + 2, length, length + 1)
        self.position, self.target, self.place = table(position, c.dim), table(target, c.dim), table(place, c.dim)
        self.first_target = 2 if c.spare_rows else 0  # row of the table for the token at position 0
        self.blocks = Blocks(PermutedBlock(c) for _ in range(c.depth))
        self.norm = PermutedNorm(c.dim, eps=c.eps)

    def data_rows(self) -> DataRows:
        positions, places = self.layout.rows, Rows("places in the order", (self.layout.length + 1,), "interpolated")
        front = (Rows("start and class", (2,)),)
        if not self.config.spare_rows:
            return {"position": {0: (*front, *positions)}, "target": {0: positions}, "place": {0: (places,)}}
        spare, steps = Rows("spare rows", (PUBLISHED_POSITIONS - 2,)), Rows("spare rows", (PUBLISHED_STEPS - 1,))
        rows = (*front, *positions, spare)
        return {"position": {0: rows}, "target": {0: rows}, "place": {0: (places, steps)}}

    def initialize(self, module: nn.Module) -> None:
        """Official initial values: normal 0.02, cut off; all modulations start at zero."""
        super().initialize(module)
        if isinstance(module, PermutedBlock | PermutedNorm):
            nn.init.zeros_(module.adaln.weight)

    # -- inputs and modulations ----------------------------------------------------------------------------------------

    def inputs(self, rows: TokenRows, classes: Tensor, first: int, entering: Tensor, targets: Tensor) -> Tensor:
        """Inputs (B, N, D) of the rows from `first` on, 0 or behind the class.

        Args:
            entering: (B, n), positions of the tokens of the rows, in their order. targets: (B, m), positions that the rows predict:
                those of row 1 and later.
        """
        x = rows.at(entering) + self.position[2 + entering]  # (B, n, D)
        if not first:
            front = torch.stack([self.start_row.to(classes.dtype).expand_as(classes), classes], dim=1)
            x = torch.cat([front + self.position[:2], x], dim=1)
        before = int(not first)  # the start row predicts nothing, nor does the last token
        told = self.target[self.first_target + targets]  # (B, m, D)
        return x + F.pad(told, (0, 0, before, x.shape[1] - before - told.shape[1]))

    def conditions(self, classes: Tensor, at: RowSpan) -> Tensor:
        """What modulations are made of (B, N, D), for class vectors (B, D)."""
        return F.silu(classes.unsqueeze(1) + self.place[at.first : at.stop])

    def modulation(self, y: Tensor, index: Tensor | None = None) -> Modulation:
        """Modulations of `conditions` y, made when a layer asks; `index` (B,): which row of y (U, N, D) an image has."""
        layers: list[nn.Linear] = [*(block.adaln for block in self.blocks), self.norm.adaln]
        return lambda i: layers[i](y) if index is None else layers[i](y)[index]

    def run(
        self, x: Tensor, modulation: Modulation, at: RowSpan, live: list[LiveKV] | None = None, read: int = 0
    ) -> Tensor:
        """Context (B, N − read, D) of the rows `at` from number `read` on."""
        for i, block in enumerate(self.blocks):
            x = block(x, modulation(i), at, None if live is None else live[i])
        return self.norm(x[:, read:], modulation(len(self.blocks))[:, read:])

    # -- passes --------------------------------------------------------------------------------------------------------

    def start(self, classes: Tensor, *, prefix: Tensor | None = None, carry: bool = False) -> Cache:
        """See Trunk.start.

        Modulations are those of few classes at all places: they are made once, in large products, as long as they take no more memory
        than the weights; beyond that in every step, for distinct classes alone.
        """
        super().start(classes, prefix=prefix)
        index, own = torch.arange(len(classes), device=classes.device), classes
        if not classes.is_meta:  # where operations are counted, every image is a class of its own
            own, index = classes.unique(dim=0, return_inverse=True)
        c, places = self.config, RowSpan(0, self.layout.length + 1)
        made = len(own) * places.stop * (6 * c.depth + 2) * c.dim
        modulations = None
        if made <= sum(weight.numel() for weight in self.parameters()):
            modulation = self.modulation(self.conditions(own, places))
            modulations = [modulation(i) for i in range(c.depth + 1)]
        return PermutedCache(self.kept_rows(), classes=own, index=index, modulations=modulations)

    def kept_rows(self) -> list[LiveKV]:
        """Room for the keys and values of a run, of every layer; allocated when the first ones come."""
        return [LiveKV(self.layout.length + 1) for _ in self.blocks]

    def forward(self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL) -> Tensor:
        """See Trunk.forward; without a cache all tokens are predicted, each from those before it row by row.

        With a cache, of a run that asks for one position (B, 1) after the other: the rows that are new since the last call are
        computed, and the last of them is the context (B, 1, D) of that position. Tokens known at first come before all others.
        """
        cache, asked = options.cache, options.positions
        if cache is None:
            return self.training_context(rows, classes, options)
        assert isinstance(cache, PermutedCache) and asked is not None
        fewest, most = options.counts(rows.known)
        if fewest != most:
            raise MgenError(
                "a batch of the permuted trunk continues from equally many given tokens: use batch_size 1, or give as many in each image"
            )
        entering = known_first(rows.known, most) if cache.last is None else cache.last[: len(asked)]
        at, index = RowSpan(cache.done, most + 2), cache.index[: len(asked)]
        targets = asked if at.first else torch.cat([entering, asked], dim=1)
        x = self.inputs(rows, classes, at.first, entering, targets)
        modulation = self.modulation(self.conditions(cache.classes, at), index)
        if cache.modulations is not None:
            modulation = _taken(cache.modulations, index, at)
        cache.done, cache.last = at.stop, asked
        return self.run(x, modulation, at, cache.live, read=at.stop - at.first - 1)

    def training_noise(self, rank: Tensor, known: Tensor) -> Tensor:
        """The order (B, L) in which an image is predicted: position of the first token, of the second, …"""
        return rank

    def training_context(
        self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL, *, noise: Tensor | None = None
    ) -> Tensor:
        """Context (B, L, D) by position, or (B, M, D) at those asked for, each from the tokens before it in the order `noise`."""
        order = span(self.layout.length, rows.known) if noise is None else noise  # (B, L)
        at, place = RowSpan(0, self.layout.length + 1), order.argsort(dim=1)
        x = self.inputs(rows, classes, 0, order[:, :-1], order)
        z = self.run(x, self.modulation(self.conditions(classes, at)), at, read=1)  # (B, L, D) in that order
        return gather_rows(z, place if options.positions is None else place.gather(1, options.positions))


def _taken(modulations: list[Tensor], index: Tensor, at: RowSpan) -> Modulation:
    """The rows `at` of modulations (U, L + 1, …) that the classes `index` (B,) have."""
    return lambda i: modulations[i][:, at.first : at.stop][index]
