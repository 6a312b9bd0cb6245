"""Training data, and its order: a pure function of (seed, step), so a run resumes exactly and on any number of processes."""

from collections.abc import Iterator, Sequence

import torch

from mgen.data import FashionMNIST, ImageData, ImageFolder, TokenCache
from mgen.data.loading import load_batches
from mgen.training.config import DataConfig, TrainConfig
from mgen.training.token_source import Batch
from mgen.utils import seeds
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
