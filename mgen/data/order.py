"""The order of the images of a training: which one stands in row r of the batch of step s. A pure function of the seed and these two.

`FullOrder`: every epoch is a random permutation of all images. `ShardOrder`: every epoch takes the shards in a random order and the images
of each as they stand, and shuffles them within windows of `buffer` images; so shards can be read one after another, from slow disks or a
network, and images of a window are in memory when their batch comes. Neither depends on the number of processes, and any batch can be
computed without those before it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from mgen.utils import seeds
from mgen.utils.errors import MgenError


class Order(Protocol):
    """Rows of batches as images."""

    def index(self, step: int, row: int) -> int:
        """The image in this row of the batch of this step."""
        ...


class FullOrder:
    """Epochs are permutations of all `count` images and follow each other without a gap."""

    def __init__(self, count: int, *, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def index(self, step: int, row: int) -> int:
        """The image in this row of the batch of this step."""
        epoch, place = divmod(step * self.batch_size + row, self.count)
        if epoch != self._epoch:
            self._order = torch.randperm(self.count, generator=seeds.generator(self.seed, "order", epoch))
            self._epoch = epoch
        return int(self._order[place])


@dataclass(frozen=True)
class Window:
    """The images that are shuffled among each other: the `number`-th of a stream's epoch."""

    stream: int
    epoch: int
    number: int


class ShardOrder:
    """Epochs are permutations of the shards; images are shuffled within windows.

    A batch is made of `streams` equal parts. Each stream has its own piece of the epoch's sequence of shards and its own windows of
    `buffer / streams` images, so that a process that has the rows of some streams reads their shards alone. Pieces differ by one image
    at most, and each stream goes on to the next epoch when its piece is through.

    Args:
        shards: the images of each, in a row.

    Raises:
        MgenError: the batch can't be cut into so many streams, or there are fewer images than streams.
    """

    def __init__(self, shards: Sequence[range], *, batch_size: int, seed: int, buffer: int, streams: int = 1) -> None:
        self.shards, self.seed, self.streams = shards, seed, streams
        count = sum(map(len, shards))
        if batch_size % streams:
            raise MgenError(f"data.streams is {streams}: it must divide batch_size {batch_size}")
        if count < streams:
            raise MgenError(f"data.streams is {streams}, but there are {count} images: set it to fewer")
        self.rows = batch_size // streams  # of a stream, in a batch
        self.bounds = [stream * count // streams for stream in range(streams + 1)]
        self.window_size = max(1, buffer // streams)
        self._epoch, self._shards, self._ends = -1, list[int](), list[int]()
        self._kept: dict[int, tuple[Window, Tensor]] = {}  # by stream

    def index(self, step: int, row: int) -> int:
        """The image in this row of the batch of this step."""
        window, place = self.place(step, row)
        kept = self._kept.get(window.stream)
        if kept is None or kept[0] != window:
            kept = self._kept[window.stream] = window, self._shuffled(window)
        return int(kept[1][place])

    def place(self, step: int, row: int) -> tuple[Window, int]:
        """The window that the row belongs to, and its place in there."""
        stream, rest = divmod(row, self.rows)
        length = self.bounds[stream + 1] - self.bounds[stream]
        epoch, at = divmod(step * self.rows + rest, length)
        windows = self._windows(stream)
        number = bisect_right(range(windows + 1), at, key=lambda w: w * length // windows) - 1
        return Window(stream, epoch, number), at - number * length // windows

    def following(self, window: Window) -> Window:
        """The next window of the same stream."""
        if window.number + 1 < self._windows(window.stream):
            return Window(window.stream, window.epoch, window.number + 1)
        return Window(window.stream, window.epoch + 1, 0)

    def spans(self, window: Window) -> list[range]:
        """The images of a window in the order in which they are read, each span within one shard."""
        start, windows = self.bounds[window.stream], self._windows(window.stream)
        length = self.bounds[window.stream + 1] - start
        low, high = (start + w * length // windows for w in (window.number, window.number + 1))
        order, ends = self._sequence(window.epoch)
        found, k = list[range](), bisect_right(ends, low)
        while low < high:
            shard = self.shards[order[k]]
            begin, stop = ends[k] - len(shard), min(high, ends[k])
            found.append(shard[low - begin : stop - begin])
            low, k = stop, k + 1
        return [span for span in found if len(span)]

    def _windows(self, stream: int) -> int:
        return -(-(self.bounds[stream + 1] - self.bounds[stream]) // self.window_size)

    def _sequence(self, epoch: int) -> tuple[list[int], list[int]]:
        """The shards of an epoch in their order, and where each ends in the sequence of all images."""
        if epoch != self._epoch:
            rng = seeds.generator(self.seed, "shards", epoch)
            self._shards = torch.randperm(len(self.shards), generator=rng).tolist()
            self._ends = list(accumulate(len(self.shards[shard]) for shard in self._shards))
            self._epoch = epoch
        return self._shards, self._ends

    def _shuffled(self, window: Window) -> Tensor:
        images = torch.cat([torch.arange(span.start, span.stop) for span in self.spans(window)])
        rng = seeds.generator(self.seed, "buffer", window.epoch, window.stream, window.number)
        return images[torch.randperm(len(images), generator=rng)]
