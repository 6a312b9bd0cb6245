"""Files of statistics as they are stored: .safetensors (mgen's), .npz (most tools'), .pt (torch-fidelity's).

Shapes and types are checked before an array is read. A .pt file is a pickle: only tensors, plain values and arrays of floats are read
from it, and arrays by this module's own code, because numpy's functions for unpickling trust what they are given.
"""

import math
import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mgen.utils.arrays import Header, npz_names, read_npz
from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.limits import check_memory
from mgen.utils.reading import check_file
from mgen.utils.schema import build, schema
from mgen.utils.weights import check_archive, is_archive, only_globals

KEYS = ("mu", "sigma", "mu_s", "sigma_s", "features")
EXPECTED = ".safetensors, .npz or .pt with mu and sigma"
MOST_ROWS = 10**7  # features of single images
LONGEST = 5000  # characters of what a file says about itself

Line = Annotated[str, Field(min_length=1, max_length=LONGEST)]
Shape = tuple[int | None, ...]  # None: any length


@schema(extra=True)
class About:
    """What a file says about how it was made; `extra`, because other tools store keys of their own.

    Args:
        extractor, extractor_sha256, resize: the network and its input. count: of the images. source: which they are. prepared: how they
            were resized, "" if they were not.
    """

    extractor: Line | None = None
    extractor_sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None = None
    resize: Line | None = None
    count: Annotated[int, Field(ge=2, le=2**53)] | None = None
    source: Line | None = None
    prepared: Annotated[str, Field(max_length=LONGEST)] = ""

    def __post_init__(self) -> None:
        if self.extractor_sha256 is not None:
            lacking = [name for name in ("extractor", "resize", "count") if getattr(self, name) is None]
            if lacking:
                raise MgenError(f"it states the extractor's hash but no {', '.join(lacking)}: make it with mgen stats")


ABOUT = tuple(About.__dataclass_fields__)  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An open file: the names of its arrays, what it says about itself, and a function that reads arrays of given shapes."""

    names: Sequence[str]
    about: About
    read: Callable[[Mapping[str, Shape]], dict[str, np.ndarray]]


def open_statistics(path: Path) -> Stored:
    """A file of statistics; MgenError if it is damaged or of another kind."""
    match check_file(path).suffix:
        case ".npz":
            return _open_npz(path)
        case ".safetensors":
            return _open_safetensors(path)
        case ".pt" | ".pth":
            return _open_torch(path)
    raise MgenError(f"cannot read statistics from {path}: expected {EXPECTED}")


def read_about(texts: Mapping[str, str], path: Path) -> About:
    """What a file says about itself, in texts; the count in ASCII digits."""
    data: dict[str, Any] = {name: texts[name] for name in ABOUT if name in texts}
    if "count" in data:
        if not re.fullmatch("[0-9]{1,16}", data["count"]):
            raise MgenError(f"{path}: 'count' is {shown(data['count'])}, expected a number of images such as 50000")
        data["count"] = int(data["count"])
    return build(About, data, f"{path}: ")


def _wrong(name: str, kind: str, shape: Sequence[int], wanted: Shape, path: Path) -> MgenError | None:
    """What is wrong with an array of the type `kind`, which is numpy's letter."""
    fits = len(shape) == len(wanted) and all(w is None or n == w for n, w in zip(shape, wanted))
    expected = f"({', '.join('N' if w is None else str(w) for w in wanted)}{',' * (len(wanted) == 1)})"
    if not fits:
        return MgenError(
            f"{path}: {name} has shape {shown(tuple(shape))}, but features of this extractor need {expected}: another extractor made it"
        )
    if kind not in "fiu":
        return MgenError(f"{path}: {name} holds no real numbers: expected floats of shape {expected}")
    rows = shape[0]
    if name == "features" and not 1 <= rows <= MOST_ROWS:
        return MgenError(f"{path}: features are of {rows} images, allowed are 1 … {MOST_ROWS:,}")
    check_memory(16 * math.prod(shape), f"{path}: {name} of shape {shown(tuple(shape))}", "store fewer features")
    return None


# -- .npz --------------------------------------------------------------------------------------------------------------------


def _open_npz(path: Path) -> Stored:
    def text(header: Header) -> str:
        fits = header.dtype.kind == "U" and header.shape == () and header.size <= 4 * LONGEST
        return "" if fits else f"a text of at most {LONGEST} characters"

    names = npz_names(path)
    about = About()
    if "extractor_sha256" in names:  # other tools may use such names for something else
        texts = read_npz(path, {name: text for name in ABOUT}, EXPECTED)
        about = read_about({name: str(value) for name, value in texts.items()}, path)

    def read(shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
        def check(name: str) -> Callable[[Header], str]:
            def check(header: Header) -> str:
                if error := _wrong(name, header.dtype.kind, header.shape, shapes[name], path):
                    raise error
                return ""

            return check

        return read_npz(path, {name: check(name) for name in shapes}, EXPECTED)

    return Stored(names=[n for n in names if n in KEYS], about=about, read=read)


# -- .safetensors ------------------------------------------------------------------------------------------------------------


def _open_safetensors(path: Path) -> Stored:
    def damaged(error: Exception) -> MgenError:
        return MgenError(f"cannot read statistics from {path} ({first_line(error)}): expected {EXPECTED}")

    try:
        with safe_open(str(path), framework="pt") as file:
            names, metadata = list(file.keys()), dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise damaged(error) from error

    def read(shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
        found = {}
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in shapes:
                    part = file.get_slice(name)
                    kind = "f" if re.match("B?F[0-9]", part.get_dtype()) else "i" if part.get_dtype()[0] in "IU" else ""
                    if wrong := _wrong(name, kind or "x", part.get_shape(), shapes[name], path):
                        raise wrong
                    found[name] = file.get_tensor(name).double().numpy()
        except (SafetensorError, OSError) as error:
            raise damaged(error) from error
        return found

    return Stored(names=[n for n in names if n in KEYS], about=read_about(metadata, path), read=read)


# -- .pt ---------------------------------------------------------------------------------------------------------------------


class _Type:
    """Stands for numpy.dtype in a pickle: keeps the code, such as "f8", and the order of bytes."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: object) -> None:
        self.order = state[1] if isinstance(state, tuple) and len(state) > 1 else "?"

    def floats(self) -> np.dtype[Any] | None:
        """numpy's type, None for anything but floats in the order of this machine."""
        return np.dtype(str(self.code)) if self.code in ("f2", "f4", "f8") and self.order in ("<", "|", "=") else None


class _Array:
    """Stands for numpy.ndarray in a pickle: keeps what numpy would make the array of."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def _reconstruct(*_: object) -> _Array:
    return _Array()


_STAND_INS: list[Any] = [(_Array, "numpy.ndarray"), (_Type, "numpy.dtype")]
# The name of the module depends on numpy's version.
_STAND_INS += [(_reconstruct, f"{name}.multiarray._reconstruct") for name in ("numpy.core", "numpy._core")]


def _open_torch(path: Path) -> Stored:
    data = _unpickle(path)
    if not isinstance(data, dict):
        raise MgenError(f"cannot read statistics from {path} (a {type(data).__name__} alone): expected {EXPECTED}")
    names = [name for name in KEYS if name in data]

    def read(shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
        return {name: _numbers(name, data[name], shapes[name], path) for name in shapes}

    return Stored(names=names, about=About(), read=read)


def _unpickle(path: Path) -> object:
    try:
        if is_archive(path):
            check_archive(path)
        with only_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch remarks on other pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except MgenError:
        raise
    except pickle.UnpicklingError as error:  # torch's text says how to run the code in it
        raise MgenError(
            f"cannot read statistics from {path} (it holds Python objects other than tensors and arrays of floats): expected {EXPECTED}"
        ) from error
    except Exception as error:  # a crafted pickle can make the unpickler raise anything
        raise MgenError(
            f"cannot read statistics from {path} ({first_line(error, 120)}): expected {EXPECTED}, with tensors alone"
        ) from error


def _numbers(name: str, value: object, wanted: Shape, path: Path) -> np.ndarray:
    if isinstance(value, _Array):
        return _from_state(name, value, wanted, path)
    if type(value) is not Tensor or value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise MgenError(f"{path}: {name} is a {type(value).__name__}, expected a tensor of floats")
    kind = "f" if value.is_floating_point() else "c" if value.is_complex() or value.dtype == torch.bool else "i"
    if wrong := _wrong(name, kind, value.shape, wanted, path):
        raise wrong
    return value.detach().double().numpy()


def _from_state(name: str, array: _Array, wanted: Shape, path: Path) -> np.ndarray:
    """The array that a pickle of numpy's describes, checked: version, shape, type, order and bytes."""
    match array.state:
        case (int(), tuple(shape), _Type() as kind, bool(by_column), bytes(data)):
            dtype = kind.floats()
            if all(type(n) is int and n >= 0 for n in shape) and dtype is not None:
                if wrong := _wrong(name, "f", shape, wanted, path):
                    raise wrong
                if len(data) == math.prod(shape) * dtype.itemsize:
                    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_column else "C")
    raise MgenError(f"{path}: {name} is no array of floats: expected {EXPECTED}")
