"""`mgen bench`: seconds, TFLOPs, and where they go."""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from mgen.cli import make_parser
from mgen.cli.sample import add_sampler
from mgen.utils.errors import MgenError, check_choice

EXAMPLES = """  mgen bench                                                   the embedded model
  mgen bench --class MaskGIT --size L --recipe autonat-l-imagenet256 --batch-size 4     paper size, random weights
  mgen bench --class MaskGITBert --size imagenet256 --recipe maskgit-imagenet256 --batch-size 2
  mgen bench --class MAR --size B --recipe mar-b-imagenet256 --steps 64 --batch-size 2 --savings
  mgen bench --class CausalGenerator --size hita-B --guidance 2 --batch-size 1 --tokenizer none --savings
  mgen bench --class MaskGIT --size L --model-set side=32 --model-set shuffle=2 --tokenizer none --steps 2 --guidance 1 --batch-size 1
  mgen bench --class MAR --size bridge-L --recipe tokenbridge-l-imagenet256 --steps 4 --batch-size 2 --savings
  mgen bench --class HiMAR --size B --recipe himar-b-imagenet256 --set pivots.steps=8 --steps 2 --head-steps 10 --batch-size 1 --savings
  mgen bench --sweep maskgit-r --class MaskGIT --size L --batch-size 4 --repeats 2       methods at equal steps
  mgen bench --sweep fmnist-maskgit --num-images 500         of a trained model also at equal distance and equal time
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
        "--tokenizer", default="auto", help="with --class: maskgit-f16, vq16, vq8, kl16, sd-f8 or none (no decoding)"
    )
    add_sampler(parser)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument(
        "--savings",
        action="store_true",
        help="for a causal generator, a diffusion head or one over channels: what each exact saving is worth against the plain form, "
        "and all in a whole run; with --dtype bf16 also that run under autocast, with its error",
    )
    parser.add_argument(
        "--sweep",
        metavar="NAME|FILE",
        help="compare methods over numbers of steps: a file of configs/sweeps (fmnist-maskgit, fmnist-mage, fmnist-enat, fmnist-mar, "
        "fmnist-himar, fmnist-himar-chains, "
        "fmnist-himar-ids, fmnist-bridge, maskgit-r, enat-l, mar-b) or your own; writes OUT/sweep.json, sweep.md, sweep.svg",
    )
    parser.add_argument("--num-images", type=int, help="with --sweep on a trained model: images per distance")
    parser.add_argument("--seed", type=int, default=0, help="with --sweep: of those images")
    parser.add_argument(
        "--extractor", default="fmnist-cnn", help="with --sweep: whose features the distance is measured in"
    )
    parser.add_argument("--reference", help="with --sweep: statistics, as mgen eval takes them")
    parser.add_argument("--inception-weights", metavar="FILE", help="with --extractor inception")
    parser.add_argument(
        "--retime", action="store_true", help="with --sweep: measure the seconds of rows that are there again"
    )
    parser.add_argument("--out", default="sweep", metavar="DIR", help="with --sweep: the folder of its files")
    parser.add_argument(
        "--model-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --class or --config: a constructor argument of the generator, such as shuffle=2; may be repeated",
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

    from mgen.bench import benchmark
    from mgen.cli.sample import chosen_sampler
    from mgen.pipelines.pipeline import check_device, load

    if args.threads:
        torch.set_num_threads(args.threads)
    device = check_device(args.device)
    pipe: Any
    if args.cls or args.config:
        from mgen.utils.config import apply_overrides

        if args.config:
            from mgen.cli.train import find_config
            from mgen.utils.config import read_config

            settings = read_config(find_config(args.config)).get("model") or {}
        else:
            settings = {"class": args.cls} | ({"size": args.size} if args.size else {})
        settings = apply_overrides(settings, args.model_set)
        pipe = benchmark.random_pipeline(settings, None if args.tokenizer == "none" else args.tokenizer)
        pipe.generator.to(device)
        if pipe.tokenizer is not None:
            pipe.tokenizer.to(device)
    elif args.model_set:
        raise MgenError("--model-set is for random weights: --class or --config")
    else:
        pipe = load(args.model, device=device).optimize()
    sampler = chosen_sampler(pipe, args)
    if args.sweep:
        words = [word for word in (argv if argv is not None else sys.argv[2:]) if word != "--retime"]
        return compare(pipe, sampler, args, "mgen bench " + " ".join(words))
    if args.savings:
        return measure_savings(pipe, sampler, args)
    figures = benchmark.bench(
        pipe, sampler, batch_size=args.batch_size, repeats=args.repeats, dtype=args.dtype, device=device
    )
    print(benchmark.table(figures))
    if args.json:
        from mgen.utils.files import write_json

        write_json(args.json, figures)
        print(args.json, file=sys.stderr)
    else:
        print(json.dumps({"seconds_per_image": figures["seconds_per_image"]}), file=sys.stderr)
    return 0


def measure_savings(pipe: Any, sampler: Any, args: Namespace) -> int:
    """The table of --savings."""
    from mgen.bench import savings
    from mgen.heads import CategoricalHead, PartedHead, WindowHead
    from mgen.utils.files import write_json

    if isinstance(pipe.generator.head, CategoricalHead | PartedHead | WindowHead) and not pipe.generator.causal:
        raise MgenError(
            "--savings is for causal generators and those with a diffusion head or a head over channels: --class CausalGenerator, MAR "
            "or HiMAR"
        )
    if args.cls or args.config:
        sampler = savings.prepare(pipe.generator, sampler)
    repeats = max(3, args.repeats)
    rows = savings.savings(pipe.generator, sampler, batch_size=args.batch_size, repeats=repeats, dtype=args.dtype)
    print(savings.table(rows))
    if args.json:
        write_json(args.json, {"savings": rows})
        print(args.json, file=sys.stderr)
    return 0


def compare(pipe: Any, sampler: Any, args: Namespace, line: str) -> int:
    """The tables and the plot of --sweep."""
    from pathlib import Path

    import torch

    from mgen.bench import sweep, sweep_report
    from mgen.evaluation.evaluate import metric_names
    from mgen.evaluation.extractors import make_extractor
    from mgen.evaluation.references import find_reference
    from mgen.pipelines.pipeline import DTYPES
    from mgen.tune.tuning import Distance
    from mgen.utils.files import check_writable, write_text
    from mgen.zoo import weights_sha256

    check_choice("--dtype", args.dtype, DTYPES)
    out = Path(args.out)
    check_writable(out)
    random = bool(args.cls or args.config)
    about: dict[str, Any] = {
        "command": line,
        "model": f"{type(pipe.generator).__name__} {args.size or args.config or ''}, random weights"
        if random
        else args.model,
        "batch_size": args.batch_size,
        "threads": args.threads or torch.get_num_threads(),
        "dtype": args.dtype,
        "device": args.device,
    }
    distance = None
    if not random:
        if args.num_images is None or args.num_images < 2:
            raise MgenError(
                "--sweep on a trained model needs --num-images, at least 2 (500 and more tell methods apart)"
            )
        extractor = make_extractor(args.extractor, weights=args.inception_weights, device=pipe.device)
        reference = find_reference(args.reference, extractor, builtin=args.extractor == "fmnist-cnn")
        if reference is None:
            raise MgenError(
                "--sweep measures distances: give --reference FILE, statistics that mgen eval --save-statistics wrote"
            )
        name = metric_names(extractor, args.num_images)[0]
        about["weights_sha256"] = weights_sha256(args.model)
        about["distance"] = f"{name} of {args.num_images} images, seed {args.seed}, to {reference.name}"
        distance = Distance(
            pipe=pipe,
            extractor=extractor,
            reference=reference,
            count=args.num_images,
            seed=args.seed,
            batch_size=min(100, args.num_images),
            dtype=args.dtype,
        )
    settings = sweep.read_sweep(args.sweep, sampler, pipe.generator)
    rows = sweep.run_sweep(
        pipe,
        settings,
        file=out / "sweep.json",
        about=about,
        batch_size=args.batch_size,
        repeats=args.repeats,
        dtype=args.dtype,
        distance=distance,
        retime=args.retime,
    )
    text = sweep_report.markdown(rows, settings.base, about)
    write_text(out / "sweep.md", text)
    print(text)
    sweep_report.plot(rows, out / "sweep.svg")
    print(out / "sweep.md", file=sys.stderr)
    return 0
