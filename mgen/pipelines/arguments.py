"""The arguments of a pipeline's call, checked before any work. Notation: B images, L positions, C numbers or ids of a position."""

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mgen.generators import Cascade, Generator
from mgen.samplers import ParallelSampler
from mgen.samplers.parallel import Given
from mgen.tokens import TokenSpec, has_values
from mgen.utils.errors import MgenError, shown
from mgen.utils.schema import Count, build, schema


@schema
class CallOptions:
    """The plain arguments of MaskedPipeline.__call__."""

    seed: int | None = None
    batch_size: Count | None = None
    num_images_per_prompt: Annotated[int, Field(ge=1, le=2**16)] = 1
    complete: bool = False
    progress: bool = True
    return_dict: bool = True
    output_type: Literal["pil", "np", "pt", "uint8", "raw", "tokens", "latent"] = "pil"


def call_options(**given: object) -> CallOptions:
    """The checked arguments; MgenError for the first that is wrong."""
    return build(CallOptions, {name: number(value) for name, value in given.items()})


def as_list(class_labels: object, conditional: bool) -> object:
    """A single class as a list of one; `None` too, of a model without classes, where nothing else can be asked for."""
    label = number(class_labels)
    single = isinstance(label, int | str) or (label is None and not conditional)
    return [label] if single else class_labels


def one_of(value: object, name: str, other: object, other_name: str) -> object:
    """The value of a setting that has two names; MgenError if both are given."""
    if value is not None and other is not None:
        raise MgenError(f"{name} and {other_name} are two names of one setting: give one of them")
    return number(value if value is not None else other)


def chosen_sampler(
    generator: Generator | Cascade, own: ParallelSampler, given: object, **settings: Any
) -> ParallelSampler:
    """The sampler of a call: the one `given`, or the pipeline's `own`, with `settings` in place of its own; MgenError unless it fits."""
    if given is not None and not isinstance(given, ParallelSampler):
        raise MgenError(f"sampler is {shown(given)}: expected a ParallelSampler, such as pipe.sampler.override(…)")
    chosen = (given or own).override(**settings)
    chosen.check(generator)
    return chosen


def given_tokens(
    generator: Generator | Cascade, tokens: object, known: object, first_stage: object, count: int
) -> list[Given | None]:
    """The given tokens of a call, of the image and of its first stage, on the generator's device; see `check_given`."""
    found = [check_given(tokens, known, generator.tokens, count), None]
    if first_stage is not None:
        if not isinstance(generator, Cascade):
            raise MgenError(f"{type(generator).__name__} has no first stage: leave first_stage out")
        if not isinstance(first_stage, tuple | list) or len(first_stage) != 2:
            raise MgenError(f"first_stage is {shown(first_stage)}: expected its tokens and a bool mask of given ones")
        names = ("first_stage[0]", "first_stage[1]")
        found[1] = check_given(first_stage[0], first_stage[1], generator.first_stage_spec, count, names)
    return [None if pair is None else (pair[0].to(generator.device), pair[1].to(generator.device)) for pair in found]


def number(value: object) -> object:
    """A number of numpy or a tensor of one as a plain number; other values as they are."""
    if isinstance(value, np.number | np.bool_) or (isinstance(value, Tensor) and value.ndim == 0 and has_values(value)):
        return value.item()
    return value


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
