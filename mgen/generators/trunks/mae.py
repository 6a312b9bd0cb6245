"""Masked autoencoder with a buffer of class rows: the trunk of MAR, TokenBridge and eMIGM.

Li et al., "Autoregressive Image Generation without Vector Quantization" (MAR, NeurIPS 2024, arXiv 2406.11838); Wang et al.,
"Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation" (TokenBridge, arXiv 2503.16430); He et al., "Masked
Autoencoders" (arXiv 2111.06377).

Notation: B batch, L rows, S prefix rows (the buffer), D encoder width, E decoder width.
"""

from functools import partial

import torch
from torch import Tensor, nn

from mgen.generators.embedder import TokenRows
from mgen.generators.masked_autoencoder import Layers, MaskedAutoencoder, Tables
from mgen.generators.trunk import FULL, Capabilities, Layout, PassOptions, register_trunk, table
from mgen.nn import Blocks, Cache, PreNormBlock, Ratio, check_heads, span
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import Depth, Rate, Size, schema


@schema
class MAEConfig:
    """Settings; defaults are those of MAR-B.

    Args:
        encoder_dim, encoder_depth, encoder_heads and decoder_…: of the two halves. mlp_ratio: hidden width over the width.
        prefix_length: S, rows in front of the tokens that all hold the class vector.
        drop_masked: the encoder sees the known tokens alone; False: all of them, the mask token where one is unknown, and the decoder adds
            none (eMIGM without MAE, arXiv 2503.07197).
        attn_dropout, dropout: on attention probabilities; on the attention's output and the layers of the MLPs; in training.
        mlp_dropout: of the MLPs, if it is another (l-DeTok's MAR has none there).
    """

    encoder_dim: Size = 768
    encoder_depth: Depth = 12
    encoder_heads: Size = 12
    decoder_dim: Size = 768
    decoder_depth: Depth = 12
    decoder_heads: Size = 12
    mlp_ratio: Ratio = 4.0
    prefix_length: Size = 64
    drop_masked: bool = True
    attn_dropout: Rate = 0.1
    dropout: Rate = 0.1
    mlp_dropout: Rate | None = None

    def __post_init__(self) -> None:
        check_heads(self.encoder_dim, self.encoder_heads, width_name="encoder_dim", name="encoder_heads")
        check_heads(self.decoder_dim, self.decoder_heads, width_name="decoder_dim", name="decoder_heads")
        if not self.drop_masked and self.encoder_dim != self.decoder_dim:
            raise MgenError(
                f"drop_masked is false, but encoder_dim is {self.encoder_dim} and decoder_dim {self.decoder_dim}: the mask token needs "
                "equal widths"
            )


@register_trunk("mae", MAEConfig)
class MAE(MaskedAutoencoder):
    """Encoder of known tokens, decoder of all positions, both pre-norm."""

    def __init__(self, config: MAEConfig, *, layout: Layout) -> None:
        super().__init__()
        c, self.config, self.width, self.context_width = config, config, config.encoder_dim, config.decoder_dim
        self.layout, self.prefix_length, self.length = layout, c.prefix_length, layout.length
        able = c.drop_masked
        self.capabilities = Capabilities(cached_steps=able, lazy_layers=max(0, c.decoder_depth - 1) if able else 0)
        rows = self.prefix_length + self.length
        block = partial(
            PreNormBlock,
            mlp_ratio=c.mlp_ratio,
            eps=1e-6,
            attn_dropout=c.attn_dropout,
            dropout=c.dropout,
            mlp_dropout=c.mlp_dropout,
        )
        self.mask_token = table(1, c.decoder_dim)
        self.encoder_position = table(rows, c.encoder_dim)
        self.decoder_position = table(rows, c.decoder_dim)
        self.head_position = table(self.length, c.decoder_dim)
        self.token_norm = nn.LayerNorm(c.encoder_dim, eps=1e-6)
        self.encoder_blocks = Blocks(block(c.encoder_dim, c.encoder_heads) for _ in range(c.encoder_depth))
        self.encoder_norm = nn.LayerNorm(c.encoder_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(c.encoder_dim, c.decoder_dim)
        self.decoder_blocks = Blocks(block(c.decoder_dim, c.decoder_heads) for _ in range(c.decoder_depth))
        self.decoder_norm = nn.LayerNorm(c.decoder_dim, eps=1e-6)

    def data_rows(self) -> DataRows:
        own, rows = self.layout.rows, (Rows("buffer", (self.prefix_length,)), *self.layout.rows)
        return {"encoder_position": {0: rows}, "decoder_position": {0: rows}, "head_position": {0: own}}

    @property
    def mask(self) -> Tensor:
        return self.mask_token[0]

    @property
    def layers(self) -> Layers:
        return self

    @property
    def tables(self) -> Tables:
        encoder = self.encoder_position[self.prefix_length :]
        return Tables(encoder=encoder, decoder=self.decoder_position, head=self.head_position, mask=self.mask_token)

    def encode(
        self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.config.drop_masked:
            return super().encode(rows, classes, options)
        positions = span(self.length, rows.known)  # (B, L)
        x = torch.cat([self.prefix(classes, options.cache), rows.at(positions) + self.tables.encoder], dim=1)
        front, image = self.token_norm(x).tensor_split([self.prefix_length], dim=1)
        image = torch.where(rows.known.unsqueeze(-1), image, self.mask.to(image.dtype))  # bare: no position, no norm
        x = self.run("encoder", torch.cat([front, image], dim=1), options.cache, lambda name: {})
        return self.encoder_norm(x), positions, None

    def prefix(self, classes: Tensor, cache: Cache | None) -> Tensor:
        """The buffer (B, S, D): every row holds the class vector."""
        return classes.unsqueeze(1) + self.encoder_position[: self.prefix_length]
