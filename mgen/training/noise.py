"""The random numbers of a training step: what they are, how they are cut into pieces and moved.

They are made for the whole batch of all processes from (seed, step) and cut into pieces afterwards. One process, several
processes and gradient accumulation therefore train on the same masks, label drops and flips.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

import torch
from torch import Tensor

from mgen.tokenizers.corruption import Corruption

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def combine(change: Callable[[list[Tensor]], Tensor], noises: Sequence[T]) -> T:
    """One dataclass from several: each tensor is made from those of the same field, also in dataclasses inside; None stays None."""
    changed: dict[str, object] = {}
    for field in dataclasses.fields(noises[0]):
        values = [getattr(noise, field.name) for noise in noises]
        if isinstance(values[0], Tensor):
            changed[field.name] = change(values)
        elif dataclasses.is_dataclass(values[0]):
            changed[field.name] = combine(change, values)
    return dataclasses.replace(noises[0], **changed)


def map_tensors(change: Callable[[Tensor], Tensor], noise: T) -> T:
    """A copy of the dataclass `noise`, and of the dataclasses inside it, with every tensor changed."""
    return combine(lambda values: change(values[0]), [noise])


def stack(images: Sequence[T]) -> T:
    """One dataclass for a batch from one for each image."""
    return combine(torch.stack, images)


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`. To a GPU it is copied from pinned memory, while both go on: from other memory this would wait."""
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Base: random tensors of a batch; row i of each belongs to image i."""

    def rows(self, rows: slice) -> Self:
        """The noise of some images of the batch."""
        return map_tensors(lambda value: value[rows], self)

    def to(self, device: torch.device) -> Self:
        """The same noise on `device`."""
        return map_tensors(lambda value: to_device(value, device), self)


@dataclass(frozen=True, kw_only=True)
class AugmentationNoise(Noise):
    """How each image is augmented; None: not at all."""

    flip: Tensor | None = None  # bool (B,), True: mirrored left to right
    shift: Tensor | None = None  # int64 (B, 2), pixels down and to the right that the window moves

    def apply(self, images: Tensor) -> Tensor:
        """Flipped and shifted images (B, C, H, W); uncovered pixels repeat the border."""
        if self.flip is not None:
            images = torch.where(self.flip.view(-1, 1, 1, 1), images.flip(-1), images)
        if self.shift is not None:
            side = torch.arange(images.shape[-1], device=images.device)
            rows = (side + self.shift[:, :1]).clamp(0, images.shape[-2] - 1)  # (B, H)
            columns = (side + self.shift[:, 1:]).clamp(0, images.shape[-1] - 1)  # (B, W)
            b = torch.arange(len(images), device=images.device).view(-1, 1, 1)
            images = images[b, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)  # (B, C, H, W)
        return images


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the training images. Evaluation uses the default: none."""

    flip: bool = False  # horizontal flips, each with probability 1/2
    shift: int = 0  # largest shift in pixels, in both directions

    def make_noise(self, count: int, rng: torch.Generator) -> AugmentationNoise:
        """Which of `count` images are flipped, and how far each is shifted."""
        return AugmentationNoise(
            flip=torch.rand(count, generator=rng) < 0.5 if self.flip else None,
            shift=torch.randint(-self.shift, self.shift + 1, (count, 2), generator=rng) if self.shift else None,
        )


@dataclass(frozen=True, kw_only=True)
class ClassifierNoise(Noise):
    """Of a step of classifier training."""

    augmentation: AugmentationNoise


@dataclass(frozen=True, kw_only=True)
class TokenizerNoise(Noise):
    """Of a step of tokenizer training."""

    augmentation: AugmentationNoise
    posterior: Tensor | None = None  # (B, c, h, w), of a tokenizer that samples its posterior
    crop: Tensor | None = None  # (B, 3, …), of a discriminator that looks at crops
    corruption: Corruption | None = None  # of the latents
