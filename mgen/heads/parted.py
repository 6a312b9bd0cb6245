"""Heads made of heads: one for each part of the tokens, or one for all tokens of a window.

Notation: B batch, M positions, D width, V codes, s² tokens of a window.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mgen.heads.categorical import CategoricalHead, DrawSettings
from mgen.heads.draws import Draws
from mgen.nn.windows import TokenUnshuffle


class PartedHead(nn.Module):
    """Categorical heads for global tokens and for those of the grid, which have codebooks of their own.

    A draw evaluates the head of the step's part alone. Settings and draws are those of CategoricalHead.
    """

    figure, ranks = "accuracy", True

    def __init__(self, heads: Sequence[CategoricalHead]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(heads)
        self.width = heads[0].width

    def check(self, settings: Mapping[str, Any], *, temperatures: Sequence[float]) -> None:
        """See CategoricalHead.check."""
        self.parts[0].check(settings, temperatures=temperatures)  # type: ignore[operator]

    def draws(self, settings: Mapping[str, Any]) -> Draws:
        """One uniform number for an id."""
        return Draws()

    def plan(self, settings: Mapping[str, Any]) -> DrawSettings:
        """What every draw of a run shares; `settings` as in DrawSettings."""
        return DrawSettings.of(settings)

    def sample(self, z: Tensor, *, part: int, **options: Any) -> tuple[Tensor, Tensor]:
        """See CategoricalHead.sample. part: 0 for global tokens, 1 for the others; one for all of z."""
        return self.parts[part].sample(z, **options)  # type: ignore[operator]

    def loss(self, z: Tensor, target: Tensor, *, part: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Cross entropy and hit of every token, both (n,), for z (n, D), target (n,) and part (n,), True outside the global ones."""
        losses, hits = z.new_zeros(target.shape, dtype=torch.float32), z.new_zeros(target.shape, dtype=torch.float32)
        for head, own in zip(self.parts, (~part, part)):
            some = head.loss(z[own], target[own], label_smoothing=label_smoothing)  # type: ignore[operator]
            losses, hits = (whole.masked_scatter(own, value) for whole, value in zip((losses, hits), some))
        return losses, hits


class WindowHead(nn.Module):
    """Ids of all tokens of a window, independent of one another given its context (Token-Shuffle, arXiv 2504.17789).

    Args:
        unshuffle: takes the context of a window apart. head: draws an id from each part.
    """

    figure, ranks = "accuracy", True

    def __init__(self, unshuffle: TokenUnshuffle, head: CategoricalHead) -> None:
        super().__init__()
        self.unshuffle, self.head = unshuffle, head
        self.width = head.width

    def check(self, settings: Mapping[str, Any], *, temperatures: Sequence[float]) -> None:
        """See CategoricalHead.check."""
        self.head.check(settings, temperatures=temperatures)

    def draws(self, settings: Mapping[str, Any]) -> Draws:
        """One uniform number for each id of a window."""
        return Draws(shape=(self.unshuffle.parts,))

    def plan(self, settings: Mapping[str, Any]) -> DrawSettings:
        """What every draw of a run shares; `settings` as in DrawSettings."""
        return self.head.plan(settings)

    def sample(self, z: Tensor, *, noise: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Draw the ids of a window at each position.

        Args:
            z: context (B, M, D), or (2B, M, D) with null rows. noise: uniform (B, M, s²), or Gumbel (B, M, s², V).
            options: plan, temperature, guidance, as in CategoricalHead.sample.

        Returns:
            ids (B, M, s²) int64, and the sum (B, M) of their log-probabilities.
        """
        ids, score = self.head.sample(self.unshuffle(z).flatten(1, 2), noise=noise.flatten(1, 2), **options)
        parts = (-1, self.unshuffle.parts)
        return ids.unflatten(1, parts), score.unflatten(1, parts).sum(-1)

    def loss(self, z: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Cross entropy and share of right guesses, means over a window, both (…,), for z (…, D) and target (…, s²)."""
        losses, hits = self.head.loss(self.unshuffle(z), target, label_smoothing=label_smoothing)
        return losses.mean(-1), hits.mean(-1)
