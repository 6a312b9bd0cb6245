"""`mgen bench`: seconds, TFLOPs, and where they go."""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from mgen.cli import make_parser
from mgen.errors import MgenError

EXAMPLES = """  mgen bench                                                   the embedded model
  mgen bench --class MaskGIT --size L --recipe autonat-l-imagenet256 --batch-size 4     paper size, random weights
  mgen bench --class MaskGITBert --size imagenet256 --recipe maskgit-imagenet256 --batch-size 2
  mgen bench --class MAR --size B --recipe mar-b-imagenet256 --steps 64 --batch-size 2 --savings
  mgen bench --config imagenet256-autonat-l --dtype bf16 --json bench.json       the model of a training configuration

One multiplication and addition are 2 FLOPs. The share of the peak is against a matrix product measured in the same run."""


def command(argv: Sequence[str] | None = None) -> int:
    from mgen.zoo import DEFAULT

    parser = make_parser("bench", "Time sampling, part by part, and count its floating-point operations.", EXAMPLES)
    parser.add_argument("--model", default=DEFAULT, metavar="NAME|PATH", help="a saved pipeline")
    parser.add_argument("--class", dest="cls", help="instead of --model: a generator class with random weights")
    parser.add_argument("--size", help="row of the class's table of sizes")
    parser.add_argument("--config", help="instead of --class and --size: the model of a training configuration")
    parser.add_argument(
        "--tokenizer", default="auto", help="with --class: maskgit-f16, kl16, sd-f8 or none (no decoding)"
    )
    parser.add_argument("--recipe", help="sampler settings, by name or file")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--order")
    parser.add_argument("--head-steps", type=int, help="steps of a diffusion head's chain")
    parser.add_argument("--chain", help="ancestral, ddim or dpm-solver++, of a diffusion head")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument(
        "--savings",
        action="store_true",
        help="for a diffusion head: what each exact saving is worth against the plain form, and all of them in a whole run; "
        "with --dtype bf16 also that run under autocast, with its error",
    )
    parser.add_argument("--repeats", type=int, default=1, help="timed runs after one warm-up step; the fastest counts")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", help="fp32, bf16 or fp16, of the generator")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to a file")
    args = parser.parse_args(argv)
    if min(args.batch_size, args.repeats) < 1 or (args.threads is not None and args.threads < 1):
        raise MgenError("--batch-size, --repeats and --threads must be at least 1")

    import torch

    from mgen import benchmark
    from mgen.cli.sample import parse_order
    from mgen.pipeline import check_device, load

    if args.threads:
        torch.set_num_threads(args.threads)
    device = check_device(args.device)
    pipe: Any
    if args.cls or args.config:
        if args.config:
            from mgen.cli.train import find_config
            from mgen.config import read_config

            settings = read_config(find_config(args.config)).get("model") or {}
        else:
            settings = {"class": args.cls} | ({"size": args.size} if args.size else {})
        pipe = benchmark.random_pipeline(settings, None if args.tokenizer == "none" else args.tokenizer)
        pipe.generator.to(device)
        if pipe.tokenizer is not None:
            pipe.tokenizer.to(device)
    else:
        pipe = load(args.model, device=device).optimize()
    sampler = benchmark.sampler_for(
        pipe,
        recipe=args.recipe,
        steps=args.steps,
        guidance=args.guidance,
        order=parse_order(args.order),
        head_steps=args.head_steps,
        chain=args.chain,
    )
    if args.savings:
        return measure_savings(pipe, sampler, args)
    figures = benchmark.bench(
        pipe, sampler, batch_size=args.batch_size, repeats=args.repeats, dtype=args.dtype, device=device
    )
    print(benchmark.table(figures))
    if args.json:
        from mgen.files import write_json

        write_json(args.json, figures)
        print(args.json, file=sys.stderr)
    else:
        print(json.dumps({"seconds_per_image": figures["seconds_per_image"]}), file=sys.stderr)
    return 0


def measure_savings(pipe: Any, sampler: Any, args: Namespace) -> int:
    """The table of --savings."""
    from mgen import savings
    from mgen.files import write_json

    if pipe.generator.spec.kind != "vector":
        raise MgenError("--savings is for generators with a diffusion head: --class MAR, or a saved one")
    if args.cls or args.config:
        # Without a bound a head with random weights explodes, and its answers no longer matter to the result.
        savings.spread(pipe.generator)
        sampler = sampler.override(head={"clip": 5.0, **(sampler.config.head or {})})
    repeats = max(3, args.repeats)
    rows = savings.savings(pipe.generator, sampler, batch_size=args.batch_size, repeats=repeats, dtype=args.dtype)
    print(savings.table(rows))
    if args.json:
        write_json(args.json, {"savings": rows})
        print(args.json, file=sys.stderr)
    return 0
