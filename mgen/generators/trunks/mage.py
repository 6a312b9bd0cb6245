"""MAGE: a masked autoencoder on ids whose encoder sees masked tokens too, for images and for representations.

Li et al., "MAGE: MAsked Generative Encoder to Unify Representation Learning and Image Synthesis" (CVPR 2023, arXiv 2211.09117).
In training a share of the tokens never enters the encoder; in sampling all do, masked ones as mask tokens. The decoder sees the
encoder's output at known positions and, everywhere else, its output for the class token.

Notation: B batch, L rows, K kept rows, M positions asked for, D encoder width, E decoder width.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from mgen.generators.embedder import TokenRows
from mgen.generators.trunk import FULL, Layout, PassOptions, Trunk, known_first, register_trunk, table
from mgen.nn import Blocks, Cache, CachedStep, PreNormBlock, Ratio, check_heads, run_blocks
from mgen.nn.dropout import dropout
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import Depth, Rate, Size, schema


@schema
class MAGEConfig:
    """Settings; defaults are those of MAGE-B.

    Args:
        encoder_dim, encoder_depth, encoder_heads and decoder_…: of the two halves. mlp_ratio: hidden width over the width.
        drop: share of the tokens that never enter the encoder in training; the mask ratio must not be smaller.
        dropout: on embeddings, attention probabilities, and the outputs of attention and of both layers of the MLPs.
    """

    encoder_dim: Size = 768
    encoder_depth: Depth = 12
    encoder_heads: Size = 12
    decoder_dim: Size = 768
    decoder_depth: Depth = 8
    decoder_heads: Size = 16
    mlp_ratio: Ratio = 4.0
    drop: Rate = 0.5
    dropout: Rate = 0.1

    def __post_init__(self) -> None:
        check_heads(self.encoder_dim, self.encoder_heads, width_name="encoder_dim", name="encoder_heads")
        check_heads(self.decoder_dim, self.decoder_heads, width_name="decoder_dim", name="decoder_heads")


class MAGECache(Cache):
    """Beside keys and values, the decoder's row (B, 1, E) that fills masked positions."""

    filler: Tensor


@register_trunk("mage", MAGEConfig)
class MAGE(Trunk):
    """Encoder of class token and tokens, decoder that fills masked positions with the class token's output."""

    cache_type = MAGECache

    def __init__(self, config: MAGEConfig, *, layout: Layout) -> None:
        super().__init__()
        c, self.config, self.width, self.context_width = config, config, config.encoder_dim, config.decoder_dim
        self.layout, self.length = layout, layout.length
        self.drop_count = math.ceil(self.length * c.drop)  # tokens that never enter the encoder in training
        block = partial(PreNormBlock, mlp_ratio=c.mlp_ratio, eps=1e-6, attn_dropout=c.dropout, dropout=c.dropout)
        self.position = nn.Embedding(1 + self.length, c.encoder_dim)
        self.token_norm = nn.LayerNorm(c.encoder_dim, eps=1e-6)
        self.encoder_blocks = Blocks(block(c.encoder_dim, c.encoder_heads) for _ in range(c.encoder_depth))
        self.encoder_norm = nn.LayerNorm(c.encoder_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(c.encoder_dim, c.decoder_dim)
        self.decoder_position = table(1 + self.length, c.decoder_dim)
        self.decoder_blocks = Blocks(block(c.decoder_dim, c.decoder_heads) for _ in range(c.decoder_depth))
        self.decoder_norm = nn.LayerNorm(c.decoder_dim, eps=1e-6)

    def data_rows(self) -> DataRows:
        rows = (Rows("class token", (1,)), *self.layout.rows)
        return {"position.weight": {0: rows}, "decoder_position": {0: rows}}

    def embed(self, classes: Tensor | None, x: Tensor, at: Tensor | None = None) -> Tensor:
        """The class (B, D), if any, and rows (B, n, D) of tokens `at` positions (B, n), None: all, with their positions."""
        at = None if at is None else at + 1
        if classes is not None:
            x = torch.cat([classes.unsqueeze(1), x], dim=1)
            at = None if at is None else torch.cat([torch.zeros_like(at[:, :1]), at], dim=1)
        place = self.position.weight[: x.shape[1]] if at is None else self.position(at)
        return dropout(self.token_norm(x + place), self.config.dropout, self.training)

    def encode(self, x: Tensor, read: Tensor | None = None, options: PassOptions = FULL) -> Tensor:
        """Encoder output of rows (B, 1 + N, D) that start with the class; `read` (B, R): the rows of it that are wanted, None: all."""
        x = run_blocks(self.encoder_blocks, x, read, lambda i: {"kept": options.layer(f"encoder.{i}")})
        return self.encoder_norm(x)

    def decode(
        self, features: Tensor, seen_at: Tensor, given: Tensor | None = None, options: PassOptions = FULL
    ) -> Tensor:
        """Decoder output (B, M, E) at `options.positions`, or (B, 1 + L, E) with the class token in front.

        Args:
            features: encoder output (B, 1 + R, D), of the class and of tokens at `seen_at` (B, R).
            given: bool (B, R), False where the token is masked; None: none is.
        """
        rows = self.decoder_embed(features)
        filler, seen = rows[:, :1], rows[:, 1:]
        if isinstance(options.cache, MAGECache):
            options.cache.filler = filler
        if given is not None:
            seen = torch.where(given.unsqueeze(-1), seen, filler)
        image = filler.expand(-1, self.length, -1)
        image = image.scatter(1, seen_at.unsqueeze(-1).expand_as(seen), seen)  # (B, L, E)
        x = torch.cat([filler, image], dim=1) + self.decoder_position  # (B, 1 + L, E)
        read = None if options.positions is None else options.positions + 1
        x = run_blocks(self.decoder_blocks, x, read, lambda i: {"kept": options.layer(f"decoder.{i}")})
        return self.decoder_norm(x)

    def forward(self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL) -> Tensor:
        """See Trunk.forward. Masked tokens enter the encoder, and known ones attend to them, as published."""
        known = rows.known
        fewest, most = options.counts(known)
        x = self.embed(classes, rows.masked())  # (B, 1 + L, D)
        # The encoder's output is read at the class token and at known tokens only.
        seen_at = known_first(known, most)  # (B, V)
        read = torch.cat([seen_at.new_zeros(len(seen_at), 1), seen_at + 1], dim=1)  # (B, 1 + V)
        features = self.encode(x, read, options)
        given = None if fewest == most else known.gather(1, seen_at)
        x = self.decode(features, seen_at, given, options)
        return x[:, 1:] if options.positions is None else x

    def cached_step(self, rows: TokenRows, classes: Tensor, cache: Cache, step: CachedStep) -> Tensor:
        """See Trunk.cached_step. The class token fills every masked position: prefix=False keeps that filler."""
        assert isinstance(cache, MAGECache)
        at = step.rows(1)
        x = self.embed(classes if step.prefix else None, rows.at(step.positions, step.known), step.positions)
        seen = slice(0, int(step.prefix) + step.drawn)
        x = run_blocks(self.encoder_blocks, x, seen, lambda i: {"kept": cache.layer(f"encoder.{i}"), "rows": at})
        x = self.decoder_embed(self.encoder_norm(x))
        filler = x[:, :1] if step.prefix else cache.filler[: len(x)]
        x = torch.cat([x, filler.expand(-1, at.shape[1] - x.shape[1], -1)], dim=1) + self.decoder_position[at]
        x = run_blocks(
            self.decoder_blocks, x, step.wanted(1), lambda i: {"kept": cache.layer(f"decoder.{i}"), "rows": at}
        )
        return self.decoder_norm(x)

    def training_noise(self, rank: Tensor, known: Tensor) -> Tensor:
        """Tokens that never enter the encoder, bool (B, L): those of the lowest ranks (B, L), of which none may be known.

        Raises:
            MgenError: fewer tokens are masked than are dropped.
        """
        dropped = rank < self.drop_count
        if (dropped & known).any():
            raise MgenError(
                f"MAGE drops {self.config.drop:.0%} of the tokens, all of them masked: set objective.mask to a distribution with "
                f"low of at least {self.config.drop} and rounding ceil, or model.trunk.drop to a smaller share"
            )
        return dropped

    def encode_kept(self, rows: TokenRows, classes: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encoder output (B, 1 + K, D) of the tokens that are not dropped, their positions and which are given (B, K)."""
        positions = known_first(~dropped, self.length - self.drop_count)  # (B, K)
        given = rows.known.gather(1, positions)
        return self.encode(self.embed(classes, rows.at(positions, given), positions)), positions, given

    def training_context(
        self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL, *, noise: Tensor | None = None
    ) -> Tensor:
        """See Trunk.training_context; `noise` bool (B, L): the tokens that do not enter the encoder."""
        if noise is None:
            return self(rows, classes, options)
        x = self.decode(*self.encode_kept(rows, classes, noise), options)
        return x[:, 1:] if options.positions is None else x
