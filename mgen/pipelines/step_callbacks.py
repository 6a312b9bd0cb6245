"""What a pipeline calls after every step: mgen's `callback`, and `callback_on_step_end` as diffusers' pipelines know it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mgen.pipelines.arguments import check_ids
from mgen.samplers import Step
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError, check_choice, shown

TENSORS = ("tokens", "known")
OnStepEnd = Callable[[Any, int, int, dict[str, Tensor]], Mapping[str, Tensor] | None]


@dataclass(frozen=True, kw_only=True)
class StepCallbacks:
    """The callbacks of a call.

    Args:
        callback: gets every Step. on_step_end: gets (pipe, step_index, timestep, callback_kwargs) and may return tensors in place of
            those in callback_kwargs. The timestep is the number of steps that follow. tensors: which of TENSORS it is given.
    """

    callback: Callable[[Step], None] | None
    on_step_end: OnStepEnd | None
    tensors: Sequence[str]

    def __post_init__(self) -> None:
        for name, function, takes in (
            ("callback", self.callback, "a Step"),
            ("callback_on_step_end", self.on_step_end, "(pipe, step_index, timestep, callback_kwargs)"),
        ):
            if function is not None and not callable(function):
                raise MgenError(f"{name} is {shown(function)}: expected a function that takes {takes}")
        if not isinstance(self.tensors, list | tuple):
            raise MgenError(f"callback_on_step_end_tensor_inputs is {shown(self.tensors)}: expected a list of names")
        for name in self.tensors:
            check_choice("entry of callback_on_step_end_tensor_inputs", name, TENSORS)

    def __bool__(self) -> bool:
        return self.callback is not None or self.on_step_end is not None

    def __call__(self, pipe: Any, step: Step, index: int, left: int) -> None:
        """Call them after a step, number `index` of its batch, with `left` steps to come."""
        if self.callback is not None:
            self.callback(step)
        if self.on_step_end is None:
            return
        made = self.on_step_end(pipe, index, left, {name: getattr(step, name) for name in self.tensors})
        if made is None:
            return
        if not isinstance(made, Mapping):
            raise MgenError(f"callback_on_step_end returned {shown(made)}: expected callback_kwargs, or nothing")
        known = made.get("known", step.known)
        if known is not step.known and not (isinstance(known, Tensor) and torch.equal(known, step.known)):
            raise MgenError(
                "callback_on_step_end returned another mask of known tokens: how many are revealed is settled before the first step"
            )
        if (tokens := made.get("tokens", step.tokens)) is not step.tokens:
            stages = pipe.transformer.stages()
            _replace(step, tokens, stages[0 if step.first_stage else -1].tokens, pipe.transformer.capabilities.order)


def _replace(step: Step, tokens: object, spec: TokenSpec, order: str) -> None:
    """Put other tokens in the place of the known ones, for the steps that follow."""
    old = step.tokens
    if not isinstance(tokens, Tensor) or tokens.shape != old.shape or tokens.dtype != old.dtype:
        raise MgenError(
            f"callback_on_step_end returned tokens {shown(tokens)}: expected {old.dtype} of shape {tuple(old.shape)}"
        )
    tokens = tokens.to(old.device)
    known = step.known.view(*step.known.shape, *[1] * (old.ndim - 2))
    new = torch.where(known, tokens, old)
    if torch.equal(new, old):
        return
    if order != "any":
        raise MgenError("callback_on_step_end returned other tokens: this model has read the earlier ones already")
    if spec.kind == "vector" and not torch.isfinite(new).all():
        raise MgenError("callback_on_step_end returned tokens with NaN or infinity")
    if spec.kind != "vector":
        check_ids(new[new != old], spec, "what callback_on_step_end returned")
    old.copy_(new)
