"""What the head cache (`head.cache`, see mgen.heads.cache) saves in the draws of a diffusion head, beside the same draws without it.

    python -m tools.ablations.head_cache --arch mar-b --recipe mar-b-imagenet256 --threads 1
    python -m tools.ablations.head_cache --model fmnist-mar --set "head.cache={every: 7, blocks: [1, 1]}"

Not an exact optimization: the difference, relative to the largest number of the plain draw, is what the cache changes. Contexts are the
trunk's for an image whose tokens are known by half, with guidance 3. A new model (--arch, --config) gets random weights. Seconds are of the
GPU's wall clock, or of the process on a CPU: take one thread.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mgen.cli import run
from mgen.cli.bench import add_model, chosen_pipeline
from mgen.cli.parser import Formatter
from mgen.cli.sample import chosen_sampler
from mgen.generators.generator import Generator
from mgen.heads.chains import ChainSettings
from mgen.heads.diffusion import ChainPlan
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from tools.ablations import format_table, prepare
from tools.ablations.compare import AblationTable, Row
from tools.ablations.diffusion import diffusion_of

PUBLISHED = {"every": 7, "blocks": [1, 4], "warm": 0.1}  # LazyMAR's
TOKENS = (4, 16, 64)
GUIDANCE = 3.0


def rows(generator: Generator, sampler: ParallelSampler, *, tokens: Sequence[int] = TOKENS, repeats: int) -> list[Row]:
    """Draws of so many tokens, without and with the cache (the sampler's, or the published one): with guidance, without, null half only."""
    settings, units, device = sampler.longest_head, generator.units, generator.device
    cache = dict(settings.get("cache") or PUBLISHED)
    plain, lazy, null = (
        generator.head.plan({**settings, "cache": c}) for c in ({}, cache, {"every": cache.get("every", 1)})
    )
    rng, half = torch.Generator().manual_seed(0), units.length // 2
    order = torch.rand(units.length, generator=rng).argsort().unsqueeze(0).to(device)
    known = torch.zeros(1, units.length, dtype=torch.bool, device=device).scatter_(1, order[:, :half], True)
    values = torch.randn(1, *units.shape, generator=rng).to(device)
    classes = torch.tensor([0, generator.null_class or 0], device=device)
    # Of a CPU the time of this process, in which other jobs of the machine count little.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    table = AblationTable(device, repeats, clock=clock)

    def add(name: str, z: Tensor, noise: Tensor, other: ChainPlan, *, guidance: float | None = GUIDANCE) -> None:
        def draw(plan: ChainPlan) -> Tensor:
            return generator.head.sample(z, noise=noise, plan=plan, guidance=guidance).tokens

        table.add(name, lambda: draw(plain), lambda: draw(other))

    with torch.inference_mode():
        z = generator.context(values.repeat(2, *[1] * (values.ndim - 1)), known.repeat(2, 1), classes)
        for count in sorted({min(n, units.length - half) for n in tokens}):
            some = z[:, order[0, half : half + count]]  # (2, M, D)
            shape = ChainSettings.of(settings).noise_count, 1, count, diffusion_of(generator.head).channels
            noise = torch.randn(shape, generator=rng).to(device)
            add(f"{count} tokens, guided", some, noise, lazy)
            add(f"{count} tokens, guided, blocks: []", some, noise, null)
            add(f"{count} tokens, not guided", some[:1], noise, lazy, guidance=None)
    return table.rows


def command(argv: Sequence[str] | None = None) -> int:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.ablations.head_cache",
        description="What the head cache saves in the draws of a diffusion head.",
        formatter_class=Formatter,
    )
    add_model(parser)
    parser.set_defaults(tokenizer="none")
    parser.add_argument("--repeats", type=int, default=3, help="timed draws of each form; the fastest counts")
    args = parser.parse_args(argv)
    pipe = chosen_pipeline(args)
    generator, sampler = pipe.transformer, chosen_sampler(pipe, args)
    if not isinstance(generator, Generator) or generator.units.kind != "vector" or generator.capabilities.joint:
        raise MgenError("the head cache is measured on diffusion heads: use a model such as mar-b")
    if args.arch or args.config:
        sampler = prepare(generator, sampler)
    print(format_table(rows(generator, sampler, repeats=max(1, args.repeats))))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
