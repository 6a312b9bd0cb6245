"""A data set in a random order, in which a cache can be written: shards that are read one after another then hold images of all classes."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from mgen.data.base import StampedData
from mgen.data.record import DataRecord, record_of
from mgen.utils import seeds


class Shuffled:
    """The images of `data` in an order that follows from their number alone."""

    def __init__(self, data: StampedData) -> None:
        self.data, self.num_classes, self.class_names = data, data.num_classes, data.class_names
        self.order: list[int] = torch.randperm(len(data), generator=seeds.generator("order of a cache")).tolist()

    @property
    def record(self) -> DataRecord | None:
        """Of the same images in their own order."""
        return record_of(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch of the images at these places of the order."""
        return self.data.__getitems__([self.order[i] for i in indices])

    def stamp(self, rows: range) -> str:
        """A digest of the images at these places."""
        digest = hashlib.sha256()
        for i in self.order[rows.start : rows.stop]:
            digest.update(self.data.stamp(range(i, i + 1)).encode())
        return digest.hexdigest()
