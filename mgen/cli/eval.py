"""`mgen eval`: measure images, a model, or a tokenizer's reconstructions."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgen.cli import add_vision, make_parser
from mgen.cli.inputs import chosen_rows, find_reference, numbers, open_source
from mgen.cli.sample import add_sampler, chosen_sampler
from mgen.utils.errors import MgenError, check_choice

EXAMPLES = """  mgen eval samples                                   a folder of images (class ids from their names)
  mgen eval fmnist-maskgit --num-images 5000 --nearest fmnist      a model, drawn and measured without writing images
  mgen eval --recipe fmnist-maskgit                   as its recipe says, published figures beside the measured ones
  mgen eval --recipe mar-l-imagenet256 --inception-weights FILE     the same of a paper: `mgen zoo mar-l-imagenet256` says what it takes
  accelerate launch --multi_gpu --num_processes 8 -m mgen eval --recipe mar-l-imagenet256 --inception-weights FILE
  mgen eval fmnist-mar --chain ddim --head-steps 25 --set reuse.local=1    a model, sampled otherwise
  mgen eval samples.npz --protocol adm --inception-weights FILE --reference VIRTUAL_imagenet256_labeled.npz
  mgen eval fmnist --split test                       a data set itself: the floor of the distance
  mgen eval fmnist --split test --reconstruction fmnist-maskgit            what a tokenizer keeps of the images
  mgen eval /data/val --reconstruction models/kl16 --protocol reconstruction --inception-weights FILE --lpips-weights vgg16-397923af.pth
  mgen eval /data/val --reconstruction models/hita --vision-weights dinov2_vitl14_reg4_pretrain.pth --extractor inception
  mgen eval fmnist --reconstruction runs/kl/model --levels 16,64 --ranges 3,5,best        levels for mgen convert quantize

An interrupted command goes on when it is run again: the features measured so far lie in OUT/features until it is done. Reference
statistics of any images: mgen stats. Several results on one page: mgen report."""


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "eval",
        "Distances, scores, precision and recall by a named protocol, with everything that decides them.",
        EXAMPLES,
    )
    add_options(parser)
    add_sampler(parser)
    args = parser.parse_args(argv)
    for name, least in (("batch_size", 1), ("num_images", 2), ("image_size", 1), ("bootstrap", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise MgenError(f"--{name.replace('_', '-')} is {value}: at least {least} is needed")
    if args.bootstrap == 1:
        raise MgenError("--bootstrap 1: one replicate has no spread; give 0 for none, or at least 2")
    if args.reconstruction is None and (args.posterior or args.levels or args.ranges or args.vision_weights):
        raise MgenError("--posterior, --levels, --ranges and --vision-weights are for --reconstruction TOKENIZER")
    if args.lpips_weights and not args.reconstruction:
        raise MgenError("--lpips-weights is for --reconstruction TOKENIZER: LPIPS compares images with their originals")
    if args.ranges and not args.levels:
        raise MgenError("--ranges goes with --levels: the numbers of levels to compare")
    return evaluate(args, "mgen eval " + " ".join(argv if argv is not None else sys.argv[2:]))


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "path",
        nargs="?",
        help="folder of images, .npz (arr_0), model (folder or name), or `fmnist`; default: the recipe's model",
    )
    parser.add_argument(
        "--protocol",
        help="adm, torch-fidelity, clean, halton, reconstruction or fmnist-cnn: network, resize, rounding, order; "
        "default: the recipe's, torch-fidelity with --extractor inception, else fmnist-cnn",
    )
    parser.add_argument(
        "--reference",
        help="statistics (.safetensors, .npz, .pt), folder or npz of images, fmnist-train, fmnist-test or none; "
        "default: fmnist-train for fmnist-cnn",
    )
    parser.add_argument("--extractor", help="instead of --protocol: fmnist-cnn, inception, or a folder of a FashionCNN")
    parser.add_argument(
        "--inception-weights", metavar="FILE", help="torch-fidelity's Inception weights; downloaded if not given"
    )
    parser.add_argument(
        "--classifier", help="classifier for the class accuracy; default: fmnist-classifier with fmnist-cnn, else none"
    )
    parser.add_argument("--num-images", type=int, help="at most so many images; default: all, or 1000 from a model")
    parser.add_argument(
        "--labels", help="classes of a model's images: balanced (in turn; the default), sorted or random"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="bring a model's images to N pixels before they are measured"
    )
    parser.add_argument("--quantization", help="of a model's images to bytes: round (the default), half-up or truncate")
    parser.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help="replicates behind the standard deviations, 0 for none; default: 200, with Inception 20",
    )
    parser.add_argument(
        "--nearest",
        metavar="DATA",
        help="show the nearest training images in feature space: `fmnist`, a folder or an npz; is anything learned by heart?",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder for result.json, report.html, report.md; default: eval-NAME"
    )
    parser.add_argument(
        "--keep-features", action="store_true", help="keep OUT/features, a safetensors file for 500 images"
    )
    parser.add_argument(
        "--save-statistics", metavar="FILE", help="also write mean and covariance, for use as --reference"
    )
    parser.add_argument(
        "--reconstruction",
        metavar="TOKENIZER",
        help="measure what this tokenizer makes of the images of PATH (`fmnist` or a folder), against the originals",
    )
    parser.add_argument(
        "--posterior", help="mean or sample, what of a KL tokenizer's posterior is decoded; default: mean"
    )
    parser.add_argument(
        "--lpips-weights", metavar="FILE", help="torchvision's vgg16-397923af.pth: also LPIPS of reconstructions"
    )
    add_vision(parser)
    parser.add_argument(
        "--levels", metavar="Q,…", help="of a KL tokenizer: compare so many levels a number, in levels.md"
    )
    parser.add_argument("--ranges", metavar="R,…", help="with --levels: ranges [-R, R], or `best`; default: 3,5,best")
    parser.add_argument("--split", default="test", help="train or test, for fmnist")
    parser.add_argument("--seed", type=int, help="of a model's images; default: 0, or the recipe's")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="fp32", help="fp32, bf16 or fp16, for a model")


def evaluate(args: Namespace, line: str) -> int:
    from mgen.cli.sample import processes
    from mgen.evaluation import evaluate as results
    from mgen.evaluation.extractors import make_extractor, protocol_extractor
    from mgen.evaluation.measure import begin, measure, remove_features
    from mgen.evaluation.published import Published, settle
    from mgen.evaluation.reconstruction import reconstruction_metrics
    from mgen.evaluation.statistics import check_statistics_name, save_statistics, sha256_of
    from mgen.pipelines.pipeline import check_device
    from mgen.reports.write import write_report
    from mgen.utils.files import check_writable

    model = args.path is None or is_model(args.path)
    if not model or args.reconstruction:
        only_for_models(args)
    published: Published | None = settle(args, model=model)
    if args.path is None:
        raise MgenError("nothing to measure: name a folder of images, an .npz, a model, `fmnist`, or --recipe NAME")
    protocol = find_protocol_of(args)
    out = Path(args.out or f"eval-{Path(args.path).stem or 'images'}")
    check_writable(out)
    if args.save_statistics:
        check_statistics_name(args.save_statistics, "--save-statistics")
        check_writable(Path(args.save_statistics).parent)
    rank, world, name, wait = processes(args.device)
    device = check_device(name)
    shared = {"rank": rank, "world": world, "wait": wait}
    extractor = protocol_extractor(protocol, weights=args.inception_weights, device=device)
    if args.levels:
        return compare(args, line, out, extractor, device)
    classifier_name = args.classifier or ("fmnist-classifier" if builtin_data(args, protocol) else "none")
    classifier = None if classifier_name == "none" else make_extractor(classifier_name, device=device)
    source, pipe = find_source(args, protocol, extractor, device)
    if args.protocol is None and args.extractor is None and args.reference is None and not args.reconstruction:
        check_small(args.path, source, pipe)
    if args.nearest and open_source(args.nearest, channels=extractor.channels).count < 2:
        raise MgenError(f"--nearest {args.nearest}: at least 2 images are needed")
    reference = find_reference(
        args.reference,
        extractor,
        builtin=builtin_data(args, protocol),
        images=protocol.neighbors or protocol.kid,
        batch_size=args.batch_size,
        folder=out / "reference",
        **shared,
    )
    if rank == 0:
        begin(
            out / "features",
            source,
            extractor,
            protocol.id,
            classifier=None if classifier is None else classifier.sha256,
        )
    wait()
    folder = out / "features"
    measured = measure(source, extractor, classifier=classifier, folder=folder, batch_size=args.batch_size, **shared)
    if rank > 0:
        return 0
    if args.save_statistics:
        about = f"{args.path} {args.split if args.path == 'fmnist' else ''}".strip()
        spatial = measured.sums("spatial") if protocol.spatial else None
        save_statistics(args.save_statistics, measured.sums(), extractor, about, spatial=spatial)
    outcome = results.result(
        measured,
        source,
        extractor,
        protocol=protocol,
        reference=reference,
        classifier=classifier,
        bootstrap=args.bootstrap if args.bootstrap is not None else (200 if extractor.length <= 256 else 20),
        more=reconstruction_metrics(measured, source, extractor) if args.reconstruction else None,
    )
    outcome["command"] = line
    if args.reconstruction and reference is None:
        originals = measured.sums("original").finish()
        outcome["reference"] = {"name": "the originals", "count": measured.count, "sha256": sha256_of(*originals)}
    if pipe is not None:
        outcome["cost"] = cost(pipe, measured, device)
    if args.nearest:
        # Training images come in all sizes: they are cut as the measured ones were, or would have been.
        size = None if args.nearest == "fmnist" else min(measured.examples()[0].shape[-2:])
        training = open_source(args.nearest, channels=extractor.channels, size=size)
        outcome["nearest"] = results.nearest_rows(measured, training, extractor)
    if published is not None:
        outcome["published"] = published.compare(outcome)
    examples, labels = measured.examples()
    files = write_report(out, outcome, examples, labels.tolist())
    show(outcome)
    if not args.keep_features:
        measured.remove()
        remove_features(out / "reference")
    for file in files:
        print(file)
    return 0


def show(outcome: dict[str, Any]) -> None:
    """The metrics on the terminal."""
    for name, value in outcome["metrics"].items():
        spread = outcome["deviations"].get(name)
        print(f"{name:<58} {value:.4f}" + (f" ± {spread:.4f}" if spread is not None else ""))
    for name, reason in outcome["missing"].items():
        print(f"{name:<58} – ({reason})")
    for row in outcome.get("published", {}).get("rows", ()):
        print(f"published {row['metric']:<48} {row['published']} ± {row['tolerance']}: {row['verdict']}")
    if outcome["note"]:
        print(f"({outcome['note']})")


def check_small(path: str, source: Any, pipe: Any) -> None:
    """MgenError for images that nobody would compare with Fashion-MNIST, the default where nothing is said."""
    what = None
    if pipe is not None and pipe.generator.num_classes > 10:
        what = f"draws {pipe.generator.num_classes} classes"
    elif pipe is None and (side := max(source.read(0, 1).images.shape[-2:])) > 64:
        what = f"holds images of {side} px"
    if what is not None:
        raise MgenError(
            f"{path} {what}, and without --protocol images are compared with Fashion-MNIST's: name one, such as --protocol "
            "torch-fidelity or adm, and its --reference"
        )


def find_protocol_of(args: Namespace) -> Any:
    from mgen.evaluation.protocols import find_protocol
    from mgen.pipelines.runs import QUANTIZATIONS

    if args.quantization is not None:
        check_choice("--quantization", args.quantization, QUANTIZATIONS)
    name = args.protocol
    if name is None and args.reconstruction and args.extractor in ("inception", "inception-v3-compat"):
        name = "reconstruction"
    return find_protocol(name, extractor=args.extractor, image_size=args.image_size, quantization=args.quantization)


def builtin_data(args: Namespace, protocol: Any) -> bool:
    """Whether the images are taken for Fashion-MNIST's: then there are a classifier and a reference without asking."""
    return protocol.extractor == "fmnist-cnn" and not (args.reconstruction and args.path != "fmnist")


def cost(pipe: Any, measured: Any, device: Any) -> dict[str, Any]:
    """What an image of a model takes: operations counted, seconds as they were while the images were drawn."""
    import torch

    from mgen.bench.flops import count_run

    counts = count_run(pipe, pipe.sampler)
    threads = f", {torch.get_num_threads()} threads" if str(device) == "cpu" else ""
    return {
        "parameters": sum(p.numel() for p in pipe.generator.parameters()),
        "steps": pipe.sampler.config.steps,
        "tflops_per_image": counts.total / 1e12,
        "seconds_per_image": measured.total("seconds").item() / measured.count,
        "hardware": f"{device}{threads}",
    }


def is_model(path: str) -> bool:
    """Whether this is a pipeline's folder or an embedded model, not images."""
    from mgen.zoo import embedded_entries

    return (Path(path) / "model_index.json").is_file() or path in [entry.name for entry in embedded_entries()]


def only_for_models(args: Namespace) -> None:
    """Refuse what says how images are drawn where none are drawn."""
    from mgen.evaluation.published import CHANGES

    given = [name for name in CHANGES if name != "seed" and getattr(args, name) not in (None, [])]
    if args.dtype != "fp32":
        given.append("dtype")
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise MgenError(
            f"{names}: for models, whose images are drawn; stored and reconstructed images are measured as they are"
        )


def find_source(args: Namespace, protocol: Any, extractor: Any, device: Any) -> tuple[Any, Any]:
    """The images that `path` names, and the pipeline if they are drawn."""
    from mgen.data import FASHION_CLASSES
    from mgen.evaluation import sources
    from mgen.pipelines.pipeline import load
    from mgen.zoo import weights_sha256

    if args.reconstruction:
        return find_reconstructions(args, device), None
    if not is_model(args.path):
        found = open_source(args.path, channels=extractor.channels, split=args.split, limit=args.num_images)
        if not found.class_names and extractor.name.startswith("fmnist"):
            found.class_names = FASHION_CLASSES
        return found, None
    pipe = load(args.path, device=device).optimize()
    pipe.sampler = chosen_sampler(pipe, args)
    source = sources.from_model(
        pipe,
        name=args.path,
        count=args.num_images or 1000,
        batch_size=args.batch_size,
        seed=args.seed or 0,
        dtype=args.dtype,
        plan=args.labels or "balanced",
        image_size=protocol.image_size,
        quantization=protocol.quantization,
    )
    source.about["weights_sha256"] = weights_sha256(args.path)
    return source, pipe


def find_reconstructions(args: Namespace, device: Any) -> Any:
    """The images of `path` through the tokenizer."""
    from mgen.cli.cache import open_images
    from mgen.evaluation.pixels import Lpips
    from mgen.evaluation.reconstruction import reconstructions
    from mgen.pipelines.pipeline import load_tokenizer
    from mgen.tokenizers.vision import give_vision
    from mgen.utils.files import file_sha256
    from mgen.zoo import weights_sha256

    tokenizer = load_tokenizer(args.reconstruction, device=device)
    give_vision(tokenizer, args.vision_weights)
    data, name = open_images(args.path, tokenizer, split=args.split)
    source = reconstructions(
        data,
        tokenizer,
        name=f"{name} through {args.reconstruction}",
        rows=chosen_rows(data, args),
        posterior=args.posterior or "mean",
        seed=args.seed or 0,
        lpips=Lpips(args.lpips_weights, device) if args.lpips_weights else None,
    )
    source.about["tokenizer_sha256"] = weights_sha256(args.reconstruction)
    if args.vision_weights:
        source.about["vision_sha256"] = file_sha256(args.vision_weights)
    source.key = [source.key, [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in getattr(data, "files", ())]]
    return source


def compare(args: Namespace, line: str, out: Path, extractor: Any, device: Any) -> int:
    """The table of levels: printed, levels.md and levels.json."""
    from dataclasses import asdict

    from mgen.cli.cache import continuous, open_images
    from mgen.evaluation.levels import compare_levels, levels_markdown
    from mgen.evaluation.reconstruction import distance_name
    from mgen.pipelines.pipeline import load_tokenizer
    from mgen.utils.files import write_json, write_text

    found = load_tokenizer(args.reconstruction, device=device)
    tokenizer = continuous(found, "--levels")
    data, name = open_images(args.path, tokenizer, split=args.split)
    indices, posterior = chosen_rows(data, args), args.posterior or "mean"
    rows = compare_levels(
        data,
        tokenizer,
        extractor,
        rows=indices,
        batch_size=args.batch_size,
        levels=numbers(args.levels, "--levels", int),
        ranges=[r if r == "best" else numbers(r, "--ranges", float)[0] for r in (args.ranges or "3,5,best").split(",")],
        posterior=posterior,
        seed=args.seed or 0,
    )
    distance = distance_name(extractor, len(indices))
    notes = [
        f"{len(indices)} images: {name}, through {args.reconstruction}; the posterior's {posterior}.",
        "Squared error and entropy are those of the latents times scale, per number; outside: the share beyond the range.",
    ]
    table = levels_markdown(rows, title=line, notes=notes, distance=distance)
    write_text(out / "levels.md", table)
    about = {"command": line, "data": name, "count": len(indices), "posterior": posterior, "distance": distance}
    about["extractor"] = {"name": extractor.name, "sha256": extractor.sha256}
    write_json(out / "levels.json", {**about, "rows": [asdict(row) for row in rows]})
    print(table)
    print(out / "levels.md")
    return 0
