"""How much faster torch.compile makes sampling and training steps: compiled and plain in turns, in one process.

    python -m tools.compile_speed --help

On a CPU the seconds are those that the process computed, so that other work on the machine counts little; on a GPU those of the clock.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypedDict

import torch
from torch import Tensor

from mgen.bench.benchmark import make_noise, run_batch
from mgen.bench.proxy import AnyGenerator
from mgen.cli import run
from mgen.cli.bench import add_model, check_names, chosen_pipeline, named
from mgen.cli.parser import Formatter, whole
from mgen.cli.sample import chosen_sampler
from mgen.generators import Generator
from mgen.heads import HeadNoise
from mgen.samplers import ParallelSampler
from mgen.utils.compiling import MODES, compile_network, uncompiled
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.files import write_json
from mgen.utils.modeling import DTYPES

WHAT = ("sample", "train")
EXAMPLES = """examples:
  python -m tools.compile_speed --threads 1 --batch-size 8                                          the embedded model
  python -m tools.compile_speed --arch maskgit-r-l --recipe autonat-l-imagenet256 --take 2 --batch-size 1 --threads 1
  python -m tools.compile_speed --arch mar-b --recipe mar-b-imagenet256 --steps 16 --head-steps 10 --take 4 --batch-size 1 --threads 1
  python -m tools.compile_speed --arch mar-b --what train --batch-size 2 --threads 1
  python -m tools.compile_speed --arch mar-b --recipe mar-b-imagenet256 --device cuda --dtype bf16 --batch-size 64 --compile full"""


class Row(TypedDict):
    """Seconds of the fastest of the rounds, of the first compiled one, and how far results differ, relative to the largest number."""

    what: str
    compile: str
    plain_seconds: float
    seconds: float
    ratio: float
    first_seconds: float
    difference: float


class Trained:
    """A training step's forward and backward pass on random tokens; step i of a round masks another number of tokens."""

    SHARES = (0.9, 0.75, 0.85)  # masked, each for one step of a round

    def __init__(self, generator: Generator, batch: int, dtype: str) -> None:
        self.generator, self.dtype, units = generator, dtype, generator.units
        rng, length = torch.Generator().manual_seed(0), units.length
        shape = (batch, *units.shape)
        if units.kind == "vector":
            tokens = torch.randn(shape, generator=rng)
        else:
            tokens = torch.randint(units.vocab_size or 1, shape, generator=rng)
        order = torch.rand(batch, length, generator=rng).argsort(1)
        made = [generator.head.training_noise(length, 4, rng) for _ in range(batch)]
        noise = [one for one in made if one is not None]
        self.noise = None
        if noise:
            self.noise = HeadNoise(
                *(torch.stack([getattr(n, k) for n in noise]).to(generator.device) for k in ("t", "noise"))
            )
        self.tokens, self.order = tokens.to(generator.device), order.to(generator.device)
        self.class_ids = torch.arange(batch, device=generator.device) % generator.num_classes

    def __call__(self) -> Tensor:
        generator, losses = self.generator, []
        for share in self.SHARES:
            masked = round(share * self.order.shape[1])
            known = self.order >= (0 if generator.capabilities.one_by_one else masked)
            if generator.capabilities.one_by_one:
                known = torch.zeros_like(known)
            trunk_noise = generator.trunk.training_noise(self.order, known)
            generator.zero_grad(set_to_none=True)
            with autocast(self.dtype, generator.device):  # the weights stay in fp32, as in a training
                loss = generator(self.tokens, self.class_ids, known, noise=self.noise, trunk_noise=trunk_noise)[
                    0
                ].mean()
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses)


def autocast(dtype: str, device: torch.device) -> AbstractContextManager[object]:
    """In which a training step computes."""
    return nullcontext() if dtype == "fp32" else torch.autocast(device.type, DTYPES[dtype])


def sampled(
    generator: AnyGenerator, sampler: ParallelSampler, batch: int, dtype: str, take: int | None
) -> Callable[[], Tensor]:
    """A function that draws a batch, the first `take` steps of it."""
    noise = make_noise(generator, sampler, batch)

    @torch.inference_mode()
    def draw() -> Tensor:
        return run_batch(generator, sampler, noise, dtype, take).float()

    return draw


def measure(what: str, mode: str, call: Callable[[], Tensor], device: torch.device, rounds: int) -> Row:
    """Time a compiled network beside itself uncompiled; the first compiled call is not counted."""

    def timed(*, compiled: bool) -> tuple[float, Tensor]:
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        start = clock()
        with nullcontext() if compiled else uncompiled():
            made = call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start, made

    first, _ = timed(compiled=True)
    timed(compiled=False)
    best, results = [float("inf")] * 2, [torch.empty(0)] * 2
    for turn in range(rounds):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            seconds, results[side] = timed(compiled=side == 1)
            best[side] = min(best[side], seconds)
            print(f"{what}, {('plain', mode)[side]}: {seconds:.3f} s", file=sys.stderr)
    difference = (results[0] - results[1]).abs().max() / results[0].abs().max()
    return Row(
        what=what,
        compile=mode,
        plain_seconds=best[0],
        seconds=best[1],
        ratio=best[0] / best[1],
        first_seconds=first,
        difference=difference.item(),
    )


def table(rows: list[Row]) -> str:
    """The rows for a person."""
    lines = [f"{'':<8} {'compile':<9} {'plain s':>9} {'s':>9} {'ratio':>6} {'first s':>8} {'rel. difference':>16}"]
    for r in rows:
        numbers = f"{r['plain_seconds']:>9.3f} {r['seconds']:>9.3f} {r['ratio']:>6.2f} {r['first_seconds']:>8.1f}"
        lines.append(f"{r['what']:<8} {r['compile']:<9} {numbers} {r['difference']:>16.1e}")
    return "\n".join(lines)


def command(argv: Sequence[str] | None = None) -> int:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.compile_speed", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    add_model(parser)
    parser.set_defaults(tokenizer="none", sweep=None)
    option = parser.add_argument
    option("--what", default="sample", metavar="WHAT,…", help="sample, train or both, comma-separated")
    option("--compile", default="regional", metavar="MODE", help="regional or full")
    option("--take", type=whole(1), help="first steps of the sampler that are run; default: all")
    option("--rounds", type=whole(1), default=3, help="turns of each form; the fastest counts")
    option("--json", metavar="FILE", help="also write the rows to a file")
    args = parser.parse_args(argv)
    chosen = [check_choice("--what", name.strip(), WHAT) for name in args.what.split(",")]
    if check_choice("--compile", args.compile, MODES) == "off":
        raise MgenError("--compile off leaves nothing to compare: choose regional or full")
    check_names(args)
    if args.tokenizer == "none" and not (args.arch or args.config):
        args.tokenizer = "auto"
    pipe = chosen_pipeline(args)
    generator, sampler = pipe.transformer, chosen_sampler(pipe, args)
    rows = []
    compile_network(generator, args.compile)
    for what in chosen:
        if what == "sample":
            call = sampled(generator.eval(), sampler, args.batch_size, args.dtype, args.take)
        elif isinstance(generator, Generator):
            call = Trained(generator.train(), args.batch_size, args.dtype)
        else:
            raise MgenError("--what train is for generators of one stage, not for cascades: choose sample")
        rows.append(measure(what, args.compile, call, generator.device, args.rounds))
    print(
        f"{named(args)}, batch {args.batch_size}, {args.dtype}, {generator.device}, {torch.get_num_threads()} threads"
    )
    print(table(rows))
    if args.json:
        write_json(args.json, {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
