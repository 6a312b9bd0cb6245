"""`mgen eval`: measure images, a model, or a tokenizer's reconstructions."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgen.cli import add_vision, make_parser
from mgen.cli.sample import add_sampler, chosen_sampler
from mgen.errors import MgenError

EXAMPLES = """  mgen eval samples                                   a folder of images (class ids from their names)
  mgen eval fmnist-maskgit --num-images 5000          a model, drawn and measured without writing images
  mgen eval fmnist-mar --chain ddim --head-steps 25 --set reuse.local=1    the same, sampled otherwise
  mgen eval samples.npz --extractor inception --inception-weights FILE --reference VIRTUAL_imagenet256_labeled.npz
  mgen eval fmnist --split test                       a data set itself: the floor of the distance
  mgen eval fmnist --split test --reconstruction fmnist-maskgit            what a tokenizer keeps of the images
  mgen eval /data/photos --reconstruction models/kl16 --posterior sample --extractor inception --inception-weights FILE
  mgen eval /data/val --reconstruction models/hita --vision-weights dinov2_vitl14_reg4_pretrain.pth --extractor inception
  mgen eval fmnist --reconstruction runs/kl/model --levels 16,64 --ranges 3,5,best        levels for mgen convert quantize
  mgen eval /data/train --extractor inception --inception-weights FILE --save-statistics train.safetensors"""


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "eval", "Fréchet distance, Inception Score and class accuracy, with everything that decides them.", EXAMPLES
    )
    parser.add_argument("path", help="folder of images, .npz (arr_0), model (folder or name), or `fmnist`")
    parser.add_argument(
        "--reference",
        help="folder, statistics file, fmnist-train, fmnist-test or none; default: fmnist-train for fmnist-cnn",
    )
    parser.add_argument("--extractor", default="fmnist-cnn", help="fmnist-cnn, inception, or a folder of a FashionCNN")
    parser.add_argument(
        "--inception-weights", metavar="FILE", help="torch-fidelity's Inception weights; downloaded if not given"
    )
    parser.add_argument(
        "--judge", help="classifier for the class accuracy; default: fmnist-judge with fmnist-cnn, else none"
    )
    parser.add_argument("--num-images", type=int, help="at most so many images; default: all, or 1000 from a model")
    parser.add_argument("--out", metavar="DIR", help="folder for result.json, report.md, grid.png; default: eval-NAME")
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
    add_vision(parser)
    parser.add_argument(
        "--levels", metavar="Q,…", help="of a KL tokenizer: compare so many levels a number, in levels.md"
    )
    parser.add_argument("--ranges", metavar="R,…", help="with --levels: ranges [-R, R], or `best`; default: 3,5,best")
    parser.add_argument("--split", default="test", help="train or test, for fmnist")
    parser.add_argument("--seed", type=int, default=0)
    add_sampler(parser)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="fp32", help="fp32, bf16 or fp16, for a model")
    args = parser.parse_args(argv)
    if args.batch_size < 1 or (args.num_images is not None and args.num_images < 2):
        raise MgenError("--batch-size must be at least 1 and --num-images at least 2")
    if args.reconstruction is None and (args.posterior or args.levels or args.ranges or args.vision_weights):
        raise MgenError("--posterior, --levels, --ranges and --vision-weights are for --reconstruction TOKENIZER")
    if args.ranges and not args.levels:
        raise MgenError("--ranges goes with --levels: the numbers of levels to compare")
    return evaluate(args, "mgen eval " + " ".join(argv if argv is not None else sys.argv[2:]))


def evaluate(args: Namespace, line: str) -> int:
    from mgen.evaluation.evaluate import measure, result
    from mgen.evaluation.extractors import make_extractor
    from mgen.evaluation.report import write_report
    from mgen.evaluation.statistics import save_statistics
    from mgen.files import check_writable
    from mgen.pipeline import check_device

    out = Path(args.out or f"eval-{Path(args.path).stem or 'images'}")
    check_writable(out)
    device = check_device(args.device)
    extractor = make_extractor(args.extractor, weights=args.inception_weights, device=device)
    if args.levels:
        return compare(args, line, out, extractor, device)
    judge_name = args.judge or ("fmnist-judge" if builtin_data(args) else "none")
    judge = None if judge_name == "none" else make_extractor(judge_name, device=device)
    source, names = find_source(args, extractor, device)
    reference = find_reference(args, extractor)
    measured = measure(source, extractor, judge=judge)
    if args.save_statistics:
        save_statistics(
            args.save_statistics,
            measured.sums,
            extractor,
            f"{args.path} {args.split if args.path == 'fmnist' else ''}".strip(),
        )
    outcome = result(measured, source, extractor, reference=reference, judge=judge)
    report = write_report(out, outcome, measured, names, line)
    for name, value in outcome["metrics"].items():
        if not isinstance(value, dict):
            print(f"{name:<58} {value:.4f}")
    if outcome["note"]:
        print(f"({outcome['note']})")
    print(report)
    return 0


def builtin_data(args: Namespace) -> bool:
    """Whether the images are taken for Fashion-MNIST's: then there are a judge and a reference without asking."""
    reconstruction = getattr(
        args, "reconstruction", None
    )  # other commands have references too, and draw what they measure
    return args.extractor == "fmnist-cnn" and not (reconstruction and args.path != "fmnist")


def find_source(args: Namespace, extractor: Any, device: Any) -> tuple[Any, Sequence[str]]:
    """The images that `path` names, and the names of their classes."""
    from mgen.data import FASHION_CLASSES, FashionMNIST
    from mgen.evaluation import sources
    from mgen.pipeline import load
    from mgen.zoo import embedded_entries

    path, size = Path(args.path), args.batch_size
    if args.reconstruction:
        return find_reconstructions(args, extractor, device)
    if args.path == "fmnist":
        data = FashionMNIST(split=args.split)
        name = f"fmnist {args.split}"
        return sources.from_dataset(data, name=name, batch_size=size, limit=args.num_images), FASHION_CLASSES
    if path.suffix == ".npz":
        return sources.from_npz(path, batch_size=size, limit=args.num_images), ()
    if path.is_dir() and not (path / "model_index.json").is_file():
        names = FASHION_CLASSES if extractor.name.startswith("fmnist") else ()
        return sources.from_folder(path, channels=extractor.channels, batch_size=size, limit=args.num_images), names
    if path.is_dir() or args.path in [entry.name for entry in embedded_entries()]:
        pipe = load(args.path, device=device).optimize()
        pipe.sampler = chosen_sampler(pipe, args)
        source = sources.from_model(
            pipe,
            name=args.path,
            count=args.num_images or 1000,
            batch_size=size,
            seed=args.seed,
            dtype=args.dtype,
        )
        return source, pipe.class_names
    raise MgenError(f"{args.path} is neither a folder of images, nor an .npz, nor a model of mgen zoo")


def chosen_rows(data: Any, args: Namespace) -> range:
    """The first --num-images of fmnist; of a folder, where classes follow each other, evenly spread ones."""
    most = min(args.num_images or len(data), len(data))
    return range(0, len(data), 1 if args.path == "fmnist" else len(data) // most)[:most]


def find_reconstructions(args: Namespace, extractor: Any, device: Any) -> tuple[Any, Sequence[str]]:
    """The images of `path` through the tokenizer, and the names of their classes."""
    from mgen.cli.cache import open_images
    from mgen.evaluation.reconstruction import reconstructions
    from mgen.pipeline import load_tokenizer
    from mgen.tokenizers.vision import give_vision

    tokenizer = load_tokenizer(args.reconstruction, device=device)
    give_vision(tokenizer, args.vision_weights)
    data, name = open_images(args.path, tokenizer, split=args.split)
    source = reconstructions(
        data,
        tokenizer,
        extractor,
        name=f"{name} through {args.reconstruction}",
        rows=chosen_rows(data, args),
        batch_size=args.batch_size,
        posterior=args.posterior or "mean",
        seed=args.seed,
    )
    return source, data.class_names


def compare(args: Namespace, line: str, out: Path, extractor: Any, device: Any) -> int:
    """The table of levels: printed, levels.md and levels.json."""
    from dataclasses import asdict

    from mgen.cli.cache import continuous, open_images
    from mgen.evaluation.levels import compare_levels, levels_markdown
    from mgen.evaluation.reconstruction import distance_name
    from mgen.files import write_json, write_text
    from mgen.pipeline import load_tokenizer

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
        seed=args.seed,
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


def numbers(text: str, option: str, kind: type) -> list[Any]:
    """Numbers above zero, parted by commas."""
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise MgenError(f"{option} {text!r}: expected numbers parted by commas, such as 16,64") from error
    if not all(0 < number < float("inf") for number in found):
        raise MgenError(f"{option} {text!r}: the numbers must be above zero")
    return found


def find_reference(args: Namespace, extractor: Any) -> Any:
    """The statistics to compare with; None if `--reference none` or nothing is built in for the extractor."""
    from mgen.evaluation.evaluate import measure
    from mgen.evaluation.sources import from_folder
    from mgen.evaluation.statistics import BUILTIN, Reference, builtin_file, load_statistics

    name = args.reference or ("fmnist-train" if builtin_data(args) else "none")
    if name == "none":
        return None
    if name in BUILTIN:
        return load_statistics(builtin_file(name), extractor)
    if not Path(name).is_dir():
        return load_statistics(name, extractor)
    source = from_folder(Path(name), channels=extractor.channels, batch_size=args.batch_size, limit=None)
    mean, cov = measure(source, extractor, examples=0).sums.finish()
    return Reference(mean=mean, cov=cov, name=str(name), count=source.count)
