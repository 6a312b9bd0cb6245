"""Timing of sampling: trunk, head, decoder and the sampler around them, beside counted FLOPs and the machine's peak.

FLOPs are counted in mgen.bench.flops: matrix products, convolutions and attention, one multiplication and addition as 2.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from mgen.bench.flops import PARTS, Networks, check_duration, count_run
from mgen.bench.proxy import AnyGenerator, proxy, watched
from mgen.generators.build import build_model
from mgen.generators.generator import Generator
from mgen.generators.presets import model_name
from mgen.heads import CategoricalHead
from mgen.heads.head import DenoisingHead, Head
from mgen.nn.peak import fastest_product
from mgen.nn.precision import computing, held
from mgen.pipelines.sizes import check_batch
from mgen.samplers import Noise, ParallelSampler
from mgen.tokenizers import VQGAN, KLTokenizer, LlamaGenVQ, TiTok, Tokenizer
from mgen.utils.compiling import compile_network
from mgen.utils.config import Settings
from mgen.utils.devices import cpu_bf16_units
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.modeling import DTYPES

P = ParamSpec("P")
R = TypeVar("R")
TOKENIZERS: dict[str, type[VQGAN | LlamaGenVQ | KLTokenizer | TiTok]]
TOKENIZERS = {"maskgit-f16": VQGAN, "vq16": LlamaGenVQ, "vq8": LlamaGenVQ, "kl16": KLTokenizer, "sd-f8": KLTokenizer}
TOKENIZERS |= {"titok-l32": TiTok, "titok-b64": TiTok, "titok-s128": TiTok}
WITHOUT_GRID = {32: "titok-l32", 64: "titok-b64", 128: "titok-s128"}  # by the number of tokens


@dataclass
class RandomPipeline:
    """A generator with random weights, a tokenizer for decoding or None, and a sampler."""

    transformer: AnyGenerator
    tokenizer: Tokenizer | None
    sampler: ParallelSampler

    def sampled(self) -> AnyGenerator:
        """What draws the tokens."""
        return self.transformer

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.transformer.device


def random_pipeline(config: Settings, tokenizer: str | None) -> RandomPipeline:
    """A pipeline with random weights.

    Args:
        config: of the generator, nested as in configs/models.
        tokenizer: a published tokenizer, None (no decoding), or "auto": kl16 for vectors, vq16 for 16384 ids, maskgit-f16 for other ids,
            TiTok's for ids without a grid.
    """
    from mgen.convert.readers.tokenbridge import quantized_for

    torch.manual_seed(0)
    generator = build_model(config).eval()
    pipe = RandomPipeline(generator, None, ParallelSampler.suited(generator))
    if tokenizer is None:
        return pipe
    if tokenizer == "auto":
        ids = "vq16" if generator.tokens.vocab_size == 16384 else "maskgit-f16"
        tokenizer = ids if generator.tokens.kind == "index" else "kl16"
        if generator.tokens.grid is None:
            if generator.tokens.length not in WITHOUT_GRID:
                raise MgenError(
                    f"no published tokenizer makes {generator.tokens.length} ids without a grid: give --tokenizer none"
                )
            tokenizer = WITHOUT_GRID[generator.tokens.length]
    cls = TOKENIZERS[check_choice("--tokenizer", tokenizer, TOKENIZERS)]
    made = cls(**cls.SIZES[tokenizer.removeprefix("titok-")])
    made.register_to_config(image_size=made.side_for(generator.tokens))
    made = quantized_for(generator, made)
    name = model_name(generator.config) or f"a generator with trunk {generator.config['trunk']['type']}"
    try:
        made.spec.require(generator.tokens, by=name)
    except MgenError as error:
        raise MgenError(f"{error}; without decoding: --tokenizer none") from error
    pipe.tokenizer = made.eval().fuse().to(memory_format=torch.channels_last)
    return pipe


class Clock:
    """Adds up the time spent inside functions it wraps; waits for a GPU before every reading."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def read(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def wrap(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            start = self.read()
            out = function(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + self.read() - start
            return out

        return timed


def timed(generator: Generator, clock: Clock) -> Generator:
    """A proxy of the generator whose passes and head are timed."""
    passes = "context", "cached_step", "lazy_step", "to_context", "carry", "start"
    trunk = {name: clock.wrap("trunk", getattr(generator, name)) for name in passes}
    heads = {name: _timed_head(getattr(generator, name), clock) for name in ("head", "guided_head")}
    return proxy(generator, **heads, **trunk)


def _timed_head(head: Head, clock: Clock) -> Head:
    """A proxy whose network is timed: all of `sample`, or of a categorical head the logits without the draw."""
    if not isinstance(head, CategoricalHead):
        timed: dict[str, object] = {"plan": clock.wrap("head", head.plan), "sample": clock.wrap("head", head.sample)}
        if isinstance(head, DenoisingHead):  # its network is the trunk, all but the last layer
            timed["denoise"] = clock.wrap("trunk", head.denoise)
        return proxy(head, **timed)
    inner = proxy(head, logits=clock.wrap("head", head.logits))
    scored = proxy(inner, scores=partial(CategoricalHead.scores, inner))
    draws = {name: partial(getattr(CategoricalHead, name), scored) for name in ("sample", "log_moments")}
    return proxy(head, **draws)


def matmul_peak(dtype: torch.dtype, device: torch.device, *, size: int = 2048, seconds: float = 1.0) -> float:
    """Fastest measured FLOP/s of a square matrix product."""
    return fastest_product(dtype, device, side=size, seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What `mgen bench` reports and writes as JSON.

    Args:
        passes_per_image: "full" and "cached" (or lazy) passes of the trunk; a pass of the null class counts too.
        seconds: of the fastest batch by part: trunk, head, decoder, sampling (everything around them) and total.
        tflops_per_image: by part, and total. peak_gflops: of a matrix product, measured.
        peaks_gflops: the same in fp32, bf16 and `dtype`. bf16_units: of the CPU, see `bf16_units`.
        share_of_peak: FLOP/s over that peak, of "trunk and head" and of "all". sampling_over_network: of the seconds.
        compile: "off", "regional" or "full". compile_seconds: of the first batch, in which compiled networks are compiled; 0 if off.
        peak_memory_gb: most memory in use on a GPU, 10⁹ bytes; None on others.
    """

    model: str
    trunk: str
    parameters: int
    batch_size: int
    steps: int
    passes_per_image: dict[str, int]
    dtype: str
    device: str
    threads: int
    seconds: dict[str, float]
    seconds_per_image: float
    tflops_per_image: dict[str, float]
    peak_gflops: float
    peaks_gflops: dict[str, float]
    bf16_units: str
    share_of_peak: dict[str, float]
    sampling_over_network: float
    compile: str = "off"
    compile_seconds: float = 0.0
    peak_memory_gb: float | None = None


def bf16_units(device: torch.device) -> str:
    """What multiplies in bf16: AMX or AVX512_BF16 of an x86 CPU, BF16 of an Arm CPU, "none"; the name of a GPU."""
    if device.type != "cpu":
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return cpu_bf16_units()


def make_noise(generator: AnyGenerator, sampler: ParallelSampler, batch_size: int) -> Noise:
    """The noise of a batch, on the generator's device."""
    return sampler.make_noise(generator, range(batch_size)).to(generator.device)


def run_batch(
    generator: AnyGenerator, sampler: ParallelSampler, noise: Noise, dtype: str, steps: int | None = None
) -> Tensor:
    """Draw the tokens of a batch, one image of each class in turn; the first `steps` steps only, if given."""
    class_ids = torch.arange(len(noise.order), device=generator.device) % generator.num_classes
    with computing(generator, DTYPES[dtype], generator.device):
        *_, last = islice(sampler(generator, class_ids, noise=noise), steps)
    return last.tokens


def fastest(
    pipe: Networks, sampler: ParallelSampler, *, batch_size: int, repeats: int, dtype: str, warm_steps: int | None = 1
) -> tuple[dict[str, float], float]:
    """Seconds by part of the fastest of `repeats` batches, and those of the warm-up: the first `warm_steps` steps, None: all."""
    generator, units = pipe.transformer, pipe.transformer.units
    guided = any(sampler.guided(units.length, units.global_tokens))
    generator.optimize_layout(batch_size, guided=guided)
    with held(generator, DTYPES[dtype]):  # converted once, as for all batches of `mgen sample`
        clock = Clock(generator.device)
        began = clock.read()
        noise = make_noise(generator, sampler, batch_size)
        run_batch(generator, sampler, noise, dtype, steps=warm_steps)  # the first step of a process is slow
        warm_up = clock.read() - began
        best: dict[str, float] = {}
        for _ in range(repeats):
            clock = Clock(generator.device)
            start, net = clock.read(), watched(generator, partial(timed, clock=clock), clock.wrap)
            tokens = run_batch(net, sampler, make_noise(generator, sampler, batch_size), dtype)
            if pipe.tokenizer is not None:
                clock.wrap("decoder", pipe.tokenizer.decode)(tokens, generator.tokens.grid)
            total = clock.read() - start
            if not best or total < best["total"]:
                best = {**dict.fromkeys(PARTS, 0.0), **clock.seconds, "total": total}
    best["sampling"] = best["total"] - sum(best[part] for part in PARTS)
    return best, warm_up


@torch.inference_mode()
def bench(
    pipe: Networks,
    sampler: ParallelSampler,
    *,
    model: str,
    batch_size: int,
    repeats: int,
    dtype: str,
    compile: str = "off",
) -> BenchResult:
    """Time and count one setting. `model`: its name in the report. `compile`: of the generator, in place."""
    generator, device = pipe.transformer, pipe.transformer.device
    check_batch(pipe, sampler, batch_size, batch_size)
    check_duration(pipe, sampler, batch_size * repeats)
    counts = count_run(pipe, sampler)
    compile_network(generator, compile)
    on_gpu, warm = device.type == "cuda", 1 if compile == "off" else None
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds, first = fastest(pipe, sampler, batch_size=batch_size, repeats=repeats, dtype=dtype, warm_steps=warm)
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else None
    peaks = {name: matmul_peak(DTYPES[name], device) for name in dict.fromkeys(("fp32", "bf16", dtype))}
    peak = peaks[dtype]
    network = seconds["trunk"] + seconds["head"]
    flops = {part: value * batch_size for part, value in counts.flops.items()}
    return BenchResult(
        model=model,
        trunk=str(generator.config["trunk"]["type"]),
        parameters=sum(p.numel() for p in generator.parameters()),
        batch_size=batch_size,
        steps=sampler.config.steps,
        passes_per_image=counts.passes,
        dtype=dtype,
        device=str(device),
        threads=torch.get_num_threads(),
        seconds=seconds,
        seconds_per_image=seconds["total"] / batch_size,
        tflops_per_image={part: value / 1e12 for part, value in {**counts.flops, "total": counts.total}.items()},
        peak_gflops=peak / 1e9,
        peaks_gflops={name: value / 1e9 for name, value in peaks.items()},
        bf16_units=bf16_units(device),
        share_of_peak={
            "trunk and head": (flops["trunk"] + flops["head"]) / network / peak,
            "all": sum(flops.values()) / seconds["total"] / peak,
        },
        sampling_over_network=seconds["sampling"] / network,
        compile=compile,
        compile_seconds=0.0 if compile == "off" else first,
        peak_memory_gb=memory,
    )


def table(result: BenchResult) -> str:
    """The result for a person."""
    r, total = result, result.seconds["total"]
    lines = [
        f"{r.model} (trunk {r.trunk}), {r.parameters / 1e6:.1f} M parameters, {r.steps} steps, batch {r.batch_size}, {r.dtype}, "
        f"{r.device}, {r.threads} threads, passes per image: {r.passes_per_image['full']} full, {r.passes_per_image['cached']} cached",
        f"Where the time of a batch of {r.batch_size} goes, and what an image costs, by part",
        f"{'part':<10} {'s/batch':>9} {'share':>7} {'TFLOPs/image':>13}",
    ]
    for part in ("trunk", "head", "sampling", "decoder"):
        seconds, flops = r.seconds[part], r.tflops_per_image.get(part)
        counted = "" if flops is None else format(flops, ".4f")
        lines.append(f"{part:<10} {seconds:>9.3f} {seconds / total:>7.1%} {counted:>13}")
    lines += [
        f"{'all':<10} {total:>9.3f} {'':>7} {r.tflops_per_image['total']:>13.4f}",
        f"seconds per image                {r.seconds_per_image:.3f}",
        f"sampling over trunk and head     {r.sampling_over_network:.2%}",
        f"bf16 units                       {r.bf16_units}",
        f"matmul peak, measured            {_peaks(r.peaks_gflops)}",
        f"share of the {r.dtype + ' peak':<20}{r.share_of_peak['trunk and head']:.0%} in trunk and head, "
        f"{r.share_of_peak['all']:.0%} in all",
    ]
    if r.compile != "off":
        lines.append(
            f"first batch, {r.compile + ' compilation':<19} {r.compile_seconds:.1f} s, not in the seconds above"
        )
    if r.peak_memory_gb is not None:
        lines.append(f"peak memory of the GPU           {r.peak_memory_gb:.2f} GB")
    return "\n".join(lines)


def _peaks(peaks: dict[str, float]) -> str:
    """Peaks in GFLOP/s by type, in words."""
    first = peaks["fp32"]
    words = (
        f"{value:.0f} {name}" + (f" ({value / first:.1f}×)" if name != "fp32" else "") for name, value in peaks.items()
    )
    return f"GFLOP/s: {', '.join(words)}"
