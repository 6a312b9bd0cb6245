"""Images of ADM's npz files and of .npy files, read as a stream: a file of 50,000 images may not fit into memory."""

import math
import threading
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from mgen.utils.arrays import Header, npz_names, read_header, read_npz, reading
from mgen.utils.errors import MgenError, shown
from mgen.utils.limits import check_memory
from mgen.utils.reading import check_file

LARGEST_ID = 2**31 - 1  # of a class
LARGEST_SIDE = 2**16


class NpzImages:
    """Images uint8 (N, H, W, C) by index: arr_0 of an npz file, or the array of a .npy file; `labels`: arr_1, or -1 without it (N,).

    Reading forward is fast; reading backward starts over. Reads from several threads are serialized.

    Raises:
        MgenError: the file is damaged, has no arr_0, or its arrays are not such images and class ids.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._lock = check_file(path), threading.Lock()
        self._zip, names = None, ["arr_0"]
        if self.path.suffix != ".npy":
            names = npz_names(self.path)
            if "arr_0" not in names:
                raise MgenError(
                    f"{path} has no arr_0 with images, only {shown(', '.join(names)) if names else 'nothing'}"
                )
        with reading(self.path, "images as uint8 (N, H, W, C)"):
            if self.path.suffix != ".npy":
                self._zip = zipfile.ZipFile(self.path)
            self.shape = self._begin().shape
        self.labels = self._labels() if "arr_1" in names else torch.full((self.shape[0],), -1)

    def _begin(self) -> Header:
        """Open the stream at the first image."""
        self._stream: IO[bytes] = self._zip.open("arr_0.npy") if self._zip else self.path.open("rb")
        header = read_header(self._stream)
        if wrong := _wrong(header):
            raise MgenError(f"{self.path}: the images are {header}, {wrong}")
        size = self._zip.getinfo("arr_0.npy").file_size if self._zip else self.path.stat().st_size
        if header.size > size:
            raise EOFError(f"it claims images {header}, but holds {size} bytes")
        self._next = 0
        return header

    def _labels(self) -> Tensor:
        count = self.shape[0]

        def check(header: Header) -> str:
            fits = header.shape == (count,) and header.dtype.kind in "iu"
            return "" if fits else f"integers ({count},), one class id per image"

        labels = read_npz(self.path, {"arr_1": check}, "an .npz with arr_0")["arr_1"]
        if int(labels.min()) < -1 or int(labels.max()) > LARGEST_ID:
            raise MgenError(
                f"{self.path}: arr_1 holds {labels.min()} … {labels.max()}: a class id is at least 0, or -1 if it is unknown, and at most "
                f"{LARGEST_ID}"
            )
        return torch.from_numpy(labels.astype(np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> Tensor:
        """Images start … stop as uint8 (n, C, H, W)."""
        size = math.prod(self.shape[1:])
        check_memory(
            8 * (stop - start) * size,
            f"{stop - start} images {shown(self.shape[1:])} of {self.path}",
            "use a smaller batch",
        )
        with reading(self.path, f"images {start} … {stop}; the file is damaged"):
            with self._lock:
                if start < self._next:
                    self._begin()
                while self._next < start:
                    self._take(min(start - self._next, 256))
                block = self._take(stop - start)
        array = np.frombuffer(block, np.uint8).reshape(stop - start, *self.shape[1:])
        return torch.from_numpy(array.copy()).permute(0, 3, 1, 2)

    def _take(self, count: int) -> bytes:
        """The bytes of the next images."""
        size = count * math.prod(self.shape[1:])
        block = self._stream.read(size)
        if len(block) < size:
            raise EOFError("it ends early")
        self._next += count
        return block


def _wrong(header: Header) -> str:
    """What is wrong with an array of images."""
    if header.dtype != np.uint8 or len(header.shape) != 4 or header.shape[3] not in (1, 3):
        return "expected uint8 (N, H, W, C) with C = 1 or 3"
    if not header.shape[0]:
        return "it holds no images"
    if not 1 <= min(header.shape[1:3]) <= max(header.shape[1:3]) <= LARGEST_SIDE:
        return f"a side has 1 … {LARGEST_SIDE} pixels"
    return "expected C order: the array is stored column by column" if header.by_column else ""
