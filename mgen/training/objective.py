"""Objectives: a model, the noise of a step, and the loss they make, as one module (so that DDP and autocast see it).

The noise is made for the whole batch and cut into pieces (see `mgen.training.noise`). Each piece is weighted by its share of
the masked tokens, so any cut of a batch gives the same gradient up to the order of summation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mgen.training.companions import Companions
from mgen.training.noise import Augmentation, Noise
from mgen.training.token_source import Batch
from mgen.utils.modeling import Model

Logs = dict[str, Tensor]
N = TypeVar("N", bound=Noise)


class Compared(NamedTuple):
    """What the discriminator compares after a step of the tokenizer: images (B, C, H, W), and the noise of its crops."""

    real: Tensor
    fake: Tensor
    crop: Tensor | None


class StepOutput(NamedTuple):
    """The loss of a piece of the batch, values to log, and what the discriminator compares. A tuple, which DDP and autocast
    can look into."""

    loss: Tensor
    logs: Logs
    compared: Compared | None = None


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What a step depends on besides its batch and noise."""

    adversarial: bool = False  # whether the discriminator takes part; for tokenizers
    adversarial_factor: Tensor | None = None  # its adaptive weight, of a batch in pieces; None: this batch is whole
    # "model.NAME" → EMA weight, which encode the features of an earlier step; for generators that carry them
    ema_weights: Mapping[str, Tensor] | None = None


DEFAULT_OPTIONS = StepOptions()


class Objective(nn.Module, Generic[N]):
    """Base of the objectives: `model` is the network that is trained, `companions` are those beside it."""

    def __init__(self, model: Model, companions: Companions | None = None) -> None:
        super().__init__()
        self.model = model
        self.companions = companions or Companions()

    def make_noise(self, count: int, rng: torch.Generator, *, augmentation: Augmentation, step: int = 0) -> N:
        """The noise for `count` images in one step of the optimizer."""
        raise NotImplementedError

    def add_row_noise(self, noise: N, rows: slice, *seed: int | str, device: torch.device | str = "cpu") -> N:
        """The noise of these rows with what is too large to be made for the whole batch, drawn on `device`.

        Each row is made from a seed of its own, so any cut of the batch gives the same.
        """
        return noise

    def share(self, piece: N, whole: N) -> float:
        """Weight of a piece of the batch, relative to a piece of average size, in the mean over the whole batch."""
        return 1.0

    def forward(self, batch: Batch, noise: N, options: StepOptions = DEFAULT_OPTIONS) -> StepOutput:
        """The loss of a batch, a mean over its images or masked tokens."""
        raise NotImplementedError
