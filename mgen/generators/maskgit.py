"""MaskGIT, PyTorch line: the U-ViT of AutoNAT, whose weights ReCAP calls MaskGIT-r.

Ni et al., "Revisiting Non-Autoregressive Transformers for Efficient Image Synthesis" (AutoNAT, CVPR 2024, arXiv 2406.05478);
method of Chang et al., "MaskGIT" (CVPR 2022, arXiv 2202.04200); trunk of Bao et al., "All are Worth Words" (U-ViT, arXiv
2209.12152): a class token and the image tokens pass depth/2 blocks, a middle block and depth/2 blocks with long skips.

Windows of tokens: Token-Shuffle (arXiv 2504.17789); global tokens in front of those of the grid: Hita (arXiv 2507.02358).
With a head over channels it takes tokens of C quantised numbers (TokenBridge, arXiv 2503.16430; see mgen.heads.channels).

Notation: B batch, L image tokens (of C channels), M asked positions, D width.

| size | D | depth | heads | L × codes | parameters |
|---|---|---|---|---|---|
| L (published: AutoNAT-L, 256 px) | 768 | 24 (25 blocks) | 8 | 256 × 1024 | 193.7 M |
| S (paper; weights not published) | 512 | 12 | 8 | 256 × 1024 | 45.5 M |
| fmnist (embedded demo, 32 px) | 192 | 6 | 6 | 64 × 512 | 3.5 M |
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks the base class up in this namespace)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mgen.generators.base import Generator, check_unit, id_head, initialise, reset_windows
from mgen.heads import ChannelHead
from mgen.nn import (
    Local,
    Memory,
    PreNormBlock,
    TokenEmbedding,
    TokenUnshuffle,
    WindowEmbedding,
    Windows,
    gather_rows,
    masked,
    slot,
    span,
    take,
    token_embedding,
)
from mgen.nn.attention import Rows
from mgen.nn.embedding import VectorEmbedding
from mgen.nn.levels import dequantize, describe, gaussian_levels
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.modeling import public


@public
class MaskGIT(Generator):
    """Class-conditional masked generator on ids.

    Args:
        side: h = w of the token grid; L = side², or global_tokens + side².
        codes: vocabulary of the tokenizer. With head_kind "channels" unused.
        global_tokens: tokens of the image as a whole, which stand first and have a codebook of their own; they are drawn first.
        dim, depth, heads, mlp_ratio, qkv_bias: of the trunk; depth counts blocks outside the middle one, half before it.
        num_classes: classes, not counting the null class. null_class: whether there is one (id `num_classes`).
        skip: long skips from the first half to the second.
        dropout: on the token embeddings, in training.
        tie: "published": the head's gradient does not reach the token table that it shares, as in the official PyTorch code; a narrow
            table then learns slowly. "trained": it does, as in the JAX code.
        head_kind: "categorical", or "channels": tokens are ids of C quantised numbers (kind "multi-index"), which enter as the
            numbers they stand for and are drawn one after the other.
        channels, scale, levels, low, high, span, form: C and the quantiser, see TokenSpec and mgen.nn.levels; head_width,
            head_depth, head_heads, head_first, channel_order: of the head, see ChannelHead. All for the head over channels.
        shuffle: side of the windows that the trunk computes as one row each (Token-Shuffle, arXiv 2504.17789); 1: none.
        shuffle_blocks: residual MLPs on either side of the trunk, with windows.
        mask_unit: with windows, what is masked and drawn as one: "window", or "token": any mask will do, but no reuse.
        class_names: for captions and file names; no part of the network.
    """

    SIZES = {
        "L": dict(side=16, codes=1024, dim=768, depth=24, heads=8),
        "S": dict(side=16, codes=1024, dim=512, depth=12, heads=8),
        "fmnist": dict(side=8, codes=512, dim=192, depth=6, heads=6, num_classes=10),
    }

    @register_to_config
    def __init__(
        self,
        *,
        side: int = 16,
        codes: int = 1024,
        global_tokens: int = 0,
        dim: int = 768,
        depth: int = 24,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        num_classes: int = 1000,
        null_class: bool = True,
        skip: bool = True,
        dropout: float = 0.1,
        tie: Literal["published", "trained"] = "published",
        head_kind: Literal["categorical", "channels"] = "categorical",
        head_width: int = 1024,
        head_depth: int = 4,
        head_heads: int = 8,
        head_first: Literal["published", "consistent"] = "published",
        channels: int = 16,
        channel_order: Sequence[int] | None = None,
        scale: float | None = None,
        levels: int = 64,
        low: float = -5.0,
        high: float = 5.0,
        span: float = 3.0,
        form: str = "published",
        shuffle: int = 1,
        shuffle_blocks: int = 2,
        mask_unit: Literal["window", "token"] = "window",
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        check_unit(shuffle, mask_unit, units=("window", "token"), name="MaskGIT")
        if shuffle != 1 and (global_tokens or head_kind != "categorical"):
            raise MgenError(
                f"shuffle {shuffle} joins ids of a grid: it goes neither with global tokens nor with channels"
            )
        self.windows = Windows((side, side), shuffle)
        shared: dict[str, Any] = dict(length=global_tokens + side * side, dim=dim, eps=1e-6, dropout=dropout)
        quantised = check_choice("head_kind", head_kind, ("categorical", "channels")) == "channels"
        if quantised:
            self.register_buffer("levels_table", gaussian_levels(levels, span=span, form=form)[0])
            self.levels_table: Tensor
            self.token_embed: Any = VectorEmbedding(channels=channels, **shared)
        else:
            self.mask_id = codes * (2 if global_tokens else 1)
            self.token_embed = token_embedding(
                windows=self.windows, blocks=shuffle_blocks, rows=self.mask_id + 1, **shared
            )
        self.class_embed = TokenEmbedding(rows=num_classes + int(null_class), length=1, dim=dim, eps=1e-6)

        def block(with_skip: bool = False) -> PreNormBlock:
            return PreNormBlock(dim, heads, mlp_ratio=mlp_ratio, bias=qkv_bias, skip=with_skip)

        self.in_blocks = nn.ModuleList(block() for _ in range(depth // 2))
        self.mid_block = block()
        self.out_blocks = nn.ModuleList(block(skip) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(dim)
        if not quantised:
            published = check_choice("tie", tie, ("published", "trained")) == "published"
            table: dict[str, Any] = dict(
                table=self.token_embed.word, codes=codes, global_tokens=global_tokens, detach=published
            )
            whole = 1 if self.unit is None else shuffle
            self.head: Any = id_head(**table, shuffle=whole, blocks=shuffle_blocks)
            if shuffle != whole:  # the trunk's result is taken apart before the head
                self.unshuffle = TokenUnshuffle(dim, shuffle, blocks=shuffle_blocks)
        self.apply(initialise)
        if isinstance(self.token_embed, WindowEmbedding):
            reset_windows(self.token_embed.join, self.head)
            if self.unit is None:
                self.unshuffle.reset_parameters(self.token_embed.join)
        if quantised:  # it has initial values of its own
            size = dict(channels=channels, levels=levels, context_dim=dim, width=head_width, depth=head_depth)
            self.head = ChannelHead(
                **size, heads=head_heads, mlp_ratio=mlp_ratio, order=channel_order, first=head_first
            )

    @property
    def spec(self) -> TokenSpec:
        c = self.config
        place: dict[str, Any] = dict(length=c.global_tokens + c.side * c.side, grid=(c.side, c.side))
        if c.head_kind == "categorical":
            return TokenSpec(kind="index", vocab_size=c.codes, global_tokens=c.global_tokens, **place)
        words = describe(form=c.form, low=c.low, high=c.high, span=c.span)
        return TokenSpec(
            kind="multi-index", vocab_size=c.levels, channels=c.channels, scale=c.scale, levels=words, **place
        )

    @property
    def null_class(self) -> int | None:
        return self.config.num_classes if self.config.null_class else None

    @property
    def unit(self) -> Windows | None:
        return self.windows if self.windows.side > 1 and self.config.mask_unit == "window" else None

    @property
    def evaluates_locally(self) -> bool:
        """Not with windows of which some tokens are known and others not: what is kept of them would be wrong."""
        return self.windows.side == 1 or self.unit is not None

    def embed(self, tokens: Tensor, known: Tensor, positions: Tensor | None = None) -> Tensor:
        """Ids (B, N) or (B, N, C), known where bool (B, N), at positions (B, N), None for all: (B, N, D)."""
        c = self.config
        if c.head_kind == "categorical":
            x = self.token_embed(masked(self.joint_ids(tokens, positions), known, self.mask_id), positions)
            if self.windows.side == 1 or self.unit is not None:
                return x
            return self.token_embed.join(self.windows.gather(x))  # (B, W, D)
        values = dequantize(tokens, self.levels_table, low=c.low, high=c.high, span=c.span)
        return self.token_embed(values.to(self.norm.weight.dtype), known, positions)

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
        """See Generator.context."""
        x = torch.cat([self.class_embed(condition.unsqueeze(1)), self.embed(tokens, known)], dim=1)  # (B, 1 + L, D)
        # Only the positions that will be read pass the end of the last block; the class token stands in front of them.
        by_token = self.windows.side > 1 and self.unit is None
        read = None if positions is None or by_token else positions + 1
        x = self._trunk(x, read, lambda name: {"kept": slot(memory, name)})
        if by_token:
            return self._by_token(x[:, 1:], positions)
        return x[:, 1:] if positions is None else x  # (B, L, D) or (B, M, D)

    def _by_token(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Context (B, M, D) of tokens, from that of windows (B, W, D); what is not asked for is not expanded."""
        parts = self.windows.scatter(self.unshuffle.split(x))  # (B, L, D / s²)
        return self.unshuffle.expand(parts if positions is None else gather_rows(parts, positions))

    def local(self, tokens: Tensor, condition: Tensor, memory: Memory, step: Local) -> Tensor:
        """See Generator.local."""
        places, rows = step.positions, step.rows(1)
        own = take(tokens, places)
        known = span(places.shape[1], places) < step.drawn  # (B, n)
        x = self.embed(own, known, places)  # (B, n, D)
        if step.prefix:
            x = torch.cat([self.class_embed(condition.unsqueeze(1)), x], dim=1)  # (B, 1 + n, D)
        return self._trunk(x, step.wanted(1), lambda name: {"kept": memory.layer(name), "rows": rows})

    def _trunk(self, x: Tensor, read: Rows | None, keys: Callable[[str], dict[str, Any]]) -> Tensor:
        """All blocks on x (B, N, D), then the rows `read` of it; `keys` says what the attention of a block stores or reads."""
        kept = []
        for i, block in enumerate(self.in_blocks):
            x = block(x, **keys(f"in.{i}"))
            kept.append(x)
        x = self.mid_block(x, **keys("mid"))
        for i, block in enumerate(self.out_blocks):
            last = i == len(self.out_blocks) - 1
            skip = kept.pop() if self.config.skip else None
            x = block(x, skip=skip, positions=read if last else None, **keys(f"out.{i}"))
        return self.norm(x if self.out_blocks or read is None else gather_rows(x, read))
