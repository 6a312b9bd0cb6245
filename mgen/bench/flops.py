"""Floating-point operations of a sampling run, counted without computing anything.

The sampler itself runs, on one image, with a generator whose evaluations happen on the meta device under torch's FlopCounterMode:
what is counted is what is executed, local evaluations and carried features included. One multiplication and addition are 2.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mgen.bench.standin import StandIn
from mgen.nn.memory import Local
from mgen.samplers import ParallelSampler

PARTS = ("trunk", "head", "decoder")


@dataclass
class Counts:
    """FLOPs of one image by part, and how many evaluations of the trunk made them (null rows count as evaluations of their own)."""

    flops: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    full: int = 0
    local: int = 0

    @property
    def total(self) -> int:
        return sum(self.flops.values())

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counted under `part`, with tensors moved to the meta device."""

        def call(*args: Any, **kwargs: Any) -> Any:
            args = tuple(_meta(value) for value in args)
            kwargs = {name: _meta(value) for name, value in kwargs.items()}
            # The math form shows its two products to the counter; fused kernels have the same number of operations.
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                out = function(*args, **kwargs)
            self.flops[part] += counter.get_total_flops()
            return out

        return call


def _meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, Local):
        return Local(**{**vars(value), "group": value.group.to("meta")})
    return value


def count_run(pipe: Any, sampler: ParallelSampler) -> Counts:
    """The operations of one image of a run of `sampler` with the pipeline's generator and, if it has one, tokenizer."""
    generator, counts = copy.deepcopy(pipe.generator).to("meta").requires_grad_(False), Counts()
    stand_in = counted(generator, counts)
    condition = torch.zeros(1, dtype=torch.int64)
    *_, step = sampler(stand_in, condition, noise=sampler.draw(stand_in, [0]))
    if pipe.tokenizer is not None:
        tokenizer = copy.deepcopy(pipe.tokenizer).to("meta")
        counts.wrap("decoder", tokenizer.decode)(step.tokens, generator.spec.grid)
    return counts


def counted(generator: Any, counts: Counts) -> StandIn:
    """A generator on the meta device, or a stage of one, whose evaluations are counted and give zeros."""

    def context(tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        counts.full += len(tokens)
        return torch.zeros(trunk(tokens, *args, **kwargs).shape)

    def local(tokens: Tensor, *args: Any) -> Tensor:
        counts.local += len(tokens)
        return torch.zeros(near(tokens, *args).shape)

    trunk, near = counts.wrap("trunk", generator.context), counts.wrap("trunk", generator.local)
    replaced: dict[str, Any] = {"context": context, "local": local, "memory": counts.wrap("trunk", generator.memory)}
    if generator.carries:
        look = counts.wrap("trunk", generator.encode)

        def encode(tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
            counts.full += len(tokens)
            return look(tokens, *args, **kwargs)

        replaced["encode"] = encode
    if generator.staged:
        for name in ("first", "second"):
            stage = counts.wrap("trunk", getattr(generator, name))
            replaced[name] = partial(_counted_stage, stage, counts)
    return StandIn(generator, head=CountedHead(generator.head, counts, generator.unit_spec), **replaced)


def _counted_stage(stage: Callable[..., Any], counts: Counts, *args: Any) -> StandIn:
    return counted(stage(*args), counts)


class CountedHead:
    """A head that draws zeros. The operations of a position do not depend on it, so one is counted and multiplied.

    Of a head that draws the whole map, each draw is counted.
    """

    def __init__(self, head: Any, counts: Counts, spec: Any) -> None:
        self._head, self._counts, self._spec = head, counts, spec
        self._one: dict[tuple[Any, ...], int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)

    def sample(
        self, z: Tensor, *, noise: Tensor, plan: Any = None, guidance: float | None = None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        b, positions, own = len(z) // (2 if guidance is not None else 1), z.shape[1], self._spec
        drawn = torch.zeros(b, positions, *own.shape[1:], dtype=own.dtype)
        if getattr(self._head, "whole", False):
            self._counts.wrap("head", self._head.sample)(z, noise=noise, plan=plan, guidance=guidance, **options)
            return drawn, None
        part = {"part": options["part"]} if "part" in options else {}
        key = (id(plan), guidance is not None, *part.values())
        if key not in self._one:
            alone, counts = z[: 2 if guidance is not None else 1, :1], Counts()
            # Of a categorical head the noise is (B, M, …), of a chain (draws, B, M, C).
            first = noise[:, :1, :1] if self._head.draws({}).normal else noise[:1, :1]
            counts.wrap("head", self._head.sample)(alone, noise=first, plan=plan, guidance=guidance, **part)
            self._one[key] = counts.total
        self._counts.flops["head"] += self._one[key] * positions
        return drawn, torch.zeros(b, positions) if self._head.ranks else None
