"""Images of ADM's npz files, read as a stream: a file of 50,000 images may not fit into memory."""

import struct
import threading
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from mgen.utils.errors import MgenError

ERRORS = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, struct.error, zlib.error)


def npz_names(path: str | Path) -> list[str]:
    """Names of the arrays of an npz file; MgenError if it is not one."""
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist()]
    except ERRORS as error:
        raise MgenError(f"cannot read {path} ({error}): expected an .npz file") from error


class NpzImages:
    """arr_0 uint8 (N, H, W, C) of an npz file, by index; `labels`: arr_1, class ids (N,), or -1 without arr_1.

    Reading forward is fast; reading backward starts over. Reads from several threads are serialized.

    Raises:
        MgenError: the file is no npz, has no arr_0, or its images are not uint8 (N, H, W, C).
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._lock = path, threading.Lock()
        names = npz_names(path)
        if "arr_0" not in names:
            raise MgenError(f"{path} has no arr_0 with images, only {', '.join(names) or 'nothing'}")
        try:
            self._file = zipfile.ZipFile(path)
            self._begin()
            with np.load(path, allow_pickle=False) as arrays:
                labels = arrays["arr_1"] if "arr_1" in names else np.full(self.shape[0], -1)
        except ERRORS as error:
            raise MgenError(f"cannot read {path} ({error}): expected an .npz with arr_0") from error
        if self.dtype != np.uint8 or len(self.shape) != 4 or self.shape[3] not in (1, 3):
            raise MgenError(f"{path}: arr_0 is {self.dtype} {self.shape}, expected uint8 (N, H, W, C) with C = 1 or 3")
        if not self.shape[0]:
            raise MgenError(f"{path}: arr_0 holds no images")
        if labels.shape != (self.shape[0],) or labels.dtype.kind not in "iu":
            raise MgenError(
                f"{path}: arr_1 has shape {labels.shape} of {labels.dtype}, expected integers ({self.shape[0]},), one class id per image"
            )
        self.labels = torch.from_numpy(labels.astype(np.int64))

    def _begin(self) -> None:
        self._stream: IO[bytes] = self._file.open("arr_0.npy")
        version = np.lib.format.read_magic(self._stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self.dtype = read(self._stream)
        if fortran:
            raise ValueError("arr_0 is stored column by column")
        self._next = 0

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> Tensor:
        """Images start … stop as uint8 (n, C, H, W)."""
        try:
            with self._lock:
                if start < self._next:
                    self._begin()
                while self._next < start:
                    self._take(min(start - self._next, 256))
                block = self._take(stop - start)
        except ERRORS as error:
            raise MgenError(f"cannot read images {start} … {stop} of {self.path} ({error}): damaged file") from error
        array = np.frombuffer(block, np.uint8).reshape(stop - start, *self.shape[1:])
        return torch.from_numpy(array.copy()).permute(0, 3, 1, 2)

    def _take(self, count: int) -> bytes:
        """The bytes of the next images."""
        size = count * int(np.prod(self.shape[1:]))
        block = self._stream.read(size)
        if len(block) < size:
            raise EOFError("it ends early")
        self._next += count
        return block
