"""Block-causal trunk of noisy tokens: entities of tokens are denoised together, each from the finished ones before it. xAR.

Ren et al., "Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation" (arXiv 2502.20388). An entity X is a cell of
neighboring tokens, an interleaved subset of the grid, or the whole image. In training all entities are noisy, each at a time of its
own, and see each other and those before under a block-causal mask (noisy context learning, §3.3). In sampling the current entity is
noisy and those before it are clean, at time 0: their keys and values are computed once and kept.

The sequence is entity by entity, and inside one row by row. Sampling needs no mask: an entity reads what is filled of the cache, and
all of itself.

Notation: B batch, R rows of a pass (B, or 2B with null rows), E entities at hand, s tokens of one, L = all tokens, D width, d head width,
F hidden width of the MLP, n steps of a chain.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mgen.generators.denoising import DenoisingTrunk
from mgen.generators.embedder import TokenRows
from mgen.generators.trunk import Layout, PassOptions, register_trunk, table
from mgen.nn import Blocks, Cache, Entities, Epsilon, check_heads
from mgen.nn.attention import AttentionLayers, attend
from mgen.nn.causal import CausalRows, LiveKV, check_rotary, rotary_table
from mgen.nn.denoising import Ahead, Denoiser, Network, TimeEmbedding
from mgen.nn.dropout import dropout
from mgen.nn.modulated import GatedMLP, modulate
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows
from mgen.utils.schema import Depth, Listed, Rate, Size, schema


@schema
class BlockCausalConfig:
    """Settings; defaults are those of xAR-B.

    Args:
        dim: D. encoder_depth, encoder_heads and decoder_…: blocks and attention heads of the two halves. hidden: F.
        entity: what is drawn as one: "cell", size[0] × size[1] neighboring tokens; "subset", the tokens of every size[0]-th row and
            size[1]-th column; "image", all tokens.
        rotary: turn queries and keys by the token's row and column in the grid ("grid", as published weights), or by those of its
            place in the sequence, counted row by row ("sequence").
        base: of the rotary angles. eps: of the norms. attn_dropout, dropout: on attention probabilities; on the attention's output
            and the layers of the MLPs; in training.
    """

    dim: Size = 768
    encoder_depth: Depth = 8
    encoder_heads: Size = 12
    decoder_depth: Depth = 8
    decoder_heads: Size = 12
    hidden: Size = 2048
    entity: Literal["cell", "subset", "image"] = "cell"
    size: Listed[tuple[Size, Size]] = (8, 8)
    rotary: Literal["grid", "sequence"] = "grid"
    base: Annotated[float, Field(ge=1, le=1e12)] = 10000.0
    eps: Epsilon = 1e-6
    attn_dropout: Rate = 0.1
    dropout: Rate = 0.1

    def __post_init__(self) -> None:
        for heads, name in ((self.encoder_heads, "encoder_heads"), (self.decoder_heads, "decoder_heads")):
            check_heads(self.dim, heads, name=name)
            check_rotary(self.dim // heads)

    def entities(self, grid: tuple[int, int]) -> Entities:
        """The entities of a grid; MgenError for a size that does not divide it."""
        try:
            return Entities(grid, grid if self.entity == "image" else self.size, self.entity == "subset")
        except MgenError as error:
            raise MgenError(f"trunk.{error}") from error


class EntityAttention(AttentionLayers):
    """Self-attention of entities to themselves and those before. Arguments as for AttentionLayers."""

    def forward(self, x: Tensor, at: CausalRows, kept: LiveKV | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) → (B, N, D) of the rows `at`; `kept` holds those before; `mask` bool (N, N), True where a key is read."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, N, d)
        (q, k), v = at.place(parts[:2]).unbind(0), parts[2]
        if kept is not None:
            k, v = kept.add(k, v, at)
        rate = self.dropout if self.training else 0.0
        if mask is None:
            out = attend(q, k, v, rate) if kept is None else kept.attend(q, at.stop)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        return dropout(self.proj(out.transpose(1, 2).flatten(2)), self.out_dropout, self.training)


class EntityBlock(nn.Module):
    """x += gate1 · attn(RMS(x) · (1 + scale1) + shift1); x += gate2 · mlp(RMS(x) · (1 + scale2) + shift2), modulated per entity.

    The norms have no weights. Args: D, H, F, `eps` of the norms, and the dropouts of BlockCausalConfig.
    """

    called_apart = ("adaln",)  # parts that others call, see mgen.training.sharded

    def __init__(self, dim: int, heads: int, *, hidden: int, eps: float, attn_dropout: float, dropout: float) -> None:
        super().__init__()
        self.attn = EntityAttention(dim, heads, dropout=attn_dropout, out_dropout=dropout)
        self.mlp = GatedMLP(dim, hidden, dropout=dropout, bias=True, activation=F.gelu)
        self.adaln = nn.Linear(dim, 6 * dim)
        self.eps, self.dropout = eps, dropout

    def forward(
        self, x: Tensor, modulation: Tensor, at: CausalRows, kept: LiveKV | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, E, s, D) → (B, E, s, D); modulation (B, E, 6D): shift, scale and gate, twice; others as in EntityAttention."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unsqueeze(2).chunk(6, dim=-1)  # (B, E, 1, D) each
        h = modulate(self._norm(x), shift1, scale1).flatten(1, 2)
        x = torch.addcmul(x, gate1, self.attn(h, at, kept, mask).view_as(x))
        h = self.mlp(modulate(self._norm(x), shift2, scale2))
        return torch.addcmul(x, gate2, dropout(h, self.dropout, self.training))

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)


class EntityCache(Cache):
    """Keys and values of every layer, with memory for all rows, and the modulations of all steps of the chain.

    `done`: of each row the finished entities that are kept. Null rows may lack some: they are computed when they are first read.
    """

    def __init__(self, classes: Tensor, layers: list[LiveKV]) -> None:
        super().__init__()
        self.classes, self.live, self.done = classes, layers, [0] * len(classes)
        self.modulations: Ahead[Tensor] | None = None

    def free(self) -> None:
        """Nothing is freed between steps: later entities read all before them."""

    def bytes(self) -> int:
        return sum(kv.k.nbytes + kv.v.nbytes for kv in self.live if kv.k is not None)


@dataclass(frozen=True)
class EntityDenoiser(Denoiser):
    """The network of entity `number`, given those before it in `rows`."""

    trunk: "BlockCausal"
    rows: TokenRows
    cache: EntityCache
    number: int

    def at(self, times: Tensor) -> Network:
        trunk, cache, r = self.trunk, self.cache, len(self.rows.tokens)
        if cache.modulations is None:  # times are those of the run's plan, and so are the same for every entity
            # Time 0 comes first: that of finished entities.
            every = torch.cat([times.new_zeros(1), times])
            make = partial(trunk.modulations_of, cache.classes, every)
            cache.modulations = Ahead(make, count=len(every), rows=len(cache.classes))
        modulations = cache.modulations
        for number in range(min(cache.done[:r]), self.number):
            group, place = modulations(0)
            finished = self.rows.span(number, number + 1).unsqueeze(1)  # (R, 1, s, D)
            trunk.hidden(finished, [part[place, :r] for part in group], number, cache.live)
            cache.done[:r] = [number + 1] * r

        live = cache.live if self.number else None  # the first entity reads itself alone

        def network(x: Tensor, j: int) -> Tensor:
            group, place = modulations(j + 1)
            embedded = self.rows.embedder(x, sampling=True).unsqueeze(1)  # (R, 1, s, D)
            return trunk.hidden(embedded, [part[place, :r] for part in group], self.number, live)

        return network


@register_trunk("block-causal", BlockCausalConfig)
class BlockCausal(DenoisingTrunk):
    """Two stacks of blocks, each with learned positions of its own, modulated by class and time."""

    passes = ("hidden",)

    def __init__(self, config: BlockCausalConfig, *, layout: Layout) -> None:
        super().__init__()
        c, self.config, self.width, self.context_width = config, config, config.dim, config.dim
        if layout.grid is None:
            raise MgenError(
                "trunk 'block-causal' has entities and rotary positions on the token grid: tokens.grid is needed"
            )
        self.layout, self.entities = layout, c.entities(layout.grid)
        block = partial(EntityBlock, c.dim, hidden=c.hidden, eps=c.eps, attn_dropout=c.attn_dropout, dropout=c.dropout)
        self.time = TimeEmbedding(c.dim)
        self.token_norm = nn.RMSNorm(c.dim, eps=c.eps)
        self.encoder_position = table(layout.length, c.dim)
        self.decoder_position = table(layout.length, c.dim)
        self.encoder_blocks = Blocks(block(c.encoder_heads) for _ in range(c.encoder_depth))
        self.encoder_norm = nn.RMSNorm(c.dim, eps=c.eps)
        self.decoder_embed = nn.Linear(c.dim, c.dim)
        self.decoder_blocks = Blocks(block(c.decoder_heads) for _ in range(c.decoder_depth))
        self.decoder_norm = nn.RMSNorm(c.dim, eps=c.eps)
        # Made from the configuration, so no part of the weights.
        for half, heads in (("encoder", c.encoder_heads), ("decoder", c.decoder_heads)):
            turn = rotary_table(layout.grid, c.dim // heads, c.base)
            turn = self.entities.gather(turn.unsqueeze(0))[0].flatten(0, 1) if c.rotary == "grid" else turn
            self.register_buffer(f"{half}_rotary", turn, persistent=False)  # (L, d / 2, 2), by place in the sequence
        self.encoder_rotary: Tensor
        self.decoder_rotary: Tensor

    def data_rows(self) -> DataRows:
        return {f"{half}_position": {0: self.layout.rows} for half in ("encoder", "decoder")}

    @property
    def blocks(self) -> list[EntityBlock]:
        return [*self.encoder_blocks, *self.decoder_blocks]

    def modulations_of(self, classes: Tensor, times: Tensor, steps: slice) -> list[Tensor]:
        """Of every block (k, R, 1, 6D), for class vectors (R, D) at `steps` of the times (n,), k of them."""
        y = F.silu(classes + self.time(times[steps]).unsqueeze(1)).unsqueeze(2)  # (k, R, 1, D)
        return [block.adaln(y) for block in self.blocks]

    def start(self, classes: Tensor, *, prefix: Tensor | None = None, carry: bool = False) -> Cache:
        """See Trunk.start; keys and values are allocated when the first ones come."""
        super().start(classes, prefix=prefix)
        # The last entity is never finished here, but stands behind the others while it is drawn.
        return EntityCache(classes, [LiveKV(self.layout.length, len(classes)) for _ in self.blocks])

    def denoiser(self, rows: TokenRows, classes: Tensor, options: PassOptions) -> Denoiser:
        """See DenoisingTrunk."""
        cache = options.cache
        assert isinstance(cache, EntityCache)
        fewest, most = options.counts(rows.known)
        if fewest != most:
            raise MgenError(
                "a batch of trunk 'block-causal' continues from equally many given entities: use batch_size 1"
            )
        return EntityDenoiser(self, rows, cache, most)

    def denoise(self, rows: TokenRows, classes: Tensor, times: Tensor) -> Tensor:
        """See DenoisingTrunk."""
        y = F.silu(classes.unsqueeze(1) + self.time(times))  # (B, E, D)
        e = torch.arange(times.shape[1], device=times.device).repeat_interleave(self.entities.parts)  # (L,)
        mask = e.unsqueeze(1) >= e if times.shape[1] > 1 else None
        x = rows.embedder(rows.tokens).unflatten(1, (times.shape[1], -1))  # (B, E, s, D)
        return self.hidden(x, [block.adaln(y) for block in self.blocks], 0, mask=mask)

    def hidden(
        self,
        x: Tensor,
        modulations: list[Tensor],
        first: int,
        live: list[LiveKV] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Context (B, E, s, D) of embedded tokens x (B, E, s, D) of the entities `first` …, modulated by (B, E, 6D) of each block.

        `live`: keys and values of the layers, which the entities' own are written to; None: the entities see no others.
        """
        depth = len(self.encoder_blocks)
        x = self.token_norm(x + self._positions(self.encoder_position, first, x))
        x = self._stack(self.encoder_blocks, self.encoder_rotary, x, modulations[:depth], first, live, mask)
        x = self.decoder_embed(self.encoder_norm(x)) + self._positions(self.decoder_position, first, x)
        later = None if live is None else live[depth:]
        x = self._stack(self.decoder_blocks, self.decoder_rotary, x, modulations[depth:], first, later, mask)
        return self.decoder_norm(x)

    def _positions(self, position: Tensor, first: int, x: Tensor) -> Tensor:
        """Learned positions (E, s, D) of the entities at hand; the table (L, D) goes row by row."""
        return self.entities.gather(position.unsqueeze(0))[0, first : first + x.shape[1]]

    def _stack(
        self,
        blocks: Blocks[EntityBlock],
        rotary: Tensor,
        x: Tensor,
        modulations: list[Tensor],
        first: int,
        live: list[LiveKV] | None,
        mask: Tensor | None,
    ) -> Tensor:
        s = x.shape[2]
        start, stop = first * s, (first + x.shape[1]) * s
        at = CausalRows(start, stop, None, rotary[start:stop])
        for i, block in enumerate(blocks):
            x = block(x, modulations[i], at, None if live is None else live[i], mask)
        return x
