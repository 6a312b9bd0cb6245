"""Seconds of sampling in fp32 and in bf16 that take turns step by step, and their share of the matmul peaks measured between the steps.

  python -m tools.precision --arch maskgit-r-l --recipe autonat-l-imagenet256 --batch-size 2 --every 2
  python -m tools.precision --arch maskgit-r-l --recipe autonat-l-imagenet256 --set reuse.cached=1 --batch-size 2
  python -m tools.precision --arch mar-b --recipe mar-b-imagenet256 --steps 16 --batch-size 2 --every 4 --json mar.json

Random weights, CPU seconds on one thread, no decoding. Forms: plain, fp32 with the weights as they are, by torch's own products; fp32,
what --dtype fp32 does; autocast, bf16 by torch's autocast alone, which converts weights at every call and attends by torch's fused
kernel; bf16, what --dtype bf16 does. The peak of a type is the speed of products of 1024 × 1024 matrices that take turns with the steps,
so that it has the same load of the machine as they have: of torch's own or of those with a packed weight, whichever is faster. Packed
weights are laid out by the first three steps, before the clock runs, in place of the 16th product. With --every the steps between stand for
nothing and the others for all, for generators that keep nothing between steps.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F

from mgen.bench.benchmark import RandomPipeline, bf16_units, random_pipeline
from mgen.bench.flops import count_run
from mgen.cli.sample import add_sampler, chosen_sampler
from mgen.generators.presets import model_config
from mgen.nn import kernels, packed
from mgen.nn.packed import FASTER_FROM, NEVER, PackedWeight
from mgen.nn.precision import computing, held
from mgen.utils.errors import MgenError
from mgen.utils.files import write_json
from mgen.utils.memory import keep_freed_memory
from tools.less_compute_time import batch_of, in_turn

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEAK_OF = {"plain": "fp32", "fp32": "fp32", "autocast": "bf16", "bf16": "bf16"}
FORMS = tuple(PEAK_OF)
WARM = 3  # steps before the clock runs
SIDE = 1024  # of the matrices that measure the peak


@contextmanager
def plain_autocast() -> Iterator[None]:
    """bf16 by autocast alone."""
    own, kernels.AMX = kernels.AMX, True
    try:
        with torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        kernels.AMX = own


def within(run: Iterator[float], context: Callable[[], AbstractContextManager[object]]) -> Iterator[float]:
    """The run, each part of it inside a context of its own."""
    while True:
        with torch.inference_mode(), context():
            value = next(run, None)
        if value is None:
            return
        yield value


class Peaks:
    """Speed of matrix products in both types, measured in turns with everything else."""

    def __init__(self) -> None:
        self.sides = {name: torch.randn(SIDE, SIDE).to(dtype) for name, dtype in TYPES.items()}
        self.packed = {
            name: PackedWeight(side, side.dtype) for name, side in self.sides.items() if FASTER_FROM[side.dtype] < NEVER
        }
        self.seconds: dict[tuple[str, str], list[float]] = {}

    def measure(self, products: int = 8) -> None:
        for name, side in self.sides.items():
            for kind, weight in (("plain", side), ("packed", self.packed.get(name))):
                if weight is None:
                    continue
                F.linear(side, weight)
                began = time.process_time()
                for _ in range(products):
                    F.linear(side, weight)
                self.seconds.setdefault((name, kind), []).append((time.process_time() - began) / products)

    def gflops(self) -> dict[str, float]:
        """Mean of all measurements, of the faster kind."""
        means = {key: sum(values) / len(values) for key, values in self.seconds.items()}
        return {name: 2 * SIDE**3 / 1e9 / min(mean for key, mean in means.items() if key[0] == name) for name in TYPES}


def compare(pipe: RandomPipeline, args: argparse.Namespace) -> dict[str, object]:
    """Run all forms in turns; the numbers."""
    sampler = chosen_sampler(pipe, args)
    tflops = count_run(pipe, sampler).total / 1e12 * args.batch_size
    low = copy.deepcopy(pipe.transformer)
    units = low.units
    pipe.transformer.optimize_layout(args.batch_size, guided=any(sampler.guided(units.length, units.global_tokens)))
    contexts: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "plain": nullcontext,
        "fp32": nullcontext,
        "autocast": plain_autocast,
        "bf16": partial(computing, low, torch.bfloat16, torch.device("cpu")),
    }
    full = copy.deepcopy(pipe.transformer)
    nets = {"plain": pipe.transformer, "fp32": full, "autocast": pipe.transformer, "bf16": low}
    peaks, length = Peaks(), sampler.config.steps + 1
    with ExitStack() as stack:
        stack.enter_context(held(low, torch.bfloat16))
        stack.enter_context(held(full, torch.float32))
        # The first step of a process is slow, and the first that calls a layer lays its weight out.
        for name in args.forms:
            for _ in islice(within(batch_of(pipe, nets[name], sampler, args.batch_size), contexts[name]), WARM):
                pass
        runs = {
            name: within(batch_of(pipe, nets[name], sampler, args.batch_size, args.every), contexts[name])
            for name in args.forms
        }
        measured = peaks_between(runs, peaks, length)
    gflops = peaks.gflops()
    shares = {name: tflops * 1e3 / value / gflops[PEAK_OF[name]] for name, value in measured.items()}
    return {
        "model": args.arch,
        "batch_size": args.batch_size,
        "steps": sampler.config.steps,
        "every": args.every,
        "tflops": tflops,
        "seconds": measured,
        "peaks_gflops": gflops,
        "share_of_peak": shares,
        "bf16_units": bf16_units(torch.device("cpu")),
    }


def peaks_between(runs: dict[str, Iterator[float]], peaks: Peaks, length: int) -> dict[str, float]:
    """Seconds of the runs, see `in_turn`; the peaks are measured in a run of its own that takes as many turns."""

    def measuring() -> Iterator[float]:
        for _ in range(min(length, 24)):
            peaks.measure()
            yield 1.0

    lengths = {**dict.fromkeys(runs, length), "peaks": min(length, 24)}
    seconds = in_turn({**runs, "peaks": measuring()}, lengths)
    return {name: value for name, value in seconds.items() if name != "peaks"}


def report(numbers: dict[str, object]) -> str:
    """For a person."""
    seconds, peaks, shares = (dict(numbers[key]) for key in ("seconds", "peaks_gflops", "share_of_peak"))  # type: ignore[call-overload]
    lines = [
        f"{numbers['model']}, {numbers['steps']} steps, batch {numbers['batch_size']}, {numbers['tflops']:.2f} TFLOPs, "
        f"bf16 units {numbers['bf16_units']}, matmul peaks {peaks['fp32']:.0f} and {peaks['bf16']:.0f} GFLOP/s "
        f"({peaks['bf16'] / peaks['fp32']:.2f}×)",
        f"{'form':<10} {'CPU s':>8} {'faster':>7} {'of peak':>8}",
    ]
    first = next(iter(seconds.values()))
    for name, value in seconds.items():
        lines.append(f"{name:<10} {value:>8.2f} {first / value:>6.2f}× {shares[name]:>8.0%}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", required=True, metavar="NAME", help="a model of configs/models, with random weights")
    add_sampler(parser)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, help="compute every so many steps alone")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--json", type=Path, help="write the numbers to a file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    packed.WORTH = 1
    try:
        numbers = compare(random_pipeline(model_config(args.arch), None), args)
    except MgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(numbers))
    if args.json:
        write_json(args.json, numbers)
    else:
        print(json.dumps(numbers), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
