"""Flax checkpoints: a msgpack map of maps whose leaves are extension type 1, itself msgpack of (shape, dtype name, raw bytes).

Arrays above 2³⁰ bytes are split into chunks. `msgpack` alone can read it, JAX is not needed.
"""

from math import prod
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor

from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.limits import check_memory

MOST_DEPTH, MOST_ENTRIES, MOST_NAME = 32, 100_000, 1000
DTYPES = ("float32", "float16", "float64", "int32", "int64", "uint8", "bool", "uint32")
CHUNKED = "__msgpack_chunked_array__"

Tree = dict[str, Any]  # names → tensors, or such mappings


def read_flax(path: Path) -> Tree:
    """The tree of a flax file, with tensors as leaves.

    Raises:
        MgenError: the file is damaged or of another format, an array's size is not that of its bytes, or a name stands twice.
    """
    size = path.stat().st_size
    check_memory(2 * size, f"reading {path}", "use a machine with more memory")
    try:
        tree = msgpack.unpackb(
            path.read_bytes(),
            ext_hook=_leaf,
            object_pairs_hook=_unique,
            raw=False,
            strict_map_key=False,
            max_map_len=MOST_ENTRIES,
            max_array_len=MOST_ENTRIES,
            max_str_len=MOST_NAME,
        )
        if not isinstance(tree, dict):
            raise ValueError(f"a {type(tree).__name__} at the top")
        return _joined(tree)
    except (ValueError, TypeError, KeyError, RuntimeError, RecursionError, msgpack.UnpackException) as error:
        if isinstance(error, MgenError):
            raise MgenError(f"{path}: {error}") from error
        raise MgenError(
            f"cannot read {path} as flax msgpack ({first_line(error, 160)}): truncated or of another format"
        ) from error


def flatten(tree: Tree) -> dict[str, Any]:
    """Leaves of a tree by their paths, joined by "/"; ValueError for one that is too deep."""
    out: dict[str, Any] = {}
    stack: list[tuple[str, Any, int]] = [("", tree, 0)]
    while stack:
        place, node, depth = stack.pop()
        if not isinstance(node, dict):
            if place in out:
                raise MgenError(f"two arrays are named {shown(place)}")
            out[place] = node
        elif depth == MOST_DEPTH:
            raise MgenError(f"the tree is more than {MOST_DEPTH} levels deep: no network is")
        else:
            stack += [(f"{place}/{key}" if place else str(key), node[key], depth + 1) for key in reversed(node)]
    return out


def _leaf(code: int, payload: bytes) -> Tensor:
    if code != 1:
        raise ValueError(f"extension type {code}")
    shape, dtype, raw = msgpack.unpackb(payload, raw=False, max_array_len=64)
    if dtype not in DTYPES:
        raise ValueError(f"arrays of type {shown(dtype)}")
    _check_shape(shape)
    array = np.frombuffer(raw, dtype)
    if array.size != prod(shape):
        raise ValueError(f"an array of shape {shown(shape)} with {array.size} numbers")
    return torch.from_numpy(array.reshape(shape).copy())


def _check_shape(shape: object) -> None:
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError(f"an array of shape {shown(shape)}")


def _unique(pairs: list[tuple[object, object]]) -> dict[str, object]:
    out: dict[str, object] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise MgenError(f"name {shown(key)} is no text: not a state dict")
        if key in out:
            raise MgenError(f"name {shown(key)} stands twice in a mapping: damaged")
        out[key] = value
    return out


def _joined(tree: Tree) -> Tree:
    """The tree with the chunks of large arrays joined; nothing deeper than MOST_DEPTH is looked at."""
    root = {"": tree}
    stack: list[tuple[dict[str, Any], str, int]] = [(root, "", 0)]
    while stack:
        parent, key, depth = stack.pop()
        node = parent[key]
        if isinstance(node, dict) and CHUNKED in node:
            parts, sizes = (_numbered(node.get(name), name) for name in ("chunks", "shape"))
            _check_shape(sizes)
            if not all(isinstance(part, Tensor) for part in parts):
                raise ValueError("chunks that are no arrays")
            parent[key] = torch.cat(parts).view(sizes)
        elif isinstance(node, dict) and depth <= MOST_DEPTH:
            stack += [(node, name, depth + 1) for name in node]
    return root[""]


def _numbered(node: object, name: str) -> list[Any]:
    """The values of {"0": …, "1": …}, in order."""
    if not isinstance(node, dict) or set(node) != {str(i) for i in range(len(node))}:
        raise ValueError(f"`{name}` of a chunked array is {shown(node)}")
    return [node[str(i)] for i in range(len(node))]
