"""Timing of sampling: trunk, head, decoder and the sampler around them, against counted FLOPs and the machine's peak.

FLOPs are counted in mgen.bench.flops: matrix products, convolutions and attention, one multiplication and addition as 2.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mgen.bench.flops import PARTS, count_run
from mgen.bench.standin import StandIn
from mgen.heads import CategoricalHead
from mgen.samplers import ParallelSampler
from mgen.utils.errors import check_choice


@dataclass
class Parts:
    """What the benchmark needs of a pipeline; the tokenizer may be missing."""

    generator: Any
    tokenizer: Any
    sampler: ParallelSampler


def random_pipeline(settings: dict[str, Any], tokenizer: str | None) -> Parts:
    """A generator with random weights, as a `model:` section describes it, and a tokenizer for decoding.

    Args:
        tokenizer: a size of VQGAN, LlamaGenVQ or KLTokenizer, None (no decoding), or "auto": kl16 for vectors, vq16 for 16384 ids,
            maskgit-f16 for others.
    """
    import mgen
    from mgen.convert.tokenbridge import quantized_for
    from mgen.training.config import build_model

    sizes: dict[str, tuple[Any, dict[str, Any]]]
    sizes = {name: (mgen.VQGAN, size) for name, size in mgen.VQGAN.SIZES.items()}
    sizes |= {name: (mgen.LlamaGenVQ, size) for name, size in mgen.LlamaGenVQ.SIZES.items()}
    sizes |= {name: (mgen.KLTokenizer, size) for name, size in mgen.KLTokenizer.SIZES.items() if size.get("scale", 1)}

    names = [name for name in mgen.MODELS if hasattr(getattr(mgen, name), "context")]
    check_choice("model class", str(settings.get("class")), names)
    torch.manual_seed(0)
    generator = build_model(settings, "").eval()
    made = None
    if tokenizer == "auto":
        ids = "vq16" if generator.spec.vocab_size == 16384 else "maskgit-f16"
        tokenizer = ids if generator.spec.kind == "index" else "kl16"
    if tokenizer is not None:
        cls, size = sizes[check_choice("--tokenizer", tokenizer, sizes)]
        made = cls(**size)
        made.register_to_config(image_size=made.factor * generator.config.side)
        made = quantized_for(generator, made)
        made.spec.require(generator.spec, by=type(generator).__name__)
        made.eval().fuse().to(memory_format=torch.channels_last)
    return Parts(generator, made, ParallelSampler.suited(generator))


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


def timed(generator: Any, clock: Clock) -> StandIn:
    """The generator with its evaluations and its head timed; of a categorical head, the draw apart from the network part."""
    names = ("context", "local", "memory") + (("encode",) if generator.carries else ())
    trunk = {name: clock.wrap("trunk", getattr(generator, name)) for name in names}
    if generator.staged:
        for name in ("first", "second"):
            trunk[name] = partial(_timed_stage, clock.wrap("trunk", getattr(generator, name)), clock)
    head: Any = generator.head
    if not isinstance(generator.head, CategoricalHead):
        parts = {name: clock.wrap("head", getattr(head, name)) for name in ("plan", "sample")}
        return StandIn(generator, head=StandIn(head, **parts), **trunk)
    logits = clock.wrap("head", head.logits)

    def sample(*args: Any, **kwargs: Any) -> Any:
        plain = head.logits
        head.logits = logits
        try:
            return head.sample(*args, **kwargs)
        finally:
            head.logits = plain

    return StandIn(generator, head=StandIn(head, sample=sample), **trunk)


def _timed_stage(stage: Callable[..., Any], clock: Clock, *args: Any) -> StandIn:
    return timed(stage(*args), clock)


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


@torch.inference_mode()
def bench(
    pipe: Any, sampler: ParallelSampler, *, batch_size: int, repeats: int, dtype: str, device: torch.device
) -> dict[str, Any]:
    """All figures of one benchmark, as plain numbers."""
    from mgen.pipelines.pipeline import DTYPES

    generator, steps = pipe.generator, sampler.config.steps
    condition = torch.arange(batch_size, device=device) % generator.num_classes
    cast = (
        nullcontext() if dtype == "fp32" else torch.autocast(device.type, DTYPES[check_choice("dtype", dtype, DTYPES)])
    )

    def run(clock: Clock) -> Tensor:
        noise = sampler.draw(generator, range(batch_size)).to(device)
        with cast:
            for step in sampler(timed(generator, clock), condition, noise=noise):
                tokens = step.tokens
        if pipe.tokenizer is not None:
            clock.wrap("decoder", pipe.tokenizer.decode)(tokens, generator.spec.grid)
        return tokens

    spec = generator.unit_spec
    generator.lay_out(batch_size * (2 if any(sampler.guided(spec.length, spec.global_tokens)) else 1))
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
    counts = count_run(pipe, sampler)
    flops = {part: value * batch_size for part, value in counts.flops.items()}
    peak = matmul_peak(DTYPES[dtype], device)
    network = best["trunk"] + best["head"]
    return {
        "generator": type(generator).__name__,
        "parameters": sum(p.numel() for p in generator.parameters()),
        "batch_size": batch_size,
        "steps": steps,
        "evaluations_per_image": {"full": counts.full, "local": counts.local},
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
        f"{f['dtype']}, {f['device']}, {f['threads']} threads, evaluations per image: {f['evaluations_per_image']['full']} full, "
        f"{f['evaluations_per_image']['local']} local",
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
