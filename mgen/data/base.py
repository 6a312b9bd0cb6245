"""The contract of data sets of images, and what all of them share."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor
from tqdm import tqdm


@runtime_checkable
class ImageData(Protocol):
    """Images with classes, or what a cache holds in place of images, read in batches by index."""

    num_classes: int
    class_names: Sequence[str]  # in the order of the labels

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch: "image" (B, C, H, W) float in [-1, 1] and "label" (B,) int64."""
        ...


@runtime_checkable
class StampedData(ImageData, Protocol):
    """Images that a cache can be made of: it notices when they change."""

    def stamp(self, rows: range) -> str:
        """A digest of what these images and their labels are, without reading large files."""
        ...


def spread_batches(data: ImageData, most: int, batch_size: int, *, progress: bool = True) -> Iterator[Tensor]:
    """Batches (B, C, H, W) of up to `most` images, evenly spread over the data."""
    rows = range(0, len(data), max(1, len(data) // most))[:most]
    for start in tqdm(range(0, len(rows), batch_size), unit="batch", desc="measuring", disable=not progress):
        yield data.__getitems__(rows[start : start + batch_size])["image"]
