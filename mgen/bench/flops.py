"""Floating-point operations of a sampling run, counted without computing anything.

The sampler itself runs, on one image, with a generator whose passes happen on the meta device under torch's FlopCounterMode: what is
counted is what is executed, cached and lazy steps and carried features included. One multiplication and addition are 2 FLOPs.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mgen.bench.proxy import AnyGenerator, Proxy, proxy, watched
from mgen.bench.repeats import Repeats
from mgen.generators.generator import Generator
from mgen.heads.head import DenoisingHead, Draw, Head
from mgen.nn.cache import CachedStep, LazyStep
from mgen.nn.denoising import Denoiser, Network
from mgen.pipelines.guide import GuidedPipeline
from mgen.samplers import ParallelSampler
from mgen.tokenizers.base import Tokenizer
from mgen.tokens import TokenSpec
from mgen.utils.limits import check_time

P = ParamSpec("P")
R = TypeVar("R")
PARTS = ("trunk", "head", "decoder")
FASTEST = {"cpu": 2e13, "cuda": 5e15}  # operations per second, more than any has
NOTICED = 10**6  # images; fewer are not worth an estimate


class Networks(Protocol):
    """The networks of a pipeline; without a tokenizer nothing is decoded."""

    transformer: AnyGenerator
    tokenizer: Tokenizer | None


@dataclass
class Counts:
    """FLOPs of one image by part, and the passes of the trunk that took them; a row of the null class is a pass of its own.

    Lazy steps count as cached ones. `repeats`: knows the blocks that were counted.
    """

    flops: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    passes: dict[str, int] = field(default_factory=lambda: {"full": 0, "cached": 0})
    repeats: Repeats = field(default_factory=Repeats)

    @property
    def total(self) -> int:
        return sum(self.flops.values())

    def wrap(self, part: str, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, counted under `part`, with its tensors moved to the meta device."""

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            moved: Any = tuple(_to_meta(value) for value in args)
            named: Any = {name: _to_meta(value) for name, value in kwargs.items()}
            # The math form shows its two products to the counter; fused kernels have the same number of operations.
            before = self.repeats.skipped
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                out = function(*moved, **named)
            self.flops[part] += counter.get_total_flops() + self.repeats.skipped - before
            return out

        return call


def _to_meta(value: object) -> object:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, CachedStep):
        return replace(value, group=value.group.to("meta"))
    if isinstance(value, LazyStep):
        return replace(value, latest=value.latest.to("meta"), drawn=value.drawn.to("meta"))
    return value


def count_run(
    pipe: Networks, sampler: ParallelSampler, *, decode: bool = True, repeats: Repeats | None = None
) -> Counts:
    """The operations of one image: a run of `sampler` with the pipeline's generator, and its guide if it has one, then decoding if there
    is a tokenizer and `decode`.

    `repeats`: what is known of the generator's blocks from other runs, which saves most of the time.
    """
    sampled = pipe.sampled() if isinstance(pipe, GuidedPipeline) else pipe.transformer
    generator, counts = copy.deepcopy(sampled).to("meta").requires_grad_(False), Counts()
    counts.repeats = Repeats() if repeats is None else repeats
    counts.repeats.watch(generator)
    net = watched(generator, partial(counted, counts=counts), counts.wrap)
    *_, step = sampler(net, torch.zeros(1, dtype=torch.int64), noise=sampler.make_noise(net, [0]))
    if decode and pipe.tokenizer is not None:
        tokenizer = copy.deepcopy(pipe.tokenizer).to("meta")
        counts.wrap("decoder", tokenizer.decode)(step.tokens, generator.tokens.grid)
    return counts


def check_duration(pipe: Networks, sampler: ParallelSampler, images: int) -> None:
    """Raise MgenError if sampling so many images takes more than a year on the fastest machine there is."""
    if images >= NOTICED:
        seconds = count_run(pipe, sampler).total * images / FASTEST.get(pipe.transformer.device.type, FASTEST["cuda"])
        check_time(
            seconds, f"sampling {images:,} images in {sampler.config.steps} steps", "ask for fewer images or steps"
        )


def counted(generator: Generator, counts: Counts) -> Generator:
    """A proxy of a generator on the meta device whose passes are counted and return zeros."""

    def watch(kind: str, function: Callable[Concatenate[Tensor, P], Tensor | None]) -> Callable[..., Tensor | None]:
        counted = counts.wrap("trunk", function)

        def call(tokens: Tensor, *args: P.args, **kwargs: P.kwargs) -> Tensor | None:
            counts.passes[kind] += len(tokens)
            out = counted(tokens, *args, **kwargs)
            return None if out is None else torch.zeros(out.shape)

        return call

    finish = counts.wrap("trunk", generator.to_context)
    head = CountedHead(generator.head, counts, generator.units)
    guided = generator.guided_head  # the same, or of a generator and its guide
    return proxy(
        generator,
        context=watch("full", generator.context),
        cached_step=watch("cached", generator.cached_step),
        lazy_step=watch("cached", generator.lazy_step),
        carry=watch("full", generator.carry),
        to_context=lambda *inputs: torch.zeros(finish(*inputs).shape),
        start=counts.wrap("trunk", generator.start),
        denoiser=lambda *inputs, **kwargs: CountedDenoiser(
            generator.denoiser(*(value.to("meta") for value in inputs), **kwargs), counts
        ),
        head=head,
        guided_head=head if guided is generator.head else CountedHead(guided, counts, generator.units),
    )


class CountedDenoiser(Denoiser):
    """The network of a trunk on the meta device. Steps of a chain do not differ: the second one is counted for all later ones."""

    def __init__(self, inner: Denoiser, counts: Counts) -> None:
        self.inner, self.counts = inner, counts

    def at(self, times: Tensor) -> Network:
        """See Denoiser.at."""
        network, counts = self.inner.at(times.to("meta")), self.counts
        second: list[tuple[int, Tensor]] = []

        def call(x: Tensor, j: int) -> Tensor:
            counts.passes["full"] += len(x)
            if second:
                counts.flops["trunk"] += second[0][0]
                return second[0][1]
            before = counts.repeats.skipped
            with FlopCounterMode(display=False) as counter:
                z = network(x, j)
            if j:
                second.append((counter.get_total_flops() + counts.repeats.skipped - before, z))
            return z

        return call


class CountedHead(Proxy):
    """A proxy of a head that draws zeros. A position's operations do not depend on it, so one is counted and multiplied.

    Of a joint head each draw is counted.
    """

    def __init__(self, head: Head, counts: Counts, units: TokenSpec) -> None:
        super().__init__(head)
        self._head, self._counts, self._units = head, counts, units
        self._one: dict[tuple[object, ...], int] = {}

    def denoise(self, denoiser: Denoiser, *, noise: Tensor, **options: object) -> Draw:
        """See DenoisingHead.denoise; all of it counts as the trunk's."""
        assert isinstance(self._head, DenoisingHead)
        denoise: Callable[..., Draw] = self._counts.wrap("trunk", self._head.denoise)
        denoise(denoiser, noise=noise, **options)
        return Draw(torch.zeros(noise.shape[1:]), None)

    def sample(
        self, z: Tensor, *, noise: Tensor, plan: object, guidance: float | None = None, **options: object
    ) -> Draw:
        """See Head.sample."""
        rows, positions = 1 if guidance is None else 2, z.shape[1]
        drawn = torch.zeros(len(z) // rows, positions, *self._units.shape[1:], dtype=self._units.dtype)
        if self._head.joint:
            sample: Callable[..., Draw] = self._counts.wrap("head", self._head.sample)
            sample(z, noise=noise, plan=plan, guidance=guidance, **options)
            return Draw(drawn, None)
        # Noise of ids is (B, M, …), that of a chain (steps, B, M, C).
        first = noise[:, :1, :1] if self._head.noise_spec({}).normal else noise[:1, :1]
        self._count(self._head.sample, z[:rows, :1], options, positions, noise=first, plan=plan, guidance=guidance)
        return Draw(drawn, torch.zeros(drawn.shape[:2]) if self._head.has_log_prob else None)

    def log_moments(self, z: Tensor, *, plan: object, guidance: float | None = None, **options: object) -> Tensor:
        """See Head.log_moments."""
        rows, positions = 1 if guidance is None else 2, z.shape[1]
        self._count(self._head.log_moments, z[:rows, :1], options, positions, plan=plan, guidance=guidance)
        return torch.zeros(len(z) // rows, positions)

    def _count(
        self,
        function: Callable[..., object],
        z: Tensor,
        options: Mapping[str, object],
        positions: int,
        **settings: object,
    ) -> None:
        """Count a function of the head at so many positions, from that at one, z (1 or 2, 1, D), which is computed once."""
        part = {"part": options["part"]} if "part" in options else {}
        key = (function.__name__, id(settings["plan"]), settings["guidance"] is not None, *part.values())
        if key not in self._one:
            counts = Counts(repeats=self._counts.repeats)
            counts.wrap("head", function)(z, **settings, **part)
            self._one[key] = counts.total
        self._counts.flops["head"] += self._one[key] * positions
