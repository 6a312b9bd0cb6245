"""What every masked generator has: a token spec, a null class or none, `context`, `head`, and a training forward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mgen.errors import MgenError
from mgen.layers.memory import Local, Memory
from mgen.modeling import Model
from mgen.tokens import TokenSpec


class Generator(Model):
    """Base of the masked generators. Notation: B batch, L tokens, M asked positions, D width.

    Subclasses set `head` and define `spec`, `null_class` and `context`.
    """

    head: Any

    @property
    def spec(self) -> TokenSpec:
        """The tokens this generator takes and makes."""
        raise NotImplementedError

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

    def mask_draws(self, rank: Tensor, known: Tensor) -> dict[str, Tensor]:
        """More arguments of the training forward, from the rank (B, L) of every token in the permutation that made the mask."""
        return {}

    staged = False  # whether a sampler draws pivots first (`first`, `second`, `pivot_spec`; see HiMAR)
    carries = False  # whether full evaluations read features of the evaluation before (the null rows must then see all of them)

    def forward(
        self, tokens: Tensor, condition: Tensor, known: Tensor, *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Training: loss and hit (0 or 1) of every masked token, both (number of masked tokens,)."""
        z = self.context(tokens, known, condition)
        return self.head.loss(z[~known], tokens[~known], label_smoothing=label_smoothing)


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
