"""Masked autoencoder with a buffer of class rows: the trunk of MAR and TokenBridge.

Li et al., "Autoregressive Image Generation without Vector Quantization" (MAR, NeurIPS 2024, arXiv 2406.11838); Wang et al.,
"Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation" (TokenBridge, arXiv 2503.16430); He et al., "Masked
Autoencoders" (arXiv 2111.06377).

Notation: B batch, L rows, S prefix rows (the buffer), D encoder width, E decoder width.
"""

from functools import partial

from torch import Tensor, nn

from mgen.generators.masked_autoencoder import Layers, MaskedAutoencoder, Tables
from mgen.generators.trunk import Layout, register_trunk, table
from mgen.nn import Blocks, Cache, PreNormBlock, Ratio, check_heads
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import Depth, Rate, Size, schema


@schema
class MAEConfig:
    """Settings; defaults are those of MAR-B.

    Args:
        encoder_dim, encoder_depth, encoder_heads and decoder_…: of the two halves. mlp_ratio: hidden width over the width.
        prefix_length: S, rows in front of the tokens that all hold the class vector.
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
    attn_dropout: Rate = 0.1
    dropout: Rate = 0.1
    mlp_dropout: Rate | None = None

    def __post_init__(self) -> None:
        check_heads(self.encoder_dim, self.encoder_heads, width_name="encoder_dim", name="encoder_heads")
        check_heads(self.decoder_dim, self.decoder_heads, width_name="decoder_dim", name="decoder_heads")


@register_trunk("mae", MAEConfig)
class MAE(MaskedAutoencoder):
    """Encoder of known tokens, decoder of all positions, both pre-norm."""

    def __init__(self, config: MAEConfig, *, layout: Layout) -> None:
        super().__init__()
        c, self.config, self.width, self.context_width = config, config, config.encoder_dim, config.decoder_dim
        self.layout, self.prefix_length, self.length = layout, c.prefix_length, layout.length
        rows = self.prefix_length + self.length
        drop = {"attn_dropout": c.attn_dropout, "dropout": c.dropout, "mlp_dropout": c.mlp_dropout}
        block = partial(PreNormBlock, mlp_ratio=c.mlp_ratio, eps=1e-6, **drop)
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
    def layers(self) -> Layers:
        return self

    @property
    def tables(self) -> Tables:
        encoder = self.encoder_position[self.prefix_length :]
        return Tables(encoder=encoder, decoder=self.decoder_position, head=self.head_position, mask=self.mask_token)

    def prefix(self, classes: Tensor, cache: Cache | None) -> Tensor:
        """The buffer (B, S, D): every row holds the class vector."""
        return classes.unsqueeze(1) + self.encoder_position[: self.prefix_length]
