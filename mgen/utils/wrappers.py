"""What training scripts put around weights: mappings such as {'model': …, 'ema': …}, and prefixes of names such as `module.`.

Every file is unwrapped by the same two steps, whatever its format: the mappings first, then the prefixes. What was removed is told.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mgen.utils.errors import MgenError, shown

# Names under which weights lie, in the order in which they are looked for.
RAW = ("state_dict", "model", "model_state_dict", "module")
EMA = ("ema", "model_ema", "ema_model", "ema_state_dict")
MOST_MAPPINGS = 4  # around each other
# Parts of names that data parallelism and averaging, torch.compile, FSDP and activation checkpoints add.
PREFIXES = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
COUNTER = "n_averaged"  # in which torch's AveragedModel counts
_INTEGERS: tuple[torch.dtype, ...] = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
_INTEGERS += (torch.uint16, torch.uint32, torch.uint64)

State = dict[str, Tensor]


def way_in(tree: Mapping[Any, Any], keys: Iterable[str], *, until: str | None = None) -> tuple[str, ...]:
    """The keys that lead from a file's contents to the weights, outermost first.

    Args:
        keys: those to look for, preferred ones first. until: a mapping with this key is not looked into.

    Raises:
        MgenError: more than MOST_MAPPINGS mappings around each other.
    """
    path: tuple[str, ...] = ()
    order = tuple(dict.fromkeys(keys))
    while until is None or until not in tree:
        key = next((k for k in order if isinstance(tree.get(k), Mapping) and tree[k]), None)
        if key is None:
            break
        path, tree = (*path, key), tree[key]
        if len(path) > MOST_MAPPINGS:
            raise MgenError(f"the weights lie in more than {MOST_MAPPINGS} mappings: {' → '.join(path)} …")
    return path


def bare(tensors: Mapping[Any, Any]) -> tuple[State, list[str]]:
    """Tensors by their names without prefixes, and a line on what was removed.

    Raises:
        MgenError: a name that is no text, a value that is no plain tensor, or two names that become one.
    """
    out: State = {}
    given: dict[str, str] = {}
    removed: Counter[str] = Counter()
    for name, value in tensors.items():
        _check(name, value)
        *parts, last = name.split(".")
        ours = ".".join([part for part in parts if part not in PREFIXES] + [last])
        if ours in out:
            raise MgenError(
                f"duplicate after removing the prefixes of wrappers: {shown(given[ours])} and {shown(name)} are both {shown(ours)}"
            )
        removed.update({part for part in parts if part in PREFIXES})
        out[ours], given[ours] = value.detach(), name
    notes = [f"{prefix}. removed from {count} names" for prefix, count in removed.items()]
    if removed and COUNTER in out:
        del out[COUNTER]
        notes.append(f"{COUNTER} left out: the number of averaged states, not a weight")
    if not out:
        raise MgenError("no state dict (a mapping from names to tensors): there is nothing in it")
    return out, notes


def _check(name: object, value: object) -> None:
    if not isinstance(name, str):
        raise MgenError(f"no state dict (a mapping from names to tensors): name {shown(name)} is no text")
    if not name.isprintable():
        raise MgenError(f"name {shown(name)} cannot be printed: damaged, or of another format")
    if not isinstance(value, Tensor):
        raise MgenError(
            f"no state dict (a mapping from names to tensors): {shown(name)} is a {type(value).__name__}; "
            f"looked into were {', '.join(RAW + EMA)}"
        )
    if problem := _problem(value):
        raise MgenError(f"{shown(name)} {problem}: re-save the weights as plain tensors of fp32")


def _problem(value: Tensor) -> str | None:
    """Why a tensor is no weight, without looking at its numbers."""
    if value.is_meta:
        return "has a shape but no numbers (device meta)"
    if value.is_quantized:
        return f"is quantized ({value.dtype})"
    if value.layout is not torch.strided or value.is_nested:
        return "is sparse or nested"
    if not value.is_floating_point() and value.dtype not in _INTEGERS:
        return f"is of type {value.dtype}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"repeats the numbers of a smaller tensor in shape {tuple(value.shape)}"
    return None
