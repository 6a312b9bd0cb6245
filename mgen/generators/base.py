"""What every masked generator has: a token spec, a null class or none, `context`, `head`, and a training forward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mgen.heads import CategoricalHead, PartedHead, WindowHead
from mgen.nn.memory import Local, Memory, span
from mgen.nn.windows import TokenShuffle, TokenUnshuffle, Windows
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.modeling import Model


class Generator(Model):
    """Base of the generators. Notation: B batch, L tokens, M asked positions, D width.

    Subclasses set `head` and define `spec`, `null_class` and `context`. Where windows of tokens are masked and drawn as one
    (`unit`), "token" below is a window: L of them, each of s² ids or s²·C numbers.
    """

    head: Any
    windows: Any = None  # the layout of Token-Shuffle (Windows), of trunks that know it

    @property
    def spec(self) -> TokenSpec:
        """The tokens this generator takes and makes."""
        raise NotImplementedError

    @property
    def unit_spec(self) -> TokenSpec:
        """The tokens as they are masked and drawn: those of `spec`, or windows of them."""
        return self.spec if self.unit is None else self.unit.spec(self.spec)

    @property
    def unit(self) -> Windows | None:
        """The windows that are masked and drawn as one (Token-Shuffle); None: tokens are masked and drawn one by one."""
        return self.windows if self.windows is not None and self.windows.side > 1 else None

    @property
    def null_class(self) -> int | None:
        """Class id that stands for "no class", or None if the generator was made without one."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Classes to choose from; an unconditional model has one, 0, that stands for everything."""
        return max(1, self.config.num_classes)

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
        """Context vectors for the head: a full evaluation.

        Args:
            tokens: ids (B, L) int64, or vectors (B, L, C); whatever stands where `known` is False is ignored.
            known: bool (B, L), True where the token is given.
            condition: class ids (B,) int64.
            positions: int64 (B, M), the positions wanted; None for all.
            visible: fewest and most known tokens of a row, where the caller knows them; saves reading them back from a GPU.
            memory: of the run, made by `memory`; where it says `keep`, keys and values are stored for `local`.

        Returns:
            (B, M, D), or (B, L, D).
        """
        raise NotImplementedError

    def local(self, tokens: Tensor, condition: Tensor, memory: Memory, step: Local) -> Tensor:
        """Context of the asked positions of a group, of which alone the rows are computed anew (ReCAP, arXiv 2505.19089, §3).

        Args:
            tokens, condition: as in `context`; `condition` may be the first rows of that of the full evaluation.
            memory: with the keys and values of the full evaluation, which are overwritten. step: see Local.

        Returns:
            (B, asked, D).
        """
        raise MgenError(f"{type(self).__name__} has no local evaluation: use a sampler without reuse")

    @property
    def evaluates_locally(self) -> bool:
        """Whether there is a `local`."""
        return type(self).local is not Generator.local

    def memory(self, condition: Tensor) -> Memory:
        """An empty memory for a run on images of these classes (B,), with what depends on the class alone."""
        return Memory()

    def lay_out(self, rows: int) -> None:
        """Get ready for many evaluations on `rows` rows at a time (images, twice with guidance); the same function, only faster."""

    def mask_draws(self, rank: Tensor, known: Tensor) -> dict[str, Tensor]:
        """More arguments of the training forward, from the rank (B, L) of every token in the permutation that made the mask."""
        return {}

    staged = False  # whether a sampler draws pivots first (`first`, `second`, `pivot_spec`; see HiMAR)
    causal = False  # whether tokens are drawn one after the other, each from those before it alone
    carries = False  # whether full evaluations read features of the evaluation before (the null rows must then see all of them)

    def forward(
        self, tokens: Tensor, condition: Tensor, known: Tensor, *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Training: loss and hit (0 or 1) of every masked token, both (number of masked tokens,)."""
        z = self.context(tokens, known, condition)
        return self.masked_loss(z, tokens, known, label_smoothing=label_smoothing)

    def masked_loss(self, z: Tensor, tokens: Tensor, known: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """The head's loss and figure at the masked places of z (B, L, D), flat.

        With S global tokens among L the loss is theirs times L / S, and that of the others times L / (L − S): where all are
        masked its mean is the sum of the two means (Hita, arXiv 2507.02358).
        """
        masked = ~known
        if not (s := self.spec.global_tokens):
            return self.head.loss(z[masked], tokens[masked], **options)
        length, part = self.spec.length, (span(self.spec.length, known) >= s)[masked]
        losses, hits = self.head.loss(z[masked], tokens[masked], part=part, **options)
        return losses * torch.where(part, length / (length - s), length / s), hits

    def joint_ids(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Ids (B, N) at positions (B, N), None for all, as rows of a table that holds the codes of both parts, global ones first."""
        if not (global_tokens := self.spec.global_tokens):
            return tokens
        positions = span(tokens.shape[1], tokens) if positions is None else positions
        assert self.spec.vocab_size is not None
        return tokens + self.spec.vocab_size * (positions >= global_tokens)


def check_unit(shuffle: int, mask_unit: str, *, units: tuple[str, ...] = ("window",), name: str) -> None:
    """MgenError unless a trunk that masks by `units` takes this one: caches and dropped tokens need windows that are all known or not."""
    if check_choice("mask_unit", mask_unit, ("token", "window")) not in units and shuffle != 1:
        raise MgenError(
            f"mask_unit {mask_unit!r}: {name} leaves unknown tokens out or keeps keys and values of known ones, so a window of "
            "Token-Shuffle must be known or unknown as a whole: use mask_unit window"
        )


def id_head(*, codes: int, global_tokens: int = 0, shuffle: int = 1, blocks: int = 0, **settings: Any) -> Any:
    """A categorical head; one for each part of the tokens where some are global; or one for all ids of a window.

    Args:
        codes: of each part; the table of `settings` holds those of global tokens first.
        shuffle: side of the windows. blocks: of TokenUnshuffle. settings: of CategoricalHead.
    """
    if global_tokens:
        return PartedHead([CategoricalHead(codes=codes, first=first, **settings) for first in (0, codes)])
    head = CategoricalHead(codes=codes, **settings)
    return head if shuffle == 1 else WindowHead(TokenUnshuffle(head.width, shuffle, blocks=blocks), head)


def reset_windows(join: TokenShuffle, head: Any) -> None:
    """Initial values of a trunk's shuffle and, where both have the same width, its transpose in the head."""
    join.reset_parameters()
    if isinstance(head, WindowHead):
        head.unshuffle.reset_parameters(join)


def count_known(known: Tensor) -> tuple[int, int]:
    """Fewest and most known tokens of a row of known (B, L); reads them back from the device."""
    counts = known.sum(1)
    fewest, most = torch.stack([counts.amin(), counts.amax()]).tolist()
    return fewest, most


def initialise(module: nn.Module, embedding: Callable[..., Any] = nn.init.normal_) -> None:
    """Official initial values: linear layers truncated normal, std 0.02, biases 0; embeddings by `embedding`, std 0.02."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        embedding(module.weight, std=0.02)
