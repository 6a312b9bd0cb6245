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
from mgen.errors import check_choice
from mgen.heads.chains import ChainSettings
from mgen.samplers import ParallelSampler

PARTS = ("trunk", "head", "decoder")


@dataclass
class Parts:
    """What the benchmark needs of a pipeline; the tokenizer may be missing."""

    generator: Any
    tokenizer: Any
    sampler: ParallelSampler


def random_pipeline(settings: dict[str, Any], tokenizer: str | None) -> Parts:
    """A generator with random weights, as a `model:` section describes it, and a tokenizer for decoding.

    Args:
        tokenizer: a size of VQGAN or KLTokenizer, "auto" (maskgit-f16 for ids, kl16 for vectors), or None: no decoding.
    """
    import mgen
    from mgen.tokenizers.vqgan import SIZES as VQGAN_SIZES
    from mgen.training.config import build_model

    sizes: dict[str, tuple[Any, dict[str, Any]]]
    sizes = {name: (mgen.VQGAN, size) for name, size in VQGAN_SIZES.items()}
    sizes |= {name: (mgen.KLTokenizer, size) for name, size in mgen.KLTokenizer.SIZES.items() if size.get("scale", 1)}

    names = [name for name in mgen.MODELS if hasattr(getattr(mgen, name), "context")]
    check_choice("model class", str(settings.get("class")), names)
    torch.manual_seed(0)
    generator = build_model(settings, "").eval()
    made = None
    if tokenizer == "auto":
        tokenizer = "kl16" if generator.spec.kind == "vector" else "maskgit-f16"
    if tokenizer is not None:
        cls, size = sizes[check_choice("--tokenizer", tokenizer, sizes)]
        made = cls(**size)
        made.register_to_config(image_size=made.factor * generator.config.side)
        made.spec.require(generator.spec, by=type(generator).__name__)
        made.eval().fuse().to(memory_format=torch.channels_last)
    return Parts(generator, made, ParallelSampler.suited(generator))


def sampler_for(pipe: Any, *, recipe: str | None, **settings: Any) -> ParallelSampler:
    """The pipeline's sampler, or a recipe's, with settings replaced."""
    sampler = pipe.sampler
    if recipe:
        sampler = ParallelSampler.suited(pipe.generator, *recipe_settings(recipe))
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
    """A generator whose `context` and head are timed; everything else is the generator's own."""

    def __init__(self, generator: Any, clock: Clock) -> None:
        self.spec, self.null_class = generator.spec, generator.null_class
        self.context = clock.wrap("trunk", generator.context)
        self.head = TimedHead(generator.head, clock)


class TimedHead:
    """`sample` as the head's own; of a categorical head, the draw is kept apart from the network part, `logits`."""

    def __init__(self, head: Any, clock: Clock) -> None:
        self._head = head
        if hasattr(head, "logits"):
            self._logits = clock.wrap("head", head.logits)
        else:
            self.plan, self.tables = clock.wrap("head", head.plan), head.tables
            self.sample = clock.wrap("head", head.sample)  # type: ignore[method-assign]

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

    context = counted("trunk", generator.context)
    vector, known_tokens = generator.spec.kind == "vector", 0
    shape = (length, generator.spec.channels) if vector else (length,)
    guided = sampler.guided(length)
    rows = {False: 0, True: 0}  # positions that pass the head, without and with a null row
    for evaluated, revealed, null in zip(*_evaluated(sampler, length), guided[sampler.config.start :]):
        if evaluated:
            b = batch_size * (2 if null else 1)
            tokens = torch.zeros(b, *shape, dtype=torch.float32 if vector else torch.int64, device="meta")
            known = torch.zeros(b, length, dtype=torch.bool, device="meta")
            positions = torch.zeros(b, evaluated, dtype=torch.int64, device="meta")
            label = torch.zeros(b, dtype=torch.int64, device="meta")
            context(tokens, known, label, positions=positions, visible=(known_tokens, known_tokens))
            rows[null] += batch_size * evaluated
        known_tokens += revealed
    _count_head(generator, sampler, rows, counted, counts)
    if pipe.tokenizer is not None:
        tokenizer = copy.deepcopy(pipe.tokenizer).to("meta")
        tokens = torch.zeros(batch_size, *shape, dtype=torch.float32 if vector else torch.int64, device="meta")
        counted("decoder", tokenizer.decode)(tokens, grid)
    return counts


def _count_head(
    generator: Any,
    sampler: ParallelSampler,
    rows: dict[bool, int],
    counted: Callable[..., Any],
    counts: dict[str, int],
) -> None:
    """FLOPs of the head: those of one position times how many there are, as the head treats positions apart."""
    head, total = generator.head, 0
    vector = generator.spec.kind == "vector"
    draws = ChainSettings.of(sampler.config.head or {}).draws
    for null, count in rows.items():
        if count:
            counts["head"] = 0
            z = torch.zeros(2 if null else 1, 1, head.width, device="meta")
            if vector:
                noise = torch.zeros(draws, 1, 1, generator.spec.channels, device="meta")
                plan = head.plan(sampler.config.head or {})
                counted("head", head.sample)(z, noise=noise, plan=plan, guidance=2.0 if null else None)
            else:
                counted("head", head.logits)(z)
            total += counts["head"] * count
    counts["head"] = total


def _evaluated(sampler: ParallelSampler, length: int) -> tuple[list[int], list[int]]:
    """Positions evaluated in each step (the unknown ones, or those that a fixed order is about to reveal), and revealed."""
    after = sampler.counts(unknown=length, length=length)
    before = [length, *after[:-1]]
    revealed = [b - a for b, a in zip(before, after)]
    if sampler.config.order == "confidence":
        return [b if r else 0 for b, r in zip(before, revealed)], revealed
    return revealed, revealed


@torch.inference_mode()
def bench(
    pipe: Any, sampler: ParallelSampler, *, batch_size: int, repeats: int, dtype: str, device: torch.device
) -> dict[str, Any]:
    """All figures of one benchmark, as plain numbers."""
    from mgen.pipeline import DTYPES

    generator, steps = pipe.generator, sampler.config.steps
    condition = torch.arange(batch_size, device=device) % generator.num_classes
    cast = (
        nullcontext() if dtype == "fp32" else torch.autocast(device.type, DTYPES[check_choice("dtype", dtype, DTYPES)])
    )

    def run(clock: Clock) -> Tensor:
        noise = sampler.draw(generator, range(batch_size)).to(device)
        with cast:
            for step in sampler(Timed(generator, clock), condition, noise=noise):
                tokens = step.tokens
        if pipe.tokenizer is not None:
            clock.wrap("decoder", pipe.tokenizer.decode)(tokens, generator.spec.grid)
        return tokens

    with cast:
        next(iter(sampler(generator, condition, noise=sampler.draw(generator, range(batch_size)).to(device))))
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
