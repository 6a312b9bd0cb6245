"""Training data, and its order: a pure function of (seed, step), so a run resumes exactly and on any number of processes."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import DataLoader

from mgen.data import FashionMNIST, ImageData, ImageFolder, TokenCache
from mgen.training.config import DataConfig, TrainConfig
from mgen.training.token_source import Batch
from mgen.utils import seeds
from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.limits import check_memory

T = TypeVar("T")


def make_dataset(config: DataConfig, *, split: str, fingerprint: str | None = None) -> ImageData | None:
    """The data of `split`, "train" or "test"; None if there is no validation data.

    Args:
        fingerprint: of the tokenizer that a cache must be made with; None skips the check.
    """
    path = config.path if split == "train" else config.val_path
    if config.kind == "fmnist":
        return FashionMNIST(root=path if split == "train" or path else config.path, split=split)
    held_out = 0.0 if config.val_path else config.held_out
    if held_out and config.kind == "cache":
        raise MgenError("data.held_out is for folders of images, not for caches: give data.val_path, or leave it out")
    if held_out and split == "test":
        path = config.path
    if path is None:
        if split == "train":
            raise MgenError(f"data.kind={config.kind} needs data.path: give the folder of the {config.kind}")
        return None
    if config.kind == "folder":
        side = config.image_size
        what = f"an image of data.image_size {side}"
        check_memory(
            4.0 * config.channels * side * side, what, "set it to the side of the images that the model is for"
        )
        return ImageFolder(
            root=path,
            image_size=config.image_size,
            channels=config.channels,
            classes=config.classes,
            held_out=held_out,
            keep=config.keep,
            part="train" if split == "train" else "held out",
        )
    cache = TokenCache(path, fingerprint=fingerprint)
    if config.flip and split == "train" and not cache.flips:
        raise MgenError(f"data.flip is on, but {path} has no flipped views: run mgen cache with --flips")
    return cache


class BatchOrder:
    """Batches of indices for one process. Every epoch is a permutation, and epochs follow each other without a gap.

    Args:
        count: images of the data. rank, world: number of this process, and of all. start: first step; the last is that of `config`.
    """

    def __init__(self, config: TrainConfig, *, count: int, rank: int, world: int, start: int) -> None:
        self.batch, self.pieces, self.seed, self.stop = config.batch_size, config.accumulate, config.seed, config.steps
        self.count, self.start = count, start
        self.size = self.batch // (self.pieces * world)
        self.first = rank * self.pieces * self.size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def index(self, position: int) -> int:
        """The image at this position of the endless sequence of epochs."""
        epoch, index = divmod(position, self.count)
        if epoch != self._epoch:
            self._order = torch.randperm(self.count, generator=seeds.generator(self.seed, "order", epoch))
            self._epoch = epoch
        return int(self._order[index])

    def rows(self, piece: int) -> slice:
        """The rows of the whole batch that make up a piece of this process."""
        begin = self.first + piece * self.size
        return slice(begin, begin + self.size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            for piece in range(self.pieces):
                rows = self.rows(piece)
                yield [self.index(step * self.batch + row) for row in range(rows.start, rows.stop)]

    def __len__(self) -> int:
        return (self.stop - self.start) * self.pieces


def batches(dataset: ImageData, order: BatchOrder, workers: int = 0) -> Iterator[Batch]:
    """The batches of `order`; the data set itself makes whole batches, in `workers` processes if there are any."""
    loader: DataLoader[Batch | MgenError] = DataLoader(
        _Told(dataset),  # type: ignore[arg-type]  # torch asks for __getitem__, but uses __getitems__ alone
        batch_sampler=order,
        collate_fn=_identity,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_own_group if workers else None,
    )
    try:
        for batch in loader:
            if isinstance(batch, MgenError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MgenError(
            f"a process that reads the data has ended ({first_line(error)}): give it more memory, or set data.workers to fewer"
        ) from error


class _Told:
    """A data set whose errors arrive as they are; a loader process would wrap them into a trace."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: Sequence[int]) -> Batch | MgenError:
        try:
            return self.data.__getitems__(indices)
        except MgenError as error:
            return error


def _own_group(worker: int) -> None:
    """Let a Ctrl-C, or a signal to the group of the run, pass by a loader process: the run needs it for the last step."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)


def _identity(batch: T) -> T:
    return batch


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
