"""The order of samples: a pure function of (seed, step), so a run resumes exactly and on any number of processes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from mgen.data import FashionMNIST, ImageFolder, TokenCache
from mgen.training.config import DataConfig
from mgen.utils import seeds
from mgen.utils.errors import MgenError


def make_dataset(config: DataConfig, *, split: str, fingerprint: str | None = None) -> Any:
    """The training ("train") or validation ("test") data; None if no validation data is named."""
    path = config.path if split == "train" else config.val_path
    if config.kind == "fmnist":
        return FashionMNIST(root=path if split == "train" or path else config.path, split=split)
    if path is None:
        if split == "train":
            raise MgenError(f"data.kind={config.kind} needs data.path: the folder of the {config.kind}")
        return None
    if config.kind == "folder":
        return ImageFolder(root=path, image_size=config.image_size, channels=config.channels)
    cache = TokenCache(path, fingerprint=fingerprint)
    if config.flip and split == "train" and not cache.flips:
        raise MgenError(f"data.flip is on but {path} stores no flipped views: run mgen cache with --flips")
    return cache


class BatchOrder:
    """Batches of indices for one process: every epoch is a permutation, epochs follow each other without a gap."""

    def __init__(self, *, count: int, batch: int, pieces: int, rank: int, world: int, seed: int, start: int, stop: int):
        if batch % (pieces * world):
            raise MgenError(f"batch_size {batch} is not a multiple of accumulate × processes = {pieces} × {world}")
        self.count, self.batch, self.pieces, self.seed = count, batch, pieces, seed
        self.start, self.stop = start, stop
        self.size = batch // (pieces * world)
        self.first = rank * pieces * self.size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def index(self, position: int) -> int:
        """The sample at this place of the endless sequence of epochs."""
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            self._order = torch.randperm(self.count, generator=seeds.generator(self.seed, "order", epoch))
            self._epoch = epoch
        return int(self._order[place])

    def rows(self, piece: int) -> slice:
        """Which rows of the whole batch make this process's piece."""
        begin = self.first + piece * self.size
        return slice(begin, begin + self.size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            for piece in range(self.pieces):
                rows = self.rows(piece)
                yield [self.index(step * self.batch + row) for row in range(rows.start, rows.stop)]

    def __len__(self) -> int:
        return (self.stop - self.start) * self.pieces


def batches(dataset: Any, order: BatchOrder, workers: int = 0) -> DataLoader:
    """Loader over `order`; the data set makes whole batches itself."""
    return DataLoader(
        dataset, batch_sampler=order, collate_fn=_same, num_workers=workers, persistent_workers=workers > 0
    )  # type: ignore[arg-type]


def _same(batch: Any) -> Any:
    return batch
