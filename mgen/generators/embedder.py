"""The contract of embedders: tokens → rows of the trunk's width. An embedder knows nothing of attention or of heads.

Who calls what: `Generator` wraps the tokens of a pass in `TokenRows`, the trunk asks it for the rows it reads, and `TokenRows`
calls the embedder. A head that is tied to the token table gets `Embedder.token_table`.

Notation: B batch, n positions, L positions of an image, C channels of a token, D width.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mgen.nn import Entities, TokenUnshuffle, take
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.registry import Configured, Registry

EMBEDDERS: Registry["Embedder"] = Registry("embedder", "mgen.generators.embedders")
register_embedder = EMBEDDERS.register


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """Rows that a token table has behind those of the ids: of `classes` that share it (BERT, MAGE), then a `mask`, "no token yet"."""

    classes: int = 0
    mask: bool = False


class Embedder(nn.Module, Configured):
    """Base of the embedders. The constructor takes (config, tokens, width, extra: TableRows).

    Attributes:
        kind: of tokens that it takes. tokens: these. width: D.
        windows: layout of windows that are masked and drawn as one, None for single tokens.
        window_settings: the `windows` section of the configuration, None without windows.
    """

    kind: ClassVar[str]
    tokens: TokenSpec
    width: int
    windows: Entities | None = None
    window_settings: dict[str, object] | None = None

    @property
    def token_table(self) -> nn.Embedding | None:
        """The table of ids that a head can be tied to, None if there is none."""
        return None

    def table_rows(self, classes: tuple[Rows, ...] = ()) -> tuple[Rows, ...]:
        """What the rows of `token_table` stand for; `classes`: those of classes that share it."""
        return ()

    def data_rows(self, classes: tuple[Rows, ...] = ()) -> DataRows:
        """See Model.data_rows; `classes` as for `table_rows`."""
        return {}

    @property
    def units(self) -> TokenSpec:
        """What is masked and drawn as one: the tokens, or windows of them."""
        return self.tokens if self.windows is None else self.windows.spec(self.tokens)

    @property
    def mask(self) -> Tensor:
        """The row (D,) that stands for a token that is not known yet; MgenError if the embedder was built without one."""
        raise MgenError(f"{type(self).__name__} was built without a mask row: the trunk has one of its own")

    def reset_windows(self, unshuffle: TokenUnshuffle | None) -> None:
        """Initial values of what joins windows, and of its counterpart in the head; nothing without windows."""

    def forward(
        self, tokens: Tensor, known: Tensor | None = None, positions: Tensor | None = None, *, sampling: bool = False
    ) -> Tensor:
        """Rows (B, n, D) without positions.

        Args:
            tokens: ids (B, n), vectors (B, n, C) or ids (B, n, C); whatever stands where `known` is False is ignored.
            known: bool (B, n), False where the mask row is wanted; None: all are known.
            positions: where the tokens stand, int64 (B, n); None: 0 … n − 1. Matters only for tokens with two codebooks.
            sampling: False in training (one published sampler looks an id up differently, see `Lookup`).
        """
        raise NotImplementedError


@dataclass(frozen=True)
class TokenRows:
    """The tokens (B, L) or (B, L, C) of one forward pass, known where bool (B, L), embedded where and when the trunk asks."""

    embedder: Embedder
    tokens: Tensor
    known: Tensor
    sampling: bool = False

    def masked(self) -> Tensor:
        """All rows (B, L, D), the mask row where a token is unknown."""
        return self.embedder(self.tokens, self.known, sampling=self.sampling)

    def at(self, positions: Tensor, known: Tensor | None = None) -> Tensor:
        """Rows (B, n, D) of the tokens at positions (B, n); the mask row where bool `known` (B, n) is False."""
        return self.embedder(take(self.tokens, positions), known, positions, sampling=self.sampling)

    def span(self, first: int, stop: int) -> Tensor:
        """Rows (B, stop − first, D) of the tokens first … stop − 1, all known."""
        positions = None
        if self.embedder.tokens.global_tokens:
            positions = torch.arange(first, stop, device=self.tokens.device).expand(len(self.tokens), -1)
        return self.embedder(self.tokens[:, first:stop], None, positions, sampling=self.sampling)
