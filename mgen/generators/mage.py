"""MAGE: a masked auto-encoder on token ids, for images and for representations.

Li et al., "MAGE: MAsked Generative Encoder to Unify Representation Learning and Image Synthesis" (CVPR 2023, arXiv 2211.09117).
In training half of the tokens never enter the encoder; in sampling all do, masked ones as mask tokens. The decoder sees the
encoder's output at known positions and, everywhere else, its output for the class slot.

Notation: B batch, L image tokens, K kept tokens, M asked positions, D encoder width, E decoder width.

| size | D | depth | heads | E | depth | heads | parameters |
|---|---|---|---|---|---|---|---|
| B (published) | 768 | 12 | 12 | 768 | 8 | 16 | 144.9 M |
| L (published) | 1024 | 24 | 16 | 1024 | 8 | 16 | 407.8 M |
| fmnist (demo, 32 px, with classes) | 192 | 5 | 6 | 192 | 2 | 6 | 3.3 M |
"""

import math
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks the base class up in this namespace)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mgen.generators.base import Generator, check_unit, count_known, id_head, reset_windows
from mgen.nn import (
    Local,
    Memory,
    PreNormBlock,
    WindowEmbedding,
    Windows,
    gather_rows,
    masked,
    slot,
    take,
    token_embedding,
)
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError
from mgen.utils.modeling import public

# Of the published models: rows of the vocabulary for classes, and the one that stands for every image.
CLASS_ROWS, FAKE_CLASS = 1000, 76


@public
class MAGE(Generator):
    """Masked generator on ids, unconditional as published, or class-conditional.

    Args:
        side: h = w of the token grid; L = side². codes: the vocabulary is codes, classes, and the mask.
        encoder_dim, encoder_depth, encoder_heads and decoder_…: of the two halves of the trunk; mlp_ratio: of both.
        num_classes: 0 is the published, unconditional model: 1000 class rows of which every image takes number 76. Otherwise
            the vocabulary has a row for each class and one for the null class.
        drop: share of the tokens that never enter the encoder in training; the mask ratio must not be smaller.
        dropout: on embeddings, attention probabilities, and the outputs of attention and of both layers of the MLPs.
        shuffle: side of the windows that the trunk computes as one row each (Token-Shuffle, arXiv 2504.17789); 1: none.
        shuffle_blocks: residual MLPs on either side of the trunk, with windows.
        mask_unit: what is masked and drawn as one: "window".
        class_names: for captions and file names; no part of the network.
    """

    SIZES = {
        "B": dict(encoder_dim=768, encoder_depth=12, encoder_heads=12, decoder_dim=768),
        "L": dict(encoder_dim=1024, encoder_depth=24, encoder_heads=16, decoder_dim=1024),
        "fmnist": dict(side=8, codes=512, encoder_dim=192, encoder_depth=5, encoder_heads=6)
        | dict(decoder_dim=192, decoder_depth=2, decoder_heads=6, num_classes=10, dropout=0.0),
    }

    @register_to_config
    def __init__(
        self,
        *,
        side: int = 16,
        codes: int = 1024,
        encoder_dim: int = 768,
        encoder_depth: int = 12,
        encoder_heads: int = 12,
        decoder_dim: int = 768,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        drop: float = 0.5,
        dropout: float = 0.1,
        shuffle: int = 1,
        shuffle_blocks: int = 2,
        mask_unit: str = "window",
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        check_unit(shuffle, mask_unit, name="MAGE")
        self.windows = Windows((side, side), shuffle)
        if not 0 <= drop < 1:
            raise MgenError(f"drop is {drop}: a share of the tokens, 0 … 1, some of which must remain")
        length = side * side
        self.mask_id = codes + (num_classes + 1 if num_classes else CLASS_ROWS)
        table: dict[str, Any] = dict(
            rows=self.mask_id + 1, length=1 + length, dim=encoder_dim, eps=1e-6, dropout=dropout
        )
        self.token_embed = token_embedding(windows=self.windows, blocks=shuffle_blocks, front=1, **table)

        def blocks(dim: int, depth: int, heads: int) -> nn.ModuleList:
            settings: dict[str, Any] = dict(mlp_ratio=mlp_ratio, eps=1e-6, attn_dropout=dropout, dropout=dropout)
            return nn.ModuleList(PreNormBlock(dim, heads, **settings) for _ in range(depth))

        self.encoder_blocks = blocks(encoder_dim, encoder_depth, encoder_heads)
        self.encoder_norm = nn.LayerNorm(encoder_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(encoder_dim, decoder_dim)
        self.decoder_position = nn.Parameter(torch.zeros(1 + self.windows.count, decoder_dim))
        self.decoder_blocks = blocks(decoder_dim, decoder_depth, decoder_heads)
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        own: dict[str, Any] = dict(table=self.token_embed.word, codes=codes, context_dim=decoder_dim)
        self.head = id_head(**own, shuffle=shuffle, blocks=shuffle_blocks)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for weight in (self.token_embed.word.weight, self.token_embed.position.weight, self.decoder_position):
            nn.init.normal_(weight, std=0.02)
        if isinstance(self.token_embed, WindowEmbedding):
            reset_windows(self.token_embed.join, self.head)

    @property
    def spec(self) -> TokenSpec:
        side = self.config.side
        return TokenSpec(kind="index", length=side * side, grid=(side, side), vocab_size=self.config.codes)

    @property
    def null_class(self) -> int | None:
        return self.config.num_classes or None

    def class_ids(self, condition: Tensor) -> Tensor:
        """Rows of the vocabulary (B, 1) for class ids (B,)."""
        row = condition if self.config.num_classes else torch.full_like(condition, FAKE_CLASS)
        return (self.config.codes + row).unsqueeze(1)

    def embed(self, condition: Tensor | None, ids: Tensor, places: Tensor | None = None) -> Tensor:
        """The class (B,), if any, and ids (B, N) of tokens, or (B, N, s²) of windows, at `places` (B, N), None: all, as rows."""
        if self.unit is None:
            rows = None if places is None else places + 1
            if condition is not None:
                ids = torch.cat([self.class_ids(condition), ids], dim=1)
                rows = None if rows is None else torch.cat([torch.zeros_like(rows[:, :1]), rows], dim=1)
            return self.token_embed(ids, rows)
        x = self.token_embed(ids, places)
        return x if condition is None else torch.cat([self.token_embed(self.class_ids(condition)), x], dim=1)

    def encode(self, x: Tensor, read: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        """Encoder output of rows (B, 1 + N, D) that start with the class; `read` (B, R): the rows of it that are wanted, None: all."""
        for i, block in enumerate(self.encoder_blocks):
            last = i == len(self.encoder_blocks) - 1
            x = block(x, positions=read if last else None, kept=slot(memory, f"encoder.{i}"))
        return self.encoder_norm(x if self.encoder_blocks or read is None else gather_rows(x, read))

    def decode(
        self,
        features: Tensor,
        places: Tensor,
        given: Tensor | None = None,
        positions: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Decoder output (B, M, E) at `positions` (B, M), or (B, 1 + L, E) with the class slot in front.

        Args:
            features: encoder output (B, 1 + R, D), of the class slot and of tokens at `places` (B, R).
            given: bool (B, R), False where the token is masked; None: none is.
        """
        rows = self.decoder_embed(features)
        filler, seen = rows[:, :1], rows[:, 1:]
        if memory is not None:
            memory.values["filler"] = filler
        if given is not None:
            seen = torch.where(given.unsqueeze(-1), seen, filler)
        image = filler.expand(-1, self.unit_spec.length, -1)
        image = image.scatter(1, places.unsqueeze(-1).expand_as(seen), seen)  # (B, L, E)
        x = torch.cat([filler, image], dim=1) + self.decoder_position  # (B, 1 + L, E)
        read = None if positions is None else positions + 1
        for i, block in enumerate(self.decoder_blocks):
            last = i == len(self.decoder_blocks) - 1
            x = block(x, positions=read if last else None, kept=slot(memory, f"decoder.{i}"))
        return self.decoder_norm(x if self.decoder_blocks or read is None else gather_rows(x, read))

    def context(
        self,
        tokens: Tensor,
        known: Tensor,
        condition: Tensor,
        *,
        positions: Tensor | None = None,
        visible: tuple[int, int] | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """See Generator.context. Masked tokens enter the encoder, and known ones attend to them, as published."""
        fewest, most = visible if visible is not None else count_known(known)
        x = self.embed(condition, masked(tokens, known, self.mask_id))  # (B, 1 + L, D)
        # The encoder's output is read at the class slot and at known tokens only.
        places = (~known).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]  # (B, V)
        read = torch.cat([places.new_zeros(len(places), 1), places + 1], dim=1)  # (B, 1 + V)
        features = self.encode(x, read, memory)
        given = None if fewest == most else known.gather(1, places)
        x = self.decode(features, places, given, positions, memory)
        return x[:, 1:] if positions is None else x

    def local(self, tokens: Tensor, condition: Tensor, memory: Memory, step: Local) -> Tensor:
        """See Generator.local. The class slot fills every masked position, so keeping it (prefix=False) keeps that filler."""
        rows, front = step.rows(1), int(step.prefix)
        x = self.embed(condition if step.prefix else None, step.ids(tokens, self.mask_id), step.positions)
        seen = slice(0, front + step.drawn)
        for i, block in enumerate(self.encoder_blocks):
            last = i == len(self.encoder_blocks) - 1
            x = block(x, positions=seen if last else None, kept=memory.layer(f"encoder.{i}"), rows=rows)
        x = self.decoder_embed(self.encoder_norm(x if self.encoder_blocks else x[:, seen]))
        filler = x[:, :1] if step.prefix else memory.values["filler"][: len(x)]
        x = torch.cat([x, filler.expand(-1, rows.shape[1] - x.shape[1], -1)], dim=1) + self.decoder_position[rows]
        for i, block in enumerate(self.decoder_blocks):
            last = i == len(self.decoder_blocks) - 1
            x = block(x, positions=step.wanted(1) if last else None, kept=memory.layer(f"decoder.{i}"), rows=rows)
        return self.decoder_norm(x if self.decoder_blocks else x[:, step.wanted(1)])

    def mask_draws(self, rank: Tensor, known: Tensor) -> dict[str, Tensor]:
        """`dropped` for the training forward: the tokens of the lowest ranks (B, L), of which none may be known.

        Raises:
            MgenError: fewer tokens are masked than are dropped.
        """
        dropped = rank < self.drop_count
        if (dropped & known).any():
            raise MgenError(
                f"MAGE drops {self.config.drop:.0%} of the tokens, all of them masked: set objective.mask to a distribution with "
                f"low of at least {self.config.drop} and rounding ceil, or model.drop to a smaller share"
            )
        return {"dropped": dropped}

    @property
    def drop_count(self) -> int:
        """Tokens that are dropped in training."""
        return math.ceil(self.unit_spec.length * self.config.drop)

    def encode_kept(
        self, tokens: Tensor, known: Tensor, condition: Tensor, dropped: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Training: encoder output (B, 1 + K, D) of the tokens that are not dropped, their places and which are given (B, K)."""
        places = dropped.to(torch.uint8).argsort(dim=1, stable=True)[
            :, : self.unit_spec.length - self.drop_count
        ]  # (B, K)
        given = known.gather(1, places)
        ids = masked(take(tokens, places), given, self.mask_id)
        return self.encode(self.embed(condition, ids, places)), places, given

    def forward(  # type: ignore[override]
        self, tokens: Tensor, condition: Tensor, known: Tensor, *, dropped: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Training: loss and hit of every masked token, both (number of masked tokens,).

        `dropped` bool (B, L): tokens that do not enter the encoder, `drop_count` in every row, all of them masked.
        """
        z = self.decode(*self.encode_kept(tokens, known, condition, dropped))[:, 1:]
        return self.masked_loss(z, tokens, known, label_smoothing=label_smoothing)
