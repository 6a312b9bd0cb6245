"""The arguments of a pipeline's call, checked before any work. Notation: B images, L positions, C numbers or ids of a position."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mgen.tokens import TokenSpec, has_values
from mgen.utils.errors import MgenError, shown
from mgen.utils.schema import Count, build, schema


@schema
class CallOptions:
    """The plain arguments of MaskedPipeline.__call__."""

    seed: int = 0
    batch_size: Count | None = None
    complete: bool = False
    progress: bool = True
    output_type: Literal["pil", "pt", "raw", "uint8", "tokens"] = "pil"


def call_options(**given: object) -> CallOptions:
    """The checked arguments; MgenError for the first that is wrong."""
    return build(CallOptions, {name: number(value) for name, value in given.items()})


def number(value: object) -> object:
    """A number of numpy or a tensor of one as a plain number; other values as they are."""
    if isinstance(value, np.number | np.bool_) or (isinstance(value, Tensor) and value.ndim == 0 and has_values(value)):
        return value.item()
    return value


def check_callback(callback: object) -> None:
    if callback is not None and not isinstance(callback, Callable):  # type: ignore[arg-type]
        raise MgenError(f"callback is {shown(callback)}: expected a function that takes a Step")


def check_indices(indices: object, count: int) -> Sequence[int]:
    """Numbers of the images in their run, one per image; by default 0, 1, 2 …"""
    if indices is None:
        return range(count)
    listed = isinstance(indices, Tensor | np.ndarray) and has_values(indices)
    found = indices.tolist() if listed else indices  # type: ignore[attr-defined]
    if isinstance(found, str | bytes) or not isinstance(found, Sequence):
        raise MgenError(f"indices is {shown(indices)}: expected a list of whole numbers, one for each image")
    if len(found) != count:
        raise MgenError(f"indices has {len(found)} entries for {count} images: give one for each")
    for index in found:
        if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < 2**63:
            raise MgenError(f"indices holds {shown(index)}: expected whole numbers of at least 0")
    return [int(index) for index in found]


def check_given(
    tokens: object, known: object, spec: TokenSpec, count: int, names: tuple[str, str] = ("tokens", "known")
) -> tuple[Tensor, Tensor] | None:
    """Given tokens and which of them are given, of `count` images; None if there are none. What isn't given becomes 0.

    Args:
        tokens: ids (B, L) or (B, L, C), or vectors (B, L, C). known: bool (B, L). names: of the two, for error messages.

    Raises:
        MgenError: one without the other, another type or shape, ids outside of the vocabulary, vectors that are not finite.
    """
    (first, second), values = names, {"vector": "vectors"}.get(spec.kind, "ids")
    if tokens is None and known is None:
        return None
    if not isinstance(tokens, Tensor) or not isinstance(known, Tensor):
        raise MgenError(
            f"{first} and {second} go together: a tensor of {values} {_shape(count, spec)}, and a bool mask {(count, spec.length)} of "
            "those that are given"
        )
    if not has_values(tokens) or not has_values(known):
        raise MgenError(
            f"{first} and {second} have no values to read: dense tensors of a device are needed, not meta ones"
        )
    if tokens.shape != (count, *spec.shape):
        raise MgenError(f"{first} has the shape {tuple(tokens.shape)}: {values} {_shape(count, spec)} are needed")
    if known.shape != (count, spec.length) or known.dtype != torch.bool:
        raise MgenError(
            f"{second} is {known.dtype} {tuple(known.shape)}: a bool mask {(count, spec.length)} is needed, True for given tokens"
        )
    known = known.to(tokens.device)
    where = known if tokens.ndim == 2 else known.unsqueeze(-1).expand_as(tokens)
    if spec.kind == "vector":
        if not tokens.is_floating_point():
            raise MgenError(f"{first} is {tokens.dtype}: vectors of floating-point numbers are needed")
        if not torch.isfinite(tokens[where]).all():
            raise MgenError(f"{first} holds NaN or infinity at given positions")
        return tokens.float().masked_fill(~where, 0), known
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise MgenError(f"{first} is {tokens.dtype}: ids of a whole type, such as torch.int64, are needed")
    check_ids(tokens[where], spec, first)
    return tokens.long().masked_fill(~where, 0), known


def check_ids(ids: Tensor, spec: TokenSpec, name: str) -> None:
    """Raise MgenError for an id outside of the vocabulary."""
    most = spec.vocab_size
    if most is not None and ids.numel() and (ids.min() < 0 or ids.max() >= most):
        wrong = ids.min().item() if ids.min() < 0 else ids.max().item()
        raise MgenError(f"{name} holds the id {wrong}: the ids of this model are 0 … {most - 1}")


def check_tokens(tokens: object, spec: TokenSpec) -> Tensor:
    """Tokens to decode, of a grid of any size: ids (B, L) or (B, L, C), or vectors (B, L, C); MgenError for anything else."""
    ids = spec.kind != "vector"
    wanted = f"a tensor of {'ids' if ids else 'vectors'} {('B', 'L', spec.channels)[: len(spec.shape) + 1]}"
    if not isinstance(tokens, Tensor) or tokens.ndim != 1 + len(spec.shape) or tokens.shape[2:] != spec.shape[1:]:
        given = f"of shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else shown(tokens)
        raise MgenError(f"tokens is {given}: {wanted} is needed")
    if not has_values(tokens):
        raise MgenError(f"tokens is {shown(tokens)}: {wanted} is needed, dense and on a device that holds values")
    if ids and (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool):
        raise MgenError(f"tokens is {tokens.dtype}: ids of a whole type, such as torch.int64, are needed")
    if not ids and not tokens.is_floating_point():
        raise MgenError(f"tokens is {tokens.dtype}: vectors of floating-point numbers are needed")
    if ids:
        check_ids(tokens, spec, "tokens")
    return tokens


def _shape(count: int, spec: TokenSpec) -> tuple[int, ...]:
    return (count, *spec.shape)
