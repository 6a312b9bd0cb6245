"""Masked autoencoder: the encoder sees the known tokens only, the decoder all positions. Shared by `mae` and `mae-two-stage`.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022, arXiv 2111.06377), with Li et al.'s buffer of class rows
(MAR, arXiv 2406.11838).

Notation: B batch, L tokens to be drawn, V known ones, M positions asked for, S prefix rows in front of the tokens, D encoder
width, E decoder width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from mgen.generators.embedder import TokenRows
from mgen.generators.trunk import FULL, PassOptions, Trunk, known_first
from mgen.nn import Blocks, Cache, CachedStep, Keys, LazyStep, Rows, gather_rows, run_blocks, span
from mgen.nn.attention import put
from mgen.nn.cache import first_images

Half = Literal["encoder", "decoder"]


class AutoencoderCache(Cache):
    """Beside keys and values:

    Attributes:
        visible: tokens that the encoder saw in the last full pass, and in lazy steps after it.
        inputs: of the decoder (B, S + L + …, E), which lazy steps overwrite where a token is revealed; None if none is kept.
    """

    visible = 0
    inputs: Tensor | None = None

    def free(self) -> None:
        super().free()
        self.inputs = None


@dataclass(frozen=True)
class Tables:
    """Positions and mask tokens of the tokens to be drawn.

    Attributes:
        encoder: positions of the tokens (L, D). decoder: positions of prefix, tokens and what stands behind them (S + L + …, E).
        head: (L, E), added to the context. mask: one mask token (1, E), or one for each token and each row behind (L + …, E).
    """

    encoder: Tensor
    decoder: Tensor
    head: Tensor
    mask: Tensor

    def masks(self, positions: Tensor) -> Tensor:
        """Mask tokens (B, n, E) at positions (B, n)."""
        return self.mask.expand(*positions.shape, -1) if len(self.mask) == 1 else self.mask[positions]


class Layers(Protocol):
    """The layers of both halves."""

    token_norm: nn.LayerNorm
    encoder_norm: nn.LayerNorm
    decoder_embed: nn.Linear
    decoder_norm: nn.LayerNorm

    @property
    def encoder_blocks(self) -> nn.ModuleList: ...

    @property
    def decoder_blocks(self) -> Blocks[Any]: ...


class MaskedAutoencoder(Trunk):
    """Full passes, cached and lazy steps. Subclasses name the layers, give the tables, the prefix and how a block is called.

    Attributes:
        prefix_length: S. length: L.
    """

    cache_type = AutoencoderCache
    masks_inputs = False
    prefix_length: int
    length: int

    @property
    def layers(self) -> Layers:
        """The module that holds the layers: the trunk itself, or one that several trunks share."""
        raise NotImplementedError

    @property
    def tables(self) -> Tables:
        raise NotImplementedError

    def prefix(self, classes: Tensor, cache: Cache | None) -> Tensor:
        """The rows in front of the tokens (B, S, D), with their positions, for class vectors (B, D)."""
        raise NotImplementedError

    def modulation(self, half: Half, i: int, cache: Cache | None) -> dict[str, object]:
        """Arguments of block i of one half beside the keys."""
        return {}

    def run(
        self, half: Half, x: Tensor, cache: Cache | None, keys: Callable[[str], Keys], read: Rows | None = None
    ) -> Tensor:
        """x (B, N, D or E), or its rows `read`, after the blocks of one half; `keys` says what the attention of a block stores or reads."""
        blocks = self.layers.encoder_blocks if half == "encoder" else self.layers.decoder_blocks
        return run_blocks(blocks, x, read, lambda i: {**keys(f"{half}.{i}"), **self.modulation(half, i, cache)})

    def encode(
        self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The encoder on prefix and known tokens.

        Returns:
            features (B, S + V, D), with V the most tokens any image knows; the positions (B, V) of the tokens, ascending; and bool
            (B, S + V), False where an image with fewer known tokens is filled up (None: none is).
        """
        known, cache = rows.known, options.cache
        fewest, most = options.counts(known)
        positions = known_first(known, most)  # (B, V)
        seen = rows.at(positions) + self.tables.encoder[positions]
        x = self.layers.token_norm(torch.cat([self.prefix(classes, cache), seen], dim=1))  # (B, S + V, D)
        readable = None
        if fewest != most:
            readable = torch.cat([known.new_ones(len(known), self.prefix_length), known.gather(1, positions)], dim=1)
        x = self.run("encoder", x, cache, lambda name: {"readable": readable, "kept": options.layer(name, grows=True)})
        if isinstance(cache, AutoencoderCache):
            cache.visible = most
        return self.layers.encoder_norm(x), positions, readable

    def decode(
        self, features: Tensor, seen_at: Tensor, readable: Tensor | None = None, options: PassOptions = FULL
    ) -> Tensor:
        """Context (B, M, E) at `options.positions`, or (B, L, E), of the encoder's result for tokens at `seen_at` (B, V)."""
        first, b, length, tables = self.prefix_length, len(features), self.length, self.tables
        positions = options.positions
        rows = self.layers.decoder_embed(features)
        seen = rows[:, first:]
        if readable is not None:  # a filler stands at an unknown position, where the mask token belongs anyway
            seen = torch.where(readable[:, first:].unsqueeze(-1), seen, tables.masks(seen_at).to(rows.dtype))
        masks = tables.mask.to(rows.dtype)
        image = masks.expand(b, max(len(masks), length), -1)
        image = image.scatter(1, seen_at.unsqueeze(-1).expand(-1, -1, rows.shape[-1]), seen)  # (B, L + …, E)
        x = torch.cat([rows[:, :first], image], dim=1) + tables.decoder  # (B, S + L + …, E)
        if isinstance(options.cache, AutoencoderCache) and options.keep is not None:
            options.cache.inputs = first_images(x, options.keep_images)
        # Only the positions that will be read pass the end of the last block.
        read = positions + first if positions is not None else None
        if read is None and x.shape[1] > first + length:
            read = (span(length, x) + first).contiguous()
        x = self.run("decoder", x, options.cache, lambda name: {"kept": options.layer(name)}, read)
        x = x if read is not None else x[:, first:]  # (B, M, E) or (B, L, E)
        return self.to_context(x, positions) if options.finished else x

    def to_context(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        table = self.tables.head
        return self.layers.decoder_norm(x) + (table if positions is None else table[positions])

    def forward(self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL) -> Tensor:
        return self.decode(*self.encode(rows, classes, options), options)

    def encode_step(self, rows: TokenRows, classes: Tensor, cache: Cache, step: CachedStep) -> Tensor:
        """Encoder features (B, n, D) of the drawn tokens among those computed anew, behind the prefix if it is computed too."""
        assert isinstance(cache, AutoencoderCache)
        drawn = step.positions[:, : step.drawn]  # (B, n)
        # The encoder holds known tokens only: those of the group stand behind them, each at a row of its own.
        behind = self.prefix_length + cache.visible
        first, until = behind + step.fresh[0], behind + step.done
        return self.encode_rows(rows, classes, cache, drawn, first=first, until=until, prefix=step.prefix)

    def encode_rows(
        self,
        rows: TokenRows,
        classes: Tensor,
        cache: Cache,
        drawn: Tensor,
        *,
        first: int,
        until: int,
        prefix: bool = True,
    ) -> Tensor:
        """Encoder features (B, n, D) of tokens at positions `drawn` (B, n), behind the prefix if it is computed too.

        Their keys and values stand at rows `first` … of the stored ones, of which the first `until` are read.
        """
        x = rows.at(drawn) + self.tables.encoder[drawn]
        at = span(drawn.shape[1], x) + first
        if prefix:
            x = torch.cat([self.prefix(classes, cache), x], dim=1)  # (B, S + n, D)
            at = torch.cat([span(self.prefix_length, x), at], dim=1)
        x = self.layers.token_norm(x)
        if x.shape[1]:
            x = self.run("encoder", x, cache, lambda name: {"kept": cache.layer(name), "rows": at, "until": until})
        return self.layers.encoder_norm(x)

    def cached_step(self, rows: TokenRows, classes: Tensor, cache: Cache, step: CachedStep) -> Tensor:
        tables = self.tables
        x = self.layers.decoder_embed(self.encode_step(rows, classes, cache, step))
        at, wanted = step.rows(self.prefix_length), step.wanted(self.prefix_length)
        masks = tables.masks(step.positions[:, step.drawn :]).to(x.dtype)
        x = torch.cat([x, masks], dim=1) + tables.decoder[at]  # (B, S + n, E) or (B, n, E)
        x = self.run("decoder", x, cache, lambda name: {"kept": cache.layer(name), "rows": at}, wanted)
        return self.to_context(x, step.group[:, slice(*step.asked)]) if step.finished else x  # (B, asked, E)

    def lazy_step(self, rows: TokenRows, classes: Tensor, cache: Cache, step: LazyStep) -> Tensor:
        """See Trunk.lazy_step.

        The encoder computes the prefix and the tokens revealed last; what it made of the others stands in the decoder's input. The decoder
        computes all rows up to the attention of layer `step.pruning.layer`, and behind it those that have changed most.
        """
        assert isinstance(cache, AutoencoderCache) and cache.inputs is not None
        first, latest = self.prefix_length, step.latest
        behind = first + cache.visible
        cache.visible += latest.shape[1]
        x = self.encode_rows(rows, classes, cache, latest, first=behind, until=first + cache.visible)
        at = torch.cat([span(first, x), latest + first], dim=1)  # (B, S + p)
        fresh = self.layers.decoder_embed(x) + self.tables.decoder[at]
        inputs = cache.inputs[: len(x)]
        put(inputs, at, fresh)
        x = self.decode_lazily(inputs, cache, step)  # (B, n, E)
        return self.to_context(x, step.drawn) if step.finished else x

    def decode_lazily(self, x: Tensor, cache: Cache, step: LazyStep) -> Tensor:
        """The decoder's output (B, n, E) at the positions to be drawn, of its input x (B, S + L + …, E)."""
        blocks, first, layer = self.layers.decoder_blocks, self.prefix_length, step.pruning.layer
        if step.count(x.shape[1]) == x.shape[1]:
            return self.run("decoder", x, cache, lambda name: {"kept": cache.layer(name)}, step.drawn + first)
        own = [self.modulation("decoder", i, cache) for i in range(len(blocks))]
        for i in range(layer):
            x = blocks[i](x, **own[i])
        store = cache.layer(f"decoder.{layer}")
        keys = blocks[layer].keys(x, **own[layer])
        kept = step.kept(keys[1], store.v[: len(x)], first)  # (B, K)
        store.store(*keys)
        x = blocks[layer](gather_rows(x, kept), given=keys, **own[layer])
        for i in range(layer + 1, len(blocks)):
            read = slice(step.drawn.shape[1]) if i == len(blocks) - 1 else None
            x = blocks[i](x, positions=read, kept=cache.layer(f"decoder.{i}"), rows=kept, **own[i])
        return x
