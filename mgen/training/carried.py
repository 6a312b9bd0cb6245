"""The features of a simulated earlier step, of generators that carry them from step to step (ENAT)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mgen.generators import Generator
from mgen.generators.trunks.enat import ENAT
from mgen.nn.cache import Cache


class EncodeFeatures(nn.Module):
    """A generator's feature encoding as the forward of a module, so that it can run with other weights."""

    def __init__(self, model: Generator) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, class_ids: Tensor, known: Tensor) -> Cache:
        trunk = self.model.trunk
        assert isinstance(trunk, ENAT)
        return trunk.encode_features(self.model.rows(tokens, known), self.model.classes(class_ids))


@torch.no_grad()
def encode_features(
    model: Generator, tokens: Tensor, class_ids: Tensor, known: Tensor, weights: Mapping[str, Tensor] | None = None
) -> Cache:
    """The features of a step in which `known` (B, L) was known, without dropout; `weights` "model.NAME" → tensor replace the model's."""
    training = model.training
    model.eval()
    try:
        return functional_call(EncodeFeatures(model), dict(weights or {}), (tokens, class_ids, known))
    finally:
        model.train(training)
