"""Arrays of .npy and .npz files, which others wrote: the header is read and checked before anything is allocated.

A header may claim any shape, and a compressed array may be a thousand times larger than its file. So each caller says which shape it
expects, and an array is read only if its bytes are really there.
"""

import ast
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.limits import check_memory
from mgen.utils.reading import check_file

# What reading a damaged file can raise. RuntimeError: an encrypted member; MemoryError, RecursionError: a header nested deeply.
DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    SyntaxError,
    TypeError,
    OverflowError,
    RuntimeError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
MOST_HEADER = 4096  # bytes


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the header of an array says; nothing of it is proven."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    by_column: bool

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {shown(self.shape)}"


HeaderCheck = Callable[[Header], str]  # what was expected instead, "" if the header will do


def read_header(stream: IO[bytes]) -> Header:
    """The header at the start of an array; ValueError if it isn't one of plain numbers or text."""
    if stream.read(6) != b"\x93NUMPY":
        raise ValueError("no array of numpy")
    version = tuple(stream.read(2))
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version} of the format")
    (length,) = struct.unpack("<H" if version == (1, 0) else "<I", stream.read(2 if version == (1, 0) else 4))
    if length > MOST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    about = ast.literal_eval(stream.read(length).decode("latin1"))
    if not isinstance(about, dict) or about.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("a header without dtype, order and shape")
    shape, descr = about["shape"], about["descr"]
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 2**48 for n in shape) or len(shape) > 8:
        raise ValueError(f"an array of shape {shown(shape)}")
    if not isinstance(descr, str):
        raise ValueError("an array of several fields")
    dtype = np.dtype(descr)
    if dtype.kind not in "biufcUS":
        raise ValueError(f"an array of {dtype}, not of numbers")
    return Header(dtype=dtype, shape=shape, by_column=bool(about["fortran_order"]))


def read_array(stream: IO[bytes], header: Header) -> np.ndarray:
    """The array after its header, read in parts, so that memory is taken only for what is there; EOFError if it ends early."""
    parts, left = [], header.size
    while left:
        part = stream.read(min(left, 2**24))
        if not part:
            raise EOFError(f"the array ends {left} bytes early")
        parts.append(part)
        left -= len(part)
    array = np.frombuffer(bytearray().join(parts), header.dtype)
    return array.reshape(header.shape, order="F" if header.by_column else "C")


@contextmanager
def reading(path: str | Path, expected: str) -> Iterator[None]:
    """An error of reading `path` becomes an MgenError that says what was expected."""
    try:
        yield
    except MgenError:
        raise
    except DAMAGED as error:
        reason = first_line(error, 120) or type(error).__name__
        raise MgenError(f"cannot read {path} ({reason}): expected {expected}") from error


def npz_names(path: str | Path) -> list[str]:
    """Names of the arrays of an npz file; MgenError if it is not one."""
    with reading(check_file(path), "an .npz file"), zipfile.ZipFile(path) as file:
        return [name.removesuffix(".npy") for name in file.namelist()]


def read_npz(
    path: str | Path, wanted: Mapping[str, HeaderCheck], expected: str = "an .npz file"
) -> dict[str, np.ndarray]:
    """Those of the `wanted` arrays that an npz file holds.

    Args:
        wanted: name → what is wrong with a header of it, checked before the array is read. expected: for the error of a damaged file.

    Raises:
        MgenError: the file is damaged, or an array isn't as wanted or too large for this machine.
    """
    found = {}
    with reading(check_file(path), expected), zipfile.ZipFile(path) as file:
        for name in [n for n in wanted if f"{n}.npy" in file.namelist()]:
            with file.open(f"{name}.npy") as stream:
                header = read_header(stream)
                if wrong := wanted[name](header):
                    raise MgenError(
                        f"{path}: {name} has shape {shown(header.shape)} of {header.dtype}, expected {wrong}"
                    )
                check_memory(2 * header.size, f"{path}: {name} of shape {shown(header.shape)}", "use a smaller file")
                found[name] = read_array(stream, header)
    return found
