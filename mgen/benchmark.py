"""Timing of sampling: trunk, head, decoder and the sampler around them, against counted FLOPs and the machine's peak.

FLOPs are counted by torch's FlopCounterMode over one run on the meta device, where nothing is computed: matrix products,
convolutions and attention, one multiplication and addition as 2.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mgen.checkpoints.recipes import recipe_settings
from mgen.errors import MgenError, check_choice
from mgen.samplers import Noise, ParallelSampler, draw_noise

PARTS = ("trunk", "head", "decoder")


@dataclass
class Parts:
    """What the benchmark needs of a pipeline; the tokenizer may be missing."""

    generator: Any
    tokenizer: Any
    sampler: ParallelSampler


def random_pipeline(settings: dict[str, Any], tokenizer: str | None) -> Parts:
    """A generator with random weights, as a `model:` section describes it, and the VQGAN of that name for decoding."""
    import mgen
    from mgen.tokenizers.vqgan import SIZES as VQGAN_SIZES
    from mgen.training.config import build_model

    names = [name for name in mgen.MODELS if hasattr(getattr(mgen, name), "context")]
    check_choice("model class", str(settings.get("class")), names)
    torch.manual_seed(0)
    generator = build_model(settings, "").eval()
    vqgan = None
    if tokenizer is not None:
        check_choice("--tokenizer", tokenizer, VQGAN_SIZES)
        vqgan = mgen.VQGAN(**VQGAN_SIZES[tokenizer], image_size=16 * generator.config.side).eval().fuse()
        vqgan.to(memory_format=torch.channels_last)
        if vqgan.spec.vocab != generator.spec.vocab:
            raise MgenError(
                f"{tokenizer} has {vqgan.spec.vocab} codes, the generator {generator.spec.vocab}: use --tokenizer none"
            )
    return Parts(generator, vqgan, ParallelSampler())


def sampler_for(pipe: Any, *, recipe: str | None, **settings: Any) -> ParallelSampler:
    """The pipeline's sampler, or a recipe's, with settings replaced."""
    sampler = pipe.sampler
    if recipe:
        sampler = ParallelSampler.from_settings(*recipe_settings(recipe))
    return sampler.override(**settings)


class Clock:
    """Adds up the time spent inside functions it wraps; waits for a GPU before every reading."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def read(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.read()
            out = function(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + self.read() - start
            return out

        return timed


class Timed:
    """A generator whose `context` and head's `logits` are timed; everything else is the generator's own."""

    def __init__(self, generator: Any, clock: Clock) -> None:
        self.spec, self.null_class = generator.spec, generator.null_class
        self.context = clock.wrap("trunk", generator.context)
        self.head = TimedHead(generator.head, clock)


class TimedHead:
    """`sample` as the head's own, with the time of its network part, `logits`, kept apart from that of the draw."""

    def __init__(self, head: Any, clock: Clock) -> None:
        self._head, self._logits = head, clock.wrap("head", head.logits)

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        plain = self._head.logits
        self._head.logits = self._logits
        try:
            return self._head.sample(*args, **kwargs)
        finally:
            self._head.logits = plain


def matmul_peak(dtype: torch.dtype, device: torch.device, *, size: int = 2048, seconds: float = 1.0) -> float:
    """Fastest measured FLOP/s of a square matrix product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    clock = Clock(device)
    best, began = float("inf"), clock.read()
    while clock.read() - began < seconds or best == float("inf"):
        start = clock.read()
        a @ b
        best = min(best, clock.read() - start)
    return 2 * size**3 / best


def count_flops(pipe: Any, sampler: ParallelSampler, batch_size: int) -> dict[str, int]:
    """FLOPs of one run, by part, counted without computing anything."""
    import copy

    generator = copy.deepcopy(pipe.generator).to("meta")
    length, grid = generator.spec.length, generator.spec.grid
    counts = dict.fromkeys(PARTS, 0)

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # The math form shows its two products to the counter; fused kernels have the same number of operations.
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                out = function(*args, **kwargs)
            counts[name] += counter.get_total_flops()
            return out

        return call

    context, logits = counted("trunk", generator.context), counted("head", generator.head.logits)
    guided = _guided(sampler)
    for evaluated, null in zip(_evaluated(sampler, length), guided):
        if evaluated:
            b = batch_size * (2 if null else 1)
            ids = torch.zeros(b, length, dtype=torch.int64, device="meta")
            positions = torch.zeros(b, evaluated, dtype=torch.int64, device="meta")
            z = context(ids, ids > 0, torch.zeros(b, dtype=torch.int64, device="meta"), positions=positions)
            logits(z)
    if pipe.tokenizer is not None:
        tokenizer = copy.deepcopy(pipe.tokenizer).to("meta")
        counted("decoder", tokenizer.decode)(torch.zeros(batch_size, length, dtype=torch.int64, device="meta"), grid)
    return counts


def _guided(sampler: ParallelSampler) -> list[bool]:
    from mgen.samplers import per_step

    c = sampler.config
    return [abs(s - 1) > c.guidance_tolerance for s in per_step(c.guidance, c.steps)][c.start :]


def _evaluated(sampler: ParallelSampler, length: int) -> list[int]:
    """Positions evaluated in each step: the unknown ones, or those that a fixed order is about to reveal."""
    after = sampler.counts(unknown=length, length=length)
    before = [length, *after[:-1]]
    if sampler.config.order == "confidence":
        return [b if b > a else 0 for b, a in zip(before, after)]
    return [b - a for b, a in zip(before, after)]


@torch.inference_mode()
def bench(
    pipe: Any, sampler: ParallelSampler, *, batch_size: int, repeats: int, dtype: str, device: torch.device
) -> dict[str, Any]:
    """All figures of one benchmark, as plain numbers."""
    from mgen.pipeline import DTYPES

    generator, steps = pipe.generator, sampler.config.steps
    condition = torch.arange(batch_size, device=device) % generator.config.num_classes
    cast = (
        nullcontext() if dtype == "fp32" else torch.autocast(device.type, DTYPES[check_choice("dtype", dtype, DTYPES)])
    )

    def run(clock: Clock) -> Tensor:
        noise: Noise = draw_noise(range(batch_size), steps=steps, length=generator.spec.length).to(device)
        with cast:
            for step in sampler(Timed(generator, clock), condition, noise=noise):
                tokens = step.tokens
        if pipe.tokenizer is not None:
            clock.wrap("decoder", pipe.tokenizer.decode)(tokens, generator.spec.grid)
        return tokens

    with cast:
        next(
            iter(
                sampler(
                    generator,
                    condition,
                    noise=draw_noise(range(batch_size), steps=steps, length=generator.spec.length).to(device),
                )
            )
        )
    best: dict[str, float] = {}
    for _ in range(repeats):
        clock = Clock(device)
        start = clock.read()
        run(clock)
        total = clock.read() - start
        if not best or total < best["total"]:
            best = {**dict.fromkeys(PARTS, 0.0), **clock.seconds, "total": total}
    best["sampling"] = best["total"] - sum(best[part] for part in PARTS)
    flops = count_flops(pipe, sampler, batch_size)
    peak = matmul_peak(DTYPES[dtype], device)
    network = best["trunk"] + best["head"]
    return {
        "generator": type(generator).__name__,
        "parameters": sum(p.numel() for p in generator.parameters()),
        "batch_size": batch_size,
        "steps": steps,
        "dtype": dtype,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "seconds": best,
        "seconds_per_image": best["total"] / batch_size,
        "tflops_per_image": {k: v / batch_size / 1e12 for k, v in flops.items()}
        | {"total": sum(flops.values()) / batch_size / 1e12},
        "peak_gflops": peak / 1e9,
        "share_of_peak": {
            "trunk and head": (flops["trunk"] + flops["head"]) / network / peak,
            "all": sum(flops.values()) / best["total"] / peak,
        },
        "sampling_over_network": best["sampling"] / network,
    }


def table(f: dict[str, Any]) -> str:
    """The figures for a person."""
    s, total = f["seconds"], f["seconds"]["total"]
    lines = [
        f"{f['generator']}, {f['parameters'] / 1e6:.1f} M parameters, {f['steps']} steps, batch {f['batch_size']}, "
        f"{f['dtype']}, {f['device']}, {f['threads']} threads",
        f"{'part':<10} {'seconds':>9} {'share':>7} {'TFLOPs/image':>13}",
    ]
    for part in ("trunk", "head", "sampling", "decoder"):
        flops = f["tflops_per_image"].get(part)
        lines.append(
            f"{part:<10} {s[part]:>9.3f} {s[part] / total:>7.1%} {'' if flops is None else format(flops, '.4f'):>13}"
        )
    lines += [
        f"{'all':<10} {total:>9.3f} {'':>7} {f['tflops_per_image']['total']:>13.4f}",
        f"seconds per image                {f['seconds_per_image']:.3f}",
        f"sampling over trunk and head     {f['sampling_over_network']:.2%}",
        f"matmul peak, measured            {f['peak_gflops']:.0f} GFLOP/s",
        f"share of the peak                {f['share_of_peak']['trunk and head']:.0%} in trunk and head, "
        f"{f['share_of_peak']['all']:.0%} in all",
    ]
    return "\n".join(lines)
