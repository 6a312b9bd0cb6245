"""Seconds of sampling runs that take turns, for tools/less_compute.py."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mgen.bench.flops import Networks
from mgen.bench.proxy import Proxy
from mgen.heads.head import Draw
from mgen.samplers import ParallelSampler


class Sparse(Proxy):
    """A generator that gives zeros while `on` is not set. What a step costs depends on what is known, not on the values.

    For generators whose runs keep nothing between steps, and heads of single tokens.
    """

    def __init__(self, generator: Any) -> None:
        super().__init__(generator, on=True, width=0)
        self.head, self.guided_head = SparseHead(generator.head, self), SparseHead(generator.guided_head, self)

    def context(self, tokens: Tensor, known: Tensor, class_ids: Tensor, *, positions: Tensor, **options: Any) -> Tensor:
        """See Generator.context."""
        if not self.on:
            return torch.zeros(*positions.shape, self.width)
        z: Tensor = self._inner.context(tokens, known, class_ids, positions=positions, **options)
        self.width = z.shape[-1]
        return z


class SparseHead(Proxy):
    """The head of a Sparse generator."""

    def __init__(self, head: Any, owner: Sparse) -> None:
        super().__init__(head, owner=owner)

    def sample(self, z: Tensor, *, guidance: float | None = None, **options: Any) -> Draw:
        """See Head.sample."""
        if self.owner.on:
            return self._inner.sample(z, guidance=guidance, **options)
        units = self.owner.units
        shape = len(z) // (1 if guidance is None else 2), z.shape[1]
        log_prob = torch.zeros(shape) if self._inner.has_log_prob else None
        return Draw(torch.zeros(*shape, *units.shape[1:], dtype=units.dtype), log_prob)


def batch_of(pipe: Networks, generator: Any, sampler: ParallelSampler, batch: int, every: int = 1) -> Iterator[float]:
    """A batch, from its noise to its images, that pauses after every step and says how many steps that one stands for.

    every: compute every so many steps alone, from the middle of the first of them on; the others stand for none.
    """
    class_ids = torch.arange(batch) % generator.num_classes
    noise, steps = sampler.make_noise(generator, range(batch)), sampler.config.steps
    computed = range(every // 2, steps, every)
    net = generator
    if every > 1:
        net = Sparse(generator)
        net.context(*inputs_of(generator, class_ids), positions=torch.zeros(batch, 1, dtype=torch.int64))  # its width
        net.on = 0 in computed
    for step in sampler(net, class_ids, noise=noise):
        tokens = step.tokens
        yield steps / len(computed) if step.index in computed else 0.0
        if every > 1:
            net.on = step.index + 1 in computed
    if pipe.tokenizer is not None:
        pipe.tokenizer.decode(tokens, pipe.transformer.tokens.grid)


def inputs_of(generator: Any, class_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, known and class ids of a pass in which nothing is known."""
    units, batch = generator.units, len(class_ids)
    tokens = torch.zeros(batch, *units.shape, dtype=units.dtype)
    return tokens, torch.zeros(batch, units.length, dtype=torch.bool), class_ids


def in_turn(runs: dict[str, Iterator[float]], lengths: dict[str, int]) -> dict[str, float]:
    """CPU seconds of each run of `batch_of`; the one that is farthest from its end takes the next step."""
    seconds, done = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0)
    while runs:
        name = min(runs, key=lambda one: done[one] / lengths[one])
        began = time.process_time()
        stands_for = next(runs[name], None)
        seconds[name] += (time.process_time() - began) * (1.0 if stands_for is None else stands_for)
        done[name] += 1
        if stands_for is None:
            del runs[name]
    return seconds
