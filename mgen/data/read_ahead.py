"""Reading shards ahead, one after another: a thread passes their bytes once, after which the system has them in memory.

The system's page cache is the buffer. It is shared by the processes and loader workers of a machine, costs no copy, and gives way when
memory is short; then, and on file systems without a page cache, images are read where they lie, more slowly.
"""

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from mgen.data.base import ImageData
from mgen.data.order import ShardOrder, Window
from mgen.utils.limits import check_memory

PIECE = 2**22  # bytes of one read


@runtime_checkable
class ShardedData(ImageData, Protocol):
    """Images that lie in shards, in a row."""

    @property
    def shard_rows(self) -> Sequence[range]:
        """The images of each shard."""
        ...

    @property
    def row_bytes(self) -> float:
        """Bytes of an image as it is stored, on average."""
        ...

    def read_ahead(self, rows: range) -> None:
        """Read the bytes of these images of one shard, from front to back."""
        ...


@runtime_checkable
class Streamed(Protocol):
    """Images whose bytes may come from streams (`piped`), so that one process must read them for all of its loader workers."""

    piped: bool

    def items(self, indices: Sequence[int]) -> list[Any]:
        """Images with their bytes, which the data set takes in the place of their numbers."""
        ...

    def forget(self, rows: Iterable[int]) -> None:
        """Drop the bytes of these images that were read ahead."""
        ...

    def end(self) -> None:
        """End the commands that are running."""
        ...


class ReadAhead:
    """Keeps the windows that a process needs next in memory: the current one of each stream, and the one behind it."""

    def __init__(self, data: ShardedData, order: ShardOrder) -> None:
        self.data, self.order = data, order
        self._now: dict[int, Window] = {}
        self._reads: dict[Window, Future[None]] = {}
        self._left: list[Window] = []  # read, and not needed any more from the next batch on
        self._queue: Queue[tuple[list[range], Future[None]]] | None = None
        self._closed = False

    def check(self, streams: Iterable[int]) -> None:
        """Raise MgenError if two windows of each of these streams don't fit into memory."""
        images = min(2 * len(set(streams)) * self.order.window_size, 2 * len(self.data))
        what = f"two buffers of data.buffer={self.order.window_size * self.order.streams} images"
        check_memory(images * self.data.row_bytes, what, "set data.buffer to fewer")

    def enter(self, step: int, rows: Iterable[int]) -> None:
        """Wait until the images of these rows have been read, and let the next windows be read meanwhile.

        To be called for the rows of every batch, before its images are taken. Raises an MgenError for a stream that can't be read.
        """
        if self._left:
            self._forget(self._left)
            self._left = []
        for window in dict.fromkeys(self.order.place(step, row)[0] for row in rows):
            if self._now.get(window.stream) == window:
                continue
            self._now[window.stream] = window
            self._begin(window).result()
            for old in [w for w in self._reads if w.stream == window.stream and w != window]:
                del self._reads[old]
                self._left.append(old)
            self._begin(self.order.following(window))

    def items(self, indices: list[int]) -> list[Any]:
        """What is handed to the data set for these images: their numbers, or of streams their bytes too."""
        return self.data.items(indices) if isinstance(self.data, Streamed) and self.data.piped else indices

    def close(self) -> None:
        """Let the thread begin nothing more, and end what it reads."""
        self._closed = True
        if isinstance(self.data, Streamed) and self.data.piped:
            self.data.end()

    def _begin(self, window: Window) -> "Future[None]":
        """The reading of a window, which begins if it hasn't."""
        if self._queue is None:  # late: loader processes are forked from this one before
            self._queue = Queue()
            Thread(target=self._work, args=(self._queue,), daemon=True, name="read-ahead").start()
        if window not in self._reads:
            self._reads[window] = Future()
            self._queue.put((self.order.spans(window), self._reads[window]))
        return self._reads[window]

    def _work(self, queue: "Queue[tuple[list[range], Future[None]]]") -> None:
        while True:
            spans, done = queue.get()
            try:
                for span in spans:
                    if self._closed:
                        return
                    with contextlib.suppress(OSError):  # making the batch will tell
                        self.data.read_ahead(span)
                done.set_result(None)
            except Exception as error:  # of a stream, for instance: the loop of the training is to raise it
                done.set_exception(error)

    def _forget(self, windows: Iterable[Window]) -> None:
        """Drop the images of these windows, except those that another one needs: an image comes again in the next epoch."""
        if isinstance(self.data, Streamed) and self.data.piped:
            kept = self._images(self._reads)
            self.data.forget(self._images(windows) - kept)

    def _images(self, windows: Iterable[Window]) -> set[int]:
        return {i for window in windows for span in self.order.spans(window) for i in span}


def read_through(path: Path, start: int, stop: int) -> None:
    """Read bytes of a file from front to back, for the page cache; OSError if it can't be."""
    buffer = memoryview(bytearray(min(PIECE, max(1, stop - start))))
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, start, stop - start, os.POSIX_FADV_SEQUENTIAL)
        while start < stop and (count := os.preadv(handle, [buffer[: stop - start]], start)):
            start += count
    finally:
        os.close(handle)


def advise(tensors: Iterable[Tensor], advice: int) -> None:
    """Tell the system how memory-mapped tensors will be read, with a constant of madvise such as mmap.MADV_RANDOM; it may not listen."""
    with contextlib.suppress(AttributeError, OSError):  # no such call here
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for tensor in tensors:
            start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
            madvise(start, tensor.data_ptr() + tensor.nbytes - start, advice)
