"""The features of a finished pass, read from its shards in the order of the images."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mgen.evaluation.feature_files import SHARD, shard_file
from mgen.evaluation.statistics import FeatureSums
from mgen.utils.errors import MgenError
from mgen.utils.files import atomic_path


class Measured:
    """The shards of a finished pass, rows in the order of the images. Methods need the memory of one shard unless stated otherwise."""

    def __init__(self, folder: Path, count: int, temporary: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self.folder, self.count, self._temporary = folder, count, temporary
        self.files = [shard_file(folder, start) for start in range(0, count, SHARD)]
        if missing := [file for file in self.files if not file.is_file()]:
            raise MgenError(
                f"{missing[0].name} is missing in {folder}: rerun the same command (processes on several machines must share this folder)"
            )
        self.names: set[str] = set()
        if self.files:
            with safe_open(str(self.files[0]), framework="pt") as first:
                self.names = set(first.keys())
        self._sums: dict[str, FeatureSums] = {}

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Rows of `name` (features, logits, spatial, original, labels, guesses, column.NAME), shard by shard."""
        for file in self.files:
            with safe_open(str(file), framework="pt") as shard:
                yield shard.get_tensor(name)

    def rows(self, name: str) -> Tensor:
        """All rows at once: (N, …)."""
        return torch.cat(list(self.blocks(name)))

    def total(self, name: str) -> Tensor:
        """A quantity summed over batches, float64."""
        return torch.stack(list(self.blocks(f"total.{name}"))).sum(0)

    def sums(self, name: str = "features") -> FeatureSums:
        """Sums of features, in float64, that give their mean and covariance."""
        if name not in self._sums:
            sums = FeatureSums(next(self.blocks(name)).shape[1])
            for block in self.blocks(name):
                sums.update(block)
            self._sums[name] = sums
        return self._sums[name]

    def mapped(self, name: str) -> Tensor:
        """All rows (N, F) in float32, memory-mapped from a file."""
        file = self.folder / f"{name}.f32"
        if not file.is_file():
            with atomic_path(file) as path, open(path, "wb") as out:
                for block in self.blocks(name):
                    out.write(block.float().numpy().tobytes())
        width = next(self.blocks(name)).shape[1]
        return torch.from_file(str(file), shared=False, size=self.count * width).view(self.count, width)

    def spread(self, count: int) -> Tensor:
        """Features (M, F) of at most `count` images, evenly spread over all."""
        rows = torch.arange(min(count, self.count)) * self.count // min(count, self.count)
        return torch.cat([block[rows[rows // SHARD == i] % SHARD] for i, block in enumerate(self.blocks("features"))])

    def examples(self) -> tuple[Tensor, Tensor]:
        """The images kept for a grid, uint8 (n, C, H, W), and their labels (n,)."""
        images, labels = [], []
        for file in self.files:
            with safe_open(str(file), framework="pt") as shard:
                if "examples" in shard.keys():
                    images.append(shard.get_tensor("examples"))
                    labels.append(shard.get_tensor("example_labels"))
        return torch.cat(images), torch.cat(labels)
