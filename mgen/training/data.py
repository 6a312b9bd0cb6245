"""Training data, and its order: a pure function of (seed, step), so a run resumes exactly and on any number of processes."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mgen.data import FashionMNIST, ImageData, ImageFolder, TarImages, TokenCache
from mgen.data.loading import load_batches
from mgen.data.order import FullOrder, Order, ShardOrder
from mgen.data.read_ahead import ReadAhead, ShardedData
from mgen.training.config import DataConfig, TrainConfig
from mgen.training.token_source import Batch
from mgen.utils.errors import MgenError, shown
from mgen.utils.limits import check_memory


def make_dataset(config: DataConfig, *, split: str, fingerprint: str | None = None) -> ImageData | None:
    """The data of `split`, "train" or "test"; None if there is no validation data.

    Args:
        fingerprint: of the tokenizer that a cache must be made with; None skips the check.
    """
    path = config.path if split == "train" else config.val_path
    if config.kind == "fmnist":
        return FashionMNIST(root=path if split == "train" or path else config.path, split=split)
    held_out = config.held_out
    if held_out and config.kind in ("cache", "webdataset"):
        what = "caches" if config.kind == "cache" else "tars"
        raise MgenError(
            f"data.held_out is for folders of images, not for {what}: give data.val_path, or set data.held_out=0"
        )
    if held_out and split == "test":
        path = config.path
    if path is None:
        if split == "train":
            what = "tars, or a pattern of them" if config.kind == "webdataset" else config.kind
            raise MgenError(f"data.kind={config.kind} needs data.path: give the folder of the {what}")
        return None
    if config.kind in ("folder", "webdataset"):
        side = config.image_size
        what = f"an image of data.image_size {side}"
        check_memory(
            4.0 * config.channels * side * side, what, "set it to the side of the images that the model is for"
        )
        if config.kind == "webdataset":
            return TarImages(
                path,
                image_size=config.image_size,
                channels=config.channels,
                classes=config.classes,
                num_classes=config.num_classes,
                index=config.index,
                on_error=config.on_error,
            )
        return ImageFolder(
            root=path,
            image_size=config.image_size,
            channels=config.channels,
            classes=config.classes,
            held_out=held_out,
            keep=config.keep,
            on_error=config.on_error,
            part="train" if split == "train" else "held out",
        )
    cache = TokenCache(path, fingerprint=fingerprint)
    if config.flip and split == "train" and not cache.flips:
        raise MgenError(f"data.flip is on, but {path} has no flipped views: run mgen cache with --flips")
    return cache


class BatchOrder:
    """Batches of indices for one process; the order of all images is a pure function of (seed, step), see mgen.data.order.

    Args:
        data: the images. rank, world: number of this process, and of all. start: first step; the last is that of `config`.
    """

    def __init__(self, config: TrainConfig, *, data: ImageData, rank: int, world: int, start: int) -> None:
        self.batch, self.pieces, self.stop = config.batch_size, config.accumulate, config.steps
        self.start = start
        self.size = self.batch // (self.pieces * world)
        self.first = rank * self.pieces * self.size
        self.order, self.ahead = make_order(config, data)
        if self.ahead is not None and isinstance(self.order, ShardOrder):
            if rank == 0:
                _warn_of_sorted(data)
            self.ahead.check(row // self.order.rows for row in range(self.first, self.first + self.pieces * self.size))

    def rows(self, piece: int) -> slice:
        """The rows of the whole batch that make up a piece of this process."""
        begin = self.first + piece * self.size
        return slice(begin, begin + self.size)

    def __iter__(self) -> Iterator[list[Any]]:
        try:
            for step in range(self.start, self.stop):
                for piece in range(self.pieces):
                    rows = range(self.rows(piece).start, self.rows(piece).stop)
                    if self.ahead is not None:
                        self.ahead.enter(step, rows)
                    images = [self.order.index(step, row) for row in rows]
                    yield images if self.ahead is None else self.ahead.items(images)
        finally:
            if self.ahead is not None:
                self.ahead.close()

    def __len__(self) -> int:
        return (self.stop - self.start) * self.pieces


def make_order(config: TrainConfig, data: ImageData) -> tuple[Order, ReadAhead | None]:
    """The order of the images that `config` asks for, and what reads ahead in it; MgenError if the data have no shards for it."""
    size, seed, settings = config.batch_size, config.seed, config.data
    if settings.shuffle == "full":
        if isinstance(data, TokenCache):
            data.expect_random()
        return FullOrder(len(data), batch_size=size, seed=seed), None
    if not isinstance(data, ShardedData):
        raise MgenError(
            f"data.shuffle=shards is for data in shards, data.kind={settings.kind} has none: use full, or make a cache"
        )
    order = ShardOrder(data.shard_rows, batch_size=size, seed=seed, buffer=settings.buffer, streams=settings.streams)
    return order, ReadAhead(data, order)


def _warn_of_sorted(data: ImageData) -> None:
    """Warn if all images of a class stand together: the shards of a window then hold a few of the classes."""
    labels = getattr(data, "labels", None)
    if (
        isinstance(labels, torch.Tensor)
        and len(labels) > 1
        and labels[0] != labels[-1]
        and bool((labels.diff() >= 0).all())
    ):
        warnings.warn(
            "the images are sorted by class, so with data.shuffle=shards a batch holds few classes: write the cache with --shuffle, "
            "or tars in a random order",
            stacklevel=3,
        )


def batches(dataset: ImageData, order: BatchOrder, workers: int = 0) -> Iterator[Batch]:
    """The batches of `order`; the data set itself makes whole batches, in `workers` processes if there are any."""
    return load_batches(dataset, order, workers)


class Renumbered:
    """A data set whose labels are those of the same classes in another list of names.

    Raises:
        MgenError: it has a class that the list lacks.
    """

    def __init__(self, data: ImageData, class_names: Sequence[str]) -> None:
        if unknown := [name for name in data.class_names if name not in class_names]:
            raise MgenError(
                f"data.val_path has {'classes' if len(unknown) > 1 else 'a class'} that the training data lack: {shown(unknown)}; "
                f"those are {shown(list(class_names))}: rename or remove their images"
            )
        self.data, self.class_names, self.num_classes = data, class_names, len(class_names)
        self.ids = torch.tensor([list(class_names).index(name) for name in data.class_names])

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        batch = self.data.__getitems__(indices)
        return {**batch, "label": self.ids[batch["label"]]}
