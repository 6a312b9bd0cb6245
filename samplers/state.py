"""The state of a run. Notation: B images, L positions, M of them drawn in a step, D width of a context vector."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mgen.nn.attention import put
from mgen.nn.cache import Cache
from mgen.samplers.condition import Difference


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that changes during a run. Tensors are written in place: a batch of images is not copied in every step.

    Args:
        tokens: ids (B, L) or (B, L, C), or vectors (B, L, C). known: bool (B, L), tokens that are revealed.
        given: bool (B, L), tokens that were known at the start and never change.
        class_ids: (2B,), the images' classes, then as many null classes. cache: what the trunk keeps between steps.
        difference: what the null class changes in the context, where it is kept (mgen.samplers.condition).
        features: (B, L, D), the context of every token at the step that revealed it, for a second stage, or (2B, L, D) with that of a
            guide behind; None: not collected.
        confidence: (B, L), the probability of every token when it was drawn; priority: (B, L), the first to be revealed highest; both
            for remasking, where it reads them (mgen.samplers.remask_order).
    """

    tokens: Tensor
    known: Tensor
    given: Tensor
    class_ids: Tensor
    cache: Cache
    difference: Difference
    features: Tensor | None = None
    confidence: Tensor | None = None
    priority: Tensor | None = None

    def unknown(self, stop: int, count: int) -> Tensor:
        """The first `count` unknown positions before `stop`, ascending (B, count); rows with fewer are filled up with others."""
        known = self.known
        if stop < known.shape[1]:
            known = known.clone()
            known[:, stop:] = True
        return known.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]

    def reveal(self, positions: Tensor, drawn: Tensor, shown: Tensor) -> "State":
        """Write drawn (B, M) or (B, M, C) at positions (B, M) where shown (B, M), and mark them as known."""
        put(self.tokens, positions, drawn, shown)
        self.known.scatter_(1, positions, shown | self.known.gather(1, positions))
        return self

    def take_back(self, taken: Tensor) -> "State":
        """Mark tokens, bool (B, L), as unknown."""
        self.known.logical_and_(~taken)
        return self

    def collect(self, positions: Tensor, context: Tensor, shown: Tensor) -> "State":
        """Keep the context vectors (B, M, D), or (2B, M, D), of what is revealed."""
        features, times = self.features, len(context) // len(self.known)
        if features is None:
            features = context.new_zeros(len(context), self.known.shape[1], context.shape[-1])
        put(features, positions.repeat(times, 1), context, shown.repeat(times, 1))
        return replace(self, features=features)
