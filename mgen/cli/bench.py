"""`mgen bench`: seconds, TFLOPs, and where they go."""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mgen.cli.overwrite import add_overwrite, overwriting
from mgen.cli.parser import make_parser, path, whole
from mgen.cli.sample import add_compile, add_sampler
from mgen.utils.errors import MgenError

if TYPE_CHECKING:
    from mgen.bench.benchmark import RandomPipeline
    from mgen.pipelines.pipeline import MaskedPipeline
    from mgen.samplers import ParallelSampler
    from mgen.tune.tuning import Distance
    from mgen.utils.config import Settings

EXAMPLES = """  mgen bench                                                   the embedded model
  mgen bench --arch maskgit-r-l --recipe autonat-l-imagenet256 --batch-size 4     paper size, random weights
  mgen bench --arch maskgit-imagenet256 --recipe maskgit-imagenet256 --batch-size 2
  mgen bench --arch hita-b --guidance 2 --batch-size 1 --tokenizer none
  mgen bench --arch maskgit-r-l --model-set tokens.length=1024 --model-set "tokens.grid=[32, 32]" --model-set windows.side=2 \\
      --tokenizer none --steps 2 --guidance 1 --batch-size 1                      windows of 2×2 tokens
  mgen bench --arch mar-b --model-set head.type=channels --steps 8 --batch-size 1       another head
  mgen bench --arch mar-b --recipe mar-b-imagenet256 --device cuda --dtype bf16 --batch-size 64 --compile full    compiled
  mgen bench --sweep maskgit-r --arch maskgit-r-l --batch-size 4 --repeats 2       methods at equal steps
  mgen bench --sweep fmnist-maskgit --num-images 500         of a trained model also at equal distance and equal time
  mgen bench --model fmnist-mar --dtype bf16 --error                     and what bf16 changes
  mgen bench --config imagenet256-autonat-l --dtype bf16 --json bench.json       the model of a training configuration

One multiplication and addition are 2 FLOPs. The share of the peak is relative to a matrix product measured in the same run."""


def add_model(parser: ArgumentParser) -> None:
    """Options that choose the model, its sampler and the batch; see `chosen_pipeline` and `chosen_sampler`."""
    from mgen.zoo import DEFAULT

    option = parser.add_argument
    option("--model", default=DEFAULT, metavar="NAME|PATH", type=path, help="a saved pipeline")
    option(
        "--arch",
        metavar="NAME|FILE",
        type=path,
        help="instead of --model: a model of configs/models with random weights",
    )
    option(
        "--config",
        metavar="NAME|FILE",
        type=path,
        help="instead of --model: the model of a training configuration, random weights",
    )
    option(
        "--model-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --arch or --config: a setting of the model, such as trunk.dropout=0.0 or windows.side=2; may be repeated",
    )
    option(
        "--tokenizer",
        default="auto",
        help="with --arch or --config: maskgit-f16, vq16, vq8, kl16, sd-f8, titok-{l32,b64,s128} or none (no decoding)",
    )
    add_sampler(parser)
    option("--batch-size", type=whole(1), default=4)
    option("--threads", type=whole(1, 4096), help="CPU threads; default: torch's")
    option("--device", default="cpu")
    option("--dtype", default="fp32", help="fp32, bf16 or fp16, of the generator")


def add_sweep(parser: ArgumentParser) -> None:
    """Options of --sweep."""
    option = parser.add_argument
    option(
        "--sweep",
        metavar="NAME|FILE",
        type=path,
        help="compare methods over numbers of steps: a file of configs/sweeps (fmnist-maskgit, fmnist-mage, fmnist-enat, fmnist-mar, "
        "fmnist-himar, fmnist-himar-chains, "
        "fmnist-himar-ids, fmnist-bridge, maskgit-r, enat-l, mar-b) or your own; writes OUT/sweep.json, sweep.md, sweep.svg",
    )
    option("--num-images", type=whole(2), help="with --sweep on a trained model: images per distance")
    option("--seed", type=int, help="with --sweep: of those images; default: 0")
    option(
        "--extractor",
        type=path,
        help="with --sweep: features in which the distance is measured; default: fmnist-cnn, for its models",
    )
    option("--reference", type=path, help="with --sweep: statistics, as mgen eval takes them")
    option("--inception-weights", metavar="FILE", type=path, help="with --extractor inception")
    option("--retime", action="store_true", help="with --sweep: measure the seconds of rows in OUT/sweep.json again")
    option("--out", metavar="DIR", type=path, help="with --sweep: the folder of its files; default: sweep")
    add_overwrite(parser, "another sweep")


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("bench", "Time sampling, part by part, and count its floating-point operations.", EXAMPLES)
    add_model(parser)
    add_compile(parser)
    add_sweep(parser)
    option = parser.add_argument
    option(
        "--repeats",
        type=whole(1),
        default=1,
        help="timed runs after one warm-up step, with --compile after a whole warm-up run; the fastest counts",
    )
    option(
        "--error",
        action="store_true",
        help="with --dtype bf16 or fp16: also how much a pass and the tokens of a batch differ from fp32",
    )
    option("--json", metavar="FILE", type=path, help="also write the numbers to a file")
    args = parser.parse_args(argv)
    check_options(args)
    check_names(args)

    from mgen.bench import benchmark
    from mgen.cli.sample import chosen_sampler
    from mgen.utils.files import check_target, check_writable, write_json

    if args.json:
        check_target(args.json)
        check_writable(Path(args.json).parent)
    pipe = chosen_pipeline(args)
    sampler = chosen_sampler(pipe, args)
    if args.sweep:
        words = [word for word in (argv if argv is not None else sys.argv[2:]) if word != "--retime"]
        inputs = (args.model, args.sweep, args.reference, args.extractor, args.arch, args.config)
        with overwriting(args.out, "bench", active=args.overwrite, inputs=inputs):
            return compare(pipe, sampler, args, "mgen bench " + " ".join(words))
    result = benchmark.bench(
        pipe,
        sampler,
        model=named(args),
        batch_size=args.batch_size,
        repeats=args.repeats,
        dtype=args.dtype,
        compile=args.compile or "off",
    )
    print(benchmark.table(result))
    numbers = asdict(result)
    if args.error:
        from mgen.bench.error import error_lines, run_error

        error = run_error(pipe.transformer, sampler, batch_size=args.batch_size, dtype=args.dtype)
        print("\n".join(error_lines(error, args.dtype)))
        numbers["error"] = asdict(error)
    if args.json:
        write_json(args.json, numbers)
        print(args.json, file=sys.stderr)
    else:
        print(json.dumps({"seconds_per_image": result.seconds_per_image}), file=sys.stderr)
    return 0


def check_options(args: Namespace) -> None:
    """Raise MgenError for options without effect, and for a file that can't be written, before the work."""
    from pathlib import Path

    from mgen.utils.files import check_writable

    if not args.sweep:
        for name in ("num_images", "seed", "extractor", "reference", "inception_weights", "retime", "overwrite", "out"):
            if (given := getattr(args, name)) is not None and given is not False:
                raise MgenError(f"--{name.replace('_', '-')} is for --sweep: leave it out")
    if args.error and (args.dtype == "fp32" or args.sweep):
        raise MgenError("--error compares a setting with fp32: give --dtype bf16 or fp16, and no --sweep")
    args.seed, args.out = args.seed or 0, args.out or "sweep"
    if args.sweep and args.compile:
        raise MgenError("--compile is for one setting: leave --sweep or --compile out")
    if args.sweep and args.json:
        raise MgenError("--json is for one setting: --sweep writes its numbers to OUT/sweep.json")
    if args.inception_weights and args.extractor != "inception":
        extractor = args.extractor or "fmnist-cnn"
        raise MgenError(f"--inception-weights is for --extractor inception, this is {extractor}: leave it out")
    if args.json:
        if Path(args.json).is_dir():
            raise MgenError(f"--json {args.json} is a folder: give the name of a file")
        check_writable(Path(args.json).parent)


def check_names(args: Namespace) -> None:
    """Raise MgenError for names that there are not, before the heavy imports."""
    from mgen.cli.early import check_common, check_shipped

    check_common(args)
    if args.arch:
        check_shipped("models", "model", args.arch)
    if args.config:
        from mgen.cli.train import find_config

        find_config(args.config)
    if args.sweep:
        check_shipped("sweeps", "sweep", args.sweep)


def chosen_pipeline(args: Namespace) -> "RandomPipeline | MaskedPipeline":
    """The pipeline that the options of `add_model` ask for, on its device; sets the number of threads."""
    if args.arch and args.config:
        raise MgenError("--arch and --config both name a model: give one of them")
    if args.model_set and not (args.arch or args.config):
        raise MgenError("--model-set changes models with random weights: use it with --arch or --config")
    if args.tokenizer != "auto" and not (args.arch or args.config):
        raise MgenError("--tokenizer is for models with random weights, --arch or --config: a saved model has its own")

    import torch

    from mgen.pipelines.pipeline import load
    from mgen.utils.devices import check_device

    if args.threads:
        torch.set_num_threads(args.threads)
    device = check_device(args.device)
    if not (args.arch or args.config):
        return load(args.model, device=device).optimize()

    from mgen.bench.benchmark import random_pipeline

    pipe = random_pipeline(chosen_config(args), None if args.tokenizer == "none" else args.tokenizer)
    pipe.transformer.to(device)
    if pipe.tokenizer is not None:
        pipe.tokenizer.to(device)
    return pipe


def chosen_config(args: Namespace) -> "Settings":
    """The configuration of the generator that --arch or --config names, with --model-set."""
    from mgen.generators.presets import model_config, named_config, override
    from mgen.utils.config import apply_overrides, read_config

    overrides = apply_overrides({}, args.model_set)
    if args.arch:
        return model_config(args.arch, **overrides)
    from mgen.cli.train import find_config

    settings = read_config(find_config(args.config)).get("model") or {}
    if isinstance(settings, dict) and "class" in settings:
        raise MgenError(
            f"--config {args.config} trains a {settings['class']}: give the configuration of a generator, such as fmnist-mar"
        )
    return override(named_config(settings), overrides)


def named(args: Namespace) -> str:
    """The model in the words of the options."""
    if not (args.arch or args.config):
        return args.model
    return ", ".join([args.arch or f"model of {args.config}", *args.model_set])


def compare(pipe: "RandomPipeline | MaskedPipeline", sampler: "ParallelSampler", args: Namespace, line: str) -> int:
    """Run --sweep; `line` is the command as written into its files."""
    from pathlib import Path

    import torch

    from mgen.bench import sweep, sweep_report
    from mgen.bench.flops import check_duration
    from mgen.pipelines.sizes import check_batch
    from mgen.utils.files import check_writable, write_text

    out = Path(args.out)
    check_writable(out)
    random = bool(args.arch or args.config)
    about: dict[str, object] = {
        "command": line,
        "model": named(args) + (", random weights" if random else ""),
        "batch_size": args.batch_size,
        "threads": args.threads or torch.get_num_threads(),
        "dtype": args.dtype,
        "device": args.device,
    }
    distance = None
    if not random:
        distance, more = sweep_distance(pipe, args)
        about |= more
    settings = sweep.read_sweep(args.sweep, sampler, pipe.transformer)
    for _, _, chosen in settings.runs:
        check_batch(pipe, chosen, args.batch_size, args.batch_size)
        check_duration(pipe, chosen, args.batch_size * args.repeats + (args.num_images or 0))
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


def sweep_distance(pipe: "RandomPipeline | MaskedPipeline", args: Namespace) -> tuple["Distance", dict[str, object]]:
    """How --sweep measures the images of a trained model, and what its files say about that."""
    from mgen.evaluation.belonging import chosen_extractor
    from mgen.evaluation.evaluate import metric_names
    from mgen.evaluation.extractors import make_extractor
    from mgen.evaluation.fashion import require_fashion
    from mgen.evaluation.references import find_reference
    from mgen.tune.tuning import Distance
    from mgen.zoo import weights_sha256

    if args.num_images is None or args.num_images < 2:
        raise MgenError("--sweep on a trained model needs --num-images, at least 2 (500 and more tell methods apart)")
    how = "--reference FILE, statistics that mgen stats wrote, or fmnist-train if that is right"
    name = chosen_extractor(args.extractor, [args.reference], pipe, args.model, how)
    extractor = make_extractor(name, weights=args.inception_weights, device=pipe.device)
    builtin = name == "fmnist-cnn"
    if args.reference is None and builtin:
        require_fashion(pipe, args.model, how)
    side = None if pipe.tokenizer is None else pipe.tokenizer.config.image_size
    reference = find_reference(args.reference, extractor, builtin=builtin, side=side)
    if reference is None:
        raise MgenError(
            f"--sweep measures distances, and {args.model} with --extractor {name} has no built-in reference: give "
            f"{how}"
        )
    name = metric_names(extractor, args.num_images)[0]
    distance = Distance(
        pipe=pipe,
        extractor=extractor,
        reference=reference,
        count=args.num_images,
        seed=args.seed,
        batch_size=min(100, args.num_images),
        dtype=args.dtype,
    )
    return distance, {
        "weights_sha256": weights_sha256(args.model),
        "distance": f"{name} of {args.num_images} images, seed {args.seed}, to {reference.name}",
    }
