"""The embedders: a table of ids, a projection of vectors, quantized vectors as the numbers they stand for, and windows of these.

Notation: B batch, n positions, C channels of a token, V ids of a codebook, D width, s side of a window.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from mgen.generators.embedder import Embedder, TableRows, register_embedder
from mgen.nn.levels import dequantize, gaussian_levels
from mgen.nn.windows import Entities, TokenShuffle, TokenUnshuffle, Windows
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows, below
from mgen.utils.schema import schema


@schema
class LookupConfig:
    """Settings of `Lookup`.

    Args:
        last_global: table in which sampling looks up the last global id: "published" the grid's, as Hita's official code does
            although it trains otherwise; "consistent" the global tokens' own, as in training.
    """

    last_global: Literal["published", "consistent"] = "consistent"


@register_embedder("lookup", LookupConfig)
class Lookup(Embedder):
    """A table of rows: V ids, V more for the grid's ids where some tokens are global, then classes and the mask (TableRows)."""

    kind = "index"

    def __init__(self, config: LookupConfig, *, tokens: TokenSpec, width: int, extra: TableRows) -> None:
        super().__init__()
        assert tokens.vocab_size is not None
        self.config, self.tokens, self.width = config, tokens, width
        self.ids = tokens.vocab_size * (2 if tokens.global_tokens else 1)
        self.mask_id = self.ids + extra.classes if extra.mask else None
        self.table = nn.Embedding(self.ids + extra.classes + int(extra.mask), width)

    @property
    def token_table(self) -> nn.Embedding:
        return self.table

    def table_rows(self, classes: tuple[Rows, ...] = ()) -> tuple[Rows, ...]:
        assert self.tokens.vocab_size is not None
        shape = (self.tokens.vocab_size,)
        ids = (Rows("global ids", shape), Rows("ids", shape)) if self.tokens.global_tokens else (Rows("ids", shape),)
        return (*ids, *classes, *(() if self.mask_id is None else (Rows("mask", (1,)),)))

    def data_rows(self, classes: tuple[Rows, ...] = ()) -> DataRows:
        return {"table.weight": {0: self.table_rows(classes)}}

    @property
    def mask(self) -> Tensor:
        return super().mask if self.mask_id is None else self.table.weight[self.mask_id]

    def rows(self, ids: Tensor, positions: Tensor | None = None, *, sampling: bool = False) -> Tensor:
        """Rows of the table for ids (B, n) at positions (B, n): those of the grid stand behind those of the global tokens."""
        if not (first := self.tokens.global_tokens):
            return ids
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        assert self.tokens.vocab_size is not None
        border = first - int(sampling and self.config.last_global == "published")
        return ids + self.tokens.vocab_size * (positions >= border)

    def forward(
        self, tokens: Tensor, known: Tensor | None = None, positions: Tensor | None = None, *, sampling: bool = False
    ) -> Tensor:
        ids = self.rows(tokens, positions, sampling=sampling)
        if known is not None:
            if self.mask_id is None:
                raise MgenError("this token table has no mask row")
            ids = torch.where(known, ids, self.mask_id)
        return self.table(ids)


@schema
class NoSettings:
    """`Projection` and `Dequantize` have no settings: the levels are those of the tokens."""


@register_embedder("projection", NoSettings)
class Projection(Embedder):
    """Vectors (B, n, C) → rows, by one linear layer; a learned vector where there is no token yet."""

    kind = "vector"

    def __init__(self, config: NoSettings, *, tokens: TokenSpec, width: int, extra: TableRows) -> None:
        super().__init__()
        if extra.classes:
            raise MgenError("classes share the token table only where tokens are ids: use classes.table own")
        self.config, self.tokens, self.width = config, tokens, width
        self.proj = nn.Linear(tokens.channels, width)
        if extra.mask:
            self.mask_row = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def data_rows(self, classes: tuple[Rows, ...] = ()) -> DataRows:
        return {"proj.weight": {1: (Rows("channels", (self.tokens.channels,)),)}}

    @property
    def mask(self) -> Tensor:
        return self.mask_row if hasattr(self, "mask_row") else super().mask

    def numbers(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, C) as the numbers that are projected."""
        return tokens

    def forward(
        self, tokens: Tensor, known: Tensor | None = None, positions: Tensor | None = None, *, sampling: bool = False
    ) -> Tensor:
        x = self.proj(self.numbers(tokens).to(self.proj.weight.dtype))
        return x if known is None else torch.where(known.unsqueeze(-1), x, self.mask)


class Grouped(Embedder):
    """Entities of s tokens that are drawn as one but keep a row each, of a trunk that reads noisy tokens (xAR, arXiv 2502.20388)."""

    windows: Entities

    def __init__(self, embedder: Embedder, entities: Entities) -> None:
        super().__init__()
        self.inner, self.windows = embedder, entities
        self.tokens, self.width = embedder.tokens, embedder.width

    @property
    def settings(self) -> dict[str, object]:
        return self.inner.settings

    def data_rows(self, classes: tuple[Rows, ...] = ()) -> DataRows:
        return below("inner", self.inner.data_rows(classes))

    def forward(
        self, tokens: Tensor, known: Tensor | None = None, positions: Tensor | None = None, *, sampling: bool = False
    ) -> Tensor:
        """Rows (B, n·s, D) of entities (B, n, s·C), all of which are read."""
        own = tokens.unflatten(2, (self.windows.parts, -1)).flatten(1, 2)  # (B, n·s, C)
        return self.inner(own, sampling=sampling)


@register_embedder("dequantize", NoSettings)
class Dequantize(Projection):
    """Ids (B, n, C) of quantized numbers enter as the numbers they stand for (TokenBridge, arXiv 2503.16430)."""

    kind = "multi-index"

    def __init__(self, config: NoSettings, *, tokens: TokenSpec, width: int, extra: TableRows) -> None:
        if tokens.levels is None or tokens.vocab_size is None:
            raise MgenError(
                "tokens.levels is missing: which numbers the ids stand for, such as {form: published, low: -5, high: 5, span: 3}"
            )
        super().__init__(config, tokens=tokens, width=width, extra=extra)
        values, _ = gaussian_levels(tokens.vocab_size, span=tokens.levels.span, form=tokens.levels.form)
        self.register_buffer("level_values", values)
        self.level_values: Tensor

    def data_rows(self, classes: tuple[Rows, ...] = ()) -> DataRows:
        return super().data_rows() | {
            "level_values": {0: (Rows("levels", tuple(self.level_values.shape), "computed"),)}
        }

    def numbers(self, tokens: Tensor) -> Tensor:
        levels = self.tokens.levels
        assert levels is not None
        return dequantize(tokens, self.level_values, low=levels.low, high=levels.high, span=levels.span)


class Windowed(Embedder):
    """Windows of s × s neighboring tokens as one row each (Token-Shuffle, arXiv 2504.17789): they are masked and drawn as one.

    `embedder` is of single tokens; `blocks` residual MLPs stand behind it.
    """

    windows: Windows

    def __init__(self, embedder: Embedder, windows: Windows, *, blocks: int = 2) -> None:
        super().__init__()
        self.inner, self.windows = embedder, windows
        self.tokens, self.width = embedder.tokens, embedder.width
        self.window_settings = {"side": windows.side, "blocks": blocks, "unit": "window"}
        self.join = TokenShuffle(embedder.width, windows.side, blocks=blocks)

    @property
    def settings(self) -> dict[str, object]:
        return self.inner.settings

    @property
    def token_table(self) -> nn.Embedding | None:
        return self.inner.token_table

    def table_rows(self, classes: tuple[Rows, ...] = ()) -> tuple[Rows, ...]:
        return self.inner.table_rows(classes)

    def data_rows(self, classes: tuple[Rows, ...] = ()) -> DataRows:
        return below("inner", self.inner.data_rows(classes))

    def reset_windows(self, unshuffle: TokenUnshuffle | None) -> None:
        self.join.reset_parameters()
        if unshuffle is not None:
            unshuffle.reset_parameters(self.join)

    @property
    def mask(self) -> Tensor:
        return self.join(self.inner.mask.expand(self.windows.side**2, -1))

    def forward(
        self, tokens: Tensor, known: Tensor | None = None, positions: Tensor | None = None, *, sampling: bool = False
    ) -> Tensor:
        """Windows (B, n, s²) of ids or (B, n, s²·C) of numbers, known as a whole where bool (B, n): (B, n, D)."""
        parts = self.windows.side**2
        own = tokens.unflatten(2, (parts, -1)).flatten(1, 2)  # (B, n·s², C)
        own = own.squeeze(-1) if self.tokens.kind == "index" else own
        seen = None if known is None else known.repeat_interleave(parts, dim=1)
        return self.join(self.inner(own, seen, sampling=sampling).unflatten(1, (-1, parts)))
