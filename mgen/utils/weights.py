"""Weights of official files: safetensors, torch pickles (weights only), flax msgpack. Nothing in a file is ever executed.

Flax layout: a msgpack map of maps whose leaves are extension type 1, itself msgpack of (shape, dtype name, raw bytes); arrays
above 2³⁰ bytes are split into chunks. `msgpack` alone can read it, JAX is not needed.
"""

import argparse
import pickle
import warnings
import zipfile
from pathlib import Path

import msgpack
import numpy as np
import torch
from torch import Tensor

from mgen.utils.errors import MgenError, first_line
from mgen.utils.files import read_tensors

State = dict[str, Tensor]


def read_state_dict(path: str | Path) -> State:
    """Flat name → tensor of an official file; see `read_weights`."""
    return read_weights(path)[0]


def read_weights(path: str | Path, keys: tuple[str, ...] = ("state_dict", "model")) -> tuple[State, str | None]:
    """Flat name → tensor of an official file, and the key it was found under. Paths in a flax tree are joined by "/".

    Args:
        keys: where to look in a torch file that holds several things; the first key present is taken.

    Raises:
        MgenError: the file is missing, truncated, of an unknown format, or a pickle with anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise MgenError(f"no such checkpoint file: {path}")
    with path.open("rb") as file:
        head = file.read(16)
    if path.suffix == ".safetensors":
        return read_tensors(path)[0], None
    if zipfile.is_zipfile(path) or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        return _read_torch(path, keys)
    if head[:4] == b"PK\x03\x04":
        raise MgenError(f"{path} is truncated (the end of a torch file is missing): download it again")
    if head and (head[0] & 0xF0 == 0x80 or head[0] in (0xDE, 0xDF)):
        return _read_flax(path), None
    raise MgenError(f"{path} is neither safetensors, nor a torch file, nor flax msgpack: is the download complete?")


def _read_torch(path: Path, keys: tuple[str, ...]) -> tuple[State, str | None]:
    try:
        # Training scripts save their arguments as a Namespace, which only holds attributes and runs nothing.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore", UserWarning)  # torch remarks on old pickle protocols
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise MgenError(
            f"{path} holds Python objects other than tensors, and mgen never runs code from a checkpoint: "
            "re-save its state dict alone, or as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise MgenError(
            f"cannot read {path} ({first_line(error, 160)}): truncated or damaged, download it again"
        ) from error
    taken = next((key for key in keys if isinstance(data, dict) and isinstance(data.get(key), dict)), None)
    if taken is not None:
        data = data[taken]
    if not isinstance(data, dict) or not data or not all(isinstance(v, Tensor) for v in data.values()):
        raise MgenError(f"{path} holds no state dict (a mapping from names to tensors)")
    return data, taken


def _read_flax(path: Path) -> State:
    def leaf(code: int, payload: bytes) -> Tensor:
        if code != 1:
            raise ValueError(f"extension type {code}")
        shape, dtype, raw = msgpack.unpackb(payload, raw=False)
        if dtype not in ("float32", "float16", "float64", "int32", "int64", "uint8", "bool", "uint32"):
            raise ValueError(f"arrays of type {dtype}")
        return torch.from_numpy(np.frombuffer(raw, dtype).reshape(shape).copy())

    def walk(node: object, prefix: str) -> State:
        if isinstance(node, Tensor):
            return {prefix: node}
        if not isinstance(node, dict):
            raise ValueError(f"a {type(node).__name__} at {prefix or 'the top'}")
        if "__msgpack_chunked_array__" in node:
            chunks = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
            return {prefix: torch.cat(chunks).view([node["shape"][str(i)] for i in range(len(node["shape"]))])}
        below = (walk(child, f"{prefix}/{key}" if prefix else key) for key, child in node.items())
        return {key: value for part in below for key, value in part.items()}

    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=leaf, raw=False, strict_map_key=False)
        return walk(tree, "")
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise MgenError(
            f"cannot read {path} as flax msgpack ({first_line(error, 160)}): truncated or of another format"
        ) from error
