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

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def map_tensors(change: Callable[[Tensor], Tensor], noise: T) -> T:
    """A copy of the dataclass `noise`, and of the dataclasses inside it, with every tensor changed."""
    changed: dict[str, object] = {}
    for field in dataclasses.fields(noise):
        value = getattr(noise, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = change(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed[field.name] = map_tensors(change, value)
    return dataclasses.replace(noise, **changed)


def stack(images: Sequence[T]) -> T:
    """One dataclass for a batch from one for each image; fields that are None stay None."""
    first = images[0]
    stacked: dict[str, object] = {}
    for field in dataclasses.fields(first):
        values = [getattr(image, field.name) for image in images]
        if isinstance(values[0], Tensor):
            stacked[field.name] = torch.stack(values)
        elif dataclasses.is_dataclass(values[0]) and not isinstance(values[0], type):
            stacked[field.name] = stack(values)
    return dataclasses.replace(first, **stacked)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Base: random tensors of a batch; row i of each belongs to image i."""

    def rows(self, rows: slice) -> Self:
        """The noise of some images of the batch."""
        return map_tensors(lambda value: value[rows], self)

    def to(self, device: torch.device) -> Self:
        """The same noise on `device`."""
        return map_tensors(lambda value: value.to(device, non_blocking=True), self)


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
    """Random changes of the training images. Evaluation uses the default: none.

    Args:
        flip: horizontal flips, each with probability 1/2. shift: largest shift in pixels, in both directions.
    """

    flip: bool = False
    shift: int = 0

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
