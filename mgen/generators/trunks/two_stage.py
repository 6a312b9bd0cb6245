"""Masked autoencoder for two stages: one set of blocks, modulated by the stage. The trunk of Hi-MAR.

Zheng et al., "Hierarchical Masked Autoregressive Models with Low-Resolution Token Pivots" (ICML 2025, arXiv 2505.20288). The first
stage sees the rows of the smaller image; the second has the first's context vectors as more prefix rows.

Notation: B batch, S rows of the first stage, L of the second, N buffer rows, D width.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.generators.embedder import TokenRows
from mgen.generators.masked_autoencoder import AutoencoderCache, Half, Layers, MaskedAutoencoder, Tables
from mgen.generators.trunk import FULL, Capabilities, Layout, PassOptions, Trunk, table
from mgen.nn import Blocks, Cache, Ratio, ScaledBlock, check_heads
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.registry import Configured
from mgen.utils.schema import Depth, Rate, Size, schema

Modulation = tuple[Tensor, ...]


@schema
class TwoStageMAEConfig:
    """Settings; defaults are those of Hi-MAR-B.

    Args:
        dim, encoder_depth, decoder_depth, heads, mlp_ratio: of both halves. decoder_heads: None, as many as the encoder's.
        prefix_length: N, rows that hold the class vector.
        attn_dropout, dropout: on attention probabilities; on the attention's output and the layers of the MLPs; in training.
    """

    dim: Size = 768
    encoder_depth: Depth = 12
    decoder_depth: Depth = 12
    heads: Size = 12
    decoder_heads: Size | None = None
    mlp_ratio: Ratio = 4.0
    prefix_length: Size = 64
    attn_dropout: Rate = 0.1
    dropout: Rate = 0.1

    def __post_init__(self) -> None:
        check_heads(self.dim, self.heads)
        if self.decoder_heads is not None:
            check_heads(self.dim, self.decoder_heads, name="decoder_heads")


class TwoStageMAE(nn.Module, Configured):
    """The weights of both stages; `Stage` makes a trunk of each."""

    type_name = "mae-two-stage"
    lora_targets = Trunk.lora_targets

    def __init__(self, config: TwoStageMAEConfig, *, first: Layout, second: Layout) -> None:
        super().__init__()
        c, self.config, self.layouts = config, config, (first, second)
        self.lengths = (first.length, second.length)
        tokens = sum(self.lengths)
        rows = c.prefix_length + tokens
        self.mask_token = table(2, tokens, c.dim)
        self.encoder_position, self.decoder_position = table(2, rows, c.dim), table(2, rows, c.dim)
        self.head_position = table(tokens, c.dim)
        self.token_norm = nn.LayerNorm(c.dim, eps=1e-6)
        block = partial(
            ScaledBlock, c.dim, tasks=2, mlp_ratio=c.mlp_ratio, eps=1e-6, attn_dropout=c.attn_dropout, dropout=c.dropout
        )
        self.encoder_task, self.decoder_task = nn.Embedding(2, c.dim), nn.Embedding(2, c.dim)
        self.encoder_modulation, self.decoder_modulation = nn.Linear(c.dim, 4 * c.dim), nn.Linear(c.dim, 4 * c.dim)
        self.encoder_blocks = Blocks(block(c.heads) for _ in range(c.encoder_depth))
        self.decoder_blocks = Blocks(block(c.decoder_heads or c.heads) for _ in range(c.decoder_depth))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(c.dim, eps=1e-6), nn.LayerNorm(c.dim, eps=1e-6)
        self.decoder_embed = nn.Linear(c.dim, c.dim)

    def data_rows(self) -> DataRows:
        """See Model.data_rows."""
        first, second = (layout.rows for layout in self.layouts)
        own = (*(replace(part, of=f"first-stage {part.of}") for part in first), *second)
        rows = (Rows("buffer", (self.config.prefix_length,)), *own)
        tables: DataRows = {"mask_token": {1: own}, "head_position": {0: own}}
        return tables | {name: {1: rows} for name in ("encoder_position", "decoder_position")}

    def modulations(self, stage: int) -> tuple[list[Modulation], list[Modulation]]:
        """Scales and gates of every block of the encoder, and of the decoder, in stage 0 or 1."""
        of_encoder = self.encoder_modulation(F.silu(self.encoder_task.weight[stage]))  # (4D,)
        of_decoder = self.decoder_modulation(F.silu(self.decoder_task.weight[stage]))
        encoder = [block.modulation(of_encoder, stage) for block in self.encoder_blocks]
        return encoder, [block.modulation(of_decoder, stage) for block in self.decoder_blocks]


class StageCache(AutoencoderCache):
    """Beside keys and values, the stage's modulations and, in the second stage, the rows of the first."""

    def __init__(self, encoder: list[Modulation], decoder: list[Modulation], prefix: Tensor | None) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prefix = encoder, decoder, prefix


class Stage(MaskedAutoencoder):
    """Stage `index`, 0 or 1, as a trunk on shared weights."""

    type_name = "stage"

    def __init__(self, shared: TwoStageMAE, index: int) -> None:
        super().__init__()
        self._shared = [shared]  # in a list: the weights belong to the cascade, which registers them once
        self.index, self.config = index, shared.config
        self.width = self.context_width = shared.config.dim
        self.prefix_length = shared.config.prefix_length + (shared.lengths[0] if index else 0)
        self.length = shared.lengths[index]
        self.capabilities = Capabilities(lazy_layers=max(0, shared.config.decoder_depth - 1))

    @property
    def shared(self) -> TwoStageMAE:
        return self._shared[0]

    @property
    def layers(self) -> Layers:
        return self.shared

    @property
    def tables(self) -> Tables:
        m, first = self.shared, self.shared.lengths[0]
        own = slice(first, None) if self.index else slice(None, first)
        # In the first stage the tokens of the second stand behind, always masked.
        mask = m.mask_token[1, own] if self.index else m.mask_token[0]
        encoder = m.encoder_position[self.index, self.prefix_length : self.prefix_length + self.length]
        return Tables(encoder=encoder, decoder=m.decoder_position[self.index], head=m.head_position[own], mask=mask)

    def start(self, classes: Tensor, *, prefix: Tensor | None = None, carry: bool = False) -> Cache:
        """See Trunk.start; the second stage needs `prefix`, the rows of the first (Cascade.prefix)."""
        if (prefix is None) != (self.index == 0):
            raise MgenError(
                "the second stage reads the rows of the first, and the first stage reads none: see Cascade.prefix"
            )
        if prefix is not None:
            first = self.shared.config.prefix_length
            prefix = prefix + self.shared.encoder_position[1, first : self.prefix_length]
        return StageCache(*self.shared.modulations(self.index), prefix)

    def prefix(self, classes: Tensor, cache: Cache | None) -> Tensor:
        """The buffer, and in the second stage the rows of the first: (B, N, D) or (B, N + S, D)."""
        n = self.shared.config.prefix_length
        rows = classes.unsqueeze(1) + self.shared.encoder_position[self.index, :n]  # (B, N, D)
        if self.index == 0:
            return rows
        assert isinstance(cache, StageCache) and cache.prefix is not None
        b, extra = len(classes), cache.prefix
        if len(extra) > 1:  # the null rows of guidance, behind those of the class, see the same rows
            extra = extra.repeat(-(-b // len(extra)), 1, 1)[:b]
        return torch.cat([rows, extra.expand(b, -1, -1)], dim=1)

    def forward(self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL) -> Tensor:
        options = options if options.cache is not None else replace(options, cache=self.start(classes))
        return super().forward(rows, classes, options)

    def modulation(self, half: Half, i: int, cache: Cache | None) -> dict[str, object]:
        assert isinstance(cache, StageCache)
        return {"modulation": (cache.encoder if half == "encoder" else cache.decoder)[i]}
