"""The contract of data sets of images, and what all of them share."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor
from tqdm import tqdm


class ImageData(Protocol):
    """Images with classes, read in batches by index.

    Attributes:
        num_classes: number of classes. class_names: their names, in the order of the labels.
    """

    num_classes: int
    class_names: Sequence[str]

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch: "image" (B, C, H, W) float in [-1, 1] and "label" (B,) int64."""
        ...


def spread_batches(data: ImageData, most: int, batch_size: int) -> Iterator[Tensor]:
    """Batches (B, C, H, W) of up to `most` images, evenly spread over the data."""
    rows = range(0, len(data), max(1, len(data) // most))[:most]
    for start in tqdm(range(0, len(rows), batch_size), unit="batch", desc="measuring"):
        yield data.__getitems__(rows[start : start + batch_size])["image"]
