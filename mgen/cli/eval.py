"""`mgen eval`: measure images, a model, or a tokenizer's reconstructions."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from mgen.cli import resumable
from mgen.cli.overwrite import add_overwrite, again, overwriting
from mgen.cli.parser import add_vision, make_parser, number, path, whole
from mgen.cli.sample import add_compile, add_guide, add_sampler, chosen_sampler
from mgen.utils.errors import MgenError, check_choice, shown

if TYPE_CHECKING:
    import torch

    from mgen.evaluation.measured import Measured
    from mgen.evaluation.request import EvalRequest
    from mgen.evaluation.result import Facts, Result
    from mgen.pipelines.pipeline import MaskedPipeline

N = TypeVar("N")

EXAMPLES = """  mgen eval samples                                   a folder of images (class ids from their names)
  mgen eval fmnist-maskgit --num-images 5000 --nearest fmnist      a model, sampled and measured without writing images
  mgen eval --recipe fmnist-maskgit                   as its recipe says, published values beside the measured ones
  mgen eval --recipe mar-l-imagenet256 --inception-weights FILE     a published setting: `mgen zoo mar-l-imagenet256` says what it needs
  accelerate launch --multi_gpu --num_processes 8 -m mgen eval --recipe mar-l-imagenet256 --inception-weights FILE
  mgen eval fmnist-mar --chain ddim --head-steps 25 --set reuse.cached=1    a model with another sampler
  mgen eval samples.npz --protocol adm --inception-weights FILE --reference VIRTUAL_imagenet256_labeled.npz
  mgen eval fmnist --split test                       a data set itself: the lowest distance to expect
  mgen eval fmnist --split test --reconstruction fmnist-maskgit            how well a tokenizer reconstructs images
  mgen eval photos/val --reconstruction models/vq16 --check --extractor runs/classifier-photos/model       is it good enough?
  mgen eval /data/val --reconstruction models/kl16 --protocol reconstruction --inception-weights FILE --lpips-weights vgg16-397923af.pth
  mgen eval /data/val --reconstruction models/hita --vision-weights dinov2_vitl14_reg4_pretrain.pth --extractor inception
  mgen eval fmnist --reconstruction runs/kl/model --levels 16,64 --ranges 3,5,best        levels for mgen convert quantize

Rerun an interrupted command to resume: features are kept in OUT/features until it is done. mgen stats makes reference statistics of
any images; mgen report puts several results on one page."""


# Options of add_sampler and add_guide that change how a model's images are sampled.
SAMPLING = ("guide", "steps", "guidance", "temperature", "order", "head_steps", "chain", "set")


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "eval",
        "Fréchet distance, classifier score, precision and recall by a named protocol, with everything that determines them.",
        EXAMPLES,
    )
    add_options(parser)
    add_reconstruction_options(parser)
    add_guide(parser)
    add_sampler(parser)
    add_compile(parser)
    args = parser.parse_args(argv)
    line = "mgen eval " + " ".join(argv if argv is not None else sys.argv[2:])
    request = request_of(args, line)
    check_names(args, request)
    inputs = [value for name, value in vars(args).items() if name != "out" and isinstance(value, str)]
    replaced = overwriting(request.folder, "eval", active=args.overwrite, inputs=inputs)
    with replaced, resumable(f"the same command{again(args)} goes on with the features it has"):
        return evaluate(args, request)


def add_options(parser: ArgumentParser) -> None:
    option = parser.add_argument
    option(
        "path",
        nargs="?",
        type=path,
        help="folder of images, .npz (arr_0), .npy, model (folder or name), or `fmnist`; default: the recipe's model",
    )
    option(
        "--protocol",
        help="adm, torch-fidelity, clean, halton, reconstruction or fmnist-cnn: network, resize, rounding, order; "
        "default: the recipe's, torch-fidelity with --extractor inception, else fmnist-cnn",
    )
    option(
        "--reference",
        type=path,
        help="statistics (.safetensors, .npz, .pt), folder or npz of images, fmnist-train, fmnist-test or none; default: fmnist-train for "
        "Fashion-MNIST and models trained on it",
    )
    option(
        "--extractor", type=path, help="instead of --protocol: fmnist-cnn, inception, or a folder of an ImageClassifier"
    )
    option(
        "--inception-weights",
        metavar="FILE",
        type=path,
        help="torch-fidelity's Inception weights; downloaded if not given",
    )
    option(
        "--classifier",
        type=path,
        help="classifier for the class accuracy; default: fmnist-classifier for Fashion-MNIST and models trained on it, else none",
    )
    option("--num-images", type=int, help="maximum number of images; default: all, or 1000 from a model")
    option("--labels", help="classes of a model's images: balanced (in turn, the default), sorted or random")
    option("--image-size", type=int, metavar="N", help="resize a model's images to N pixels before measuring")
    option("--quantization", help="how a model's images become bytes: round (the default), half-up or truncate")
    option(
        "--bootstrap",
        type=int,
        metavar="N",
        help="replicates for standard deviations, 0 for none; default: 200, with Inception 20",
    )
    option(
        "--nearest",
        metavar="DATA",
        type=path,
        help="check for memorization: show the nearest training images in feature space; `fmnist`, a folder or an npz",
    )
    option("--out", metavar="DIR", type=path, help="folder for result.json, report.html, report.md; default: eval-NAME")
    add_overwrite(parser, "features of other images or settings; results are always replaced")
    option("--keep-features", action="store_true", help="keep OUT/features, one safetensors file per 500 images")
    option(
        "--save-statistics", metavar="FILE", type=path, help="also write mean and covariance, for use as --reference"
    )
    option("--split", help="train or test, for fmnist; default: test")
    option("--seed", type=int, help="seed of a model's images; default: 0, or the recipe's")
    option("--batch-size", type=int, default=100)
    option("--device", default="auto")
    option("--dtype", default="fp32", help="precision of a model: fp32, bf16 or fp16")


def add_reconstruction_options(parser: ArgumentParser) -> None:
    option = parser.add_argument
    option(
        "--reconstruction",
        metavar="TOKENIZER",
        type=path,
        help="measure this tokenizer's reconstructions of the images of PATH (`fmnist` or a folder) against the originals",
    )
    option(
        "--check",
        action="store_true",
        help="say whether the tokenizer is good enough: numbers, pictures and a verdict, in OUT/check.md",
    )
    option("--posterior", help="decode the mean or a sample of a KL tokenizer's posterior; default: mean")
    option(
        "--lpips-weights",
        metavar="FILE",
        type=path,
        help="torchvision's vgg16-397923af.pth, to measure LPIPS of reconstructions",
    )
    add_vision(parser)
    option("--levels", metavar="Q,…", help="compare numbers of levels for a KL tokenizer's latents, in levels.md")
    option("--ranges", metavar="R,…", help="with --levels: ranges [-R, R], or `best`; default: 3,5,best")


def request_of(args: Namespace, line: str) -> "EvalRequest":
    """The options as a request."""
    from mgen.evaluation.request import EvalRequest

    given = {field.name: getattr(args, field.name) for field in fields(EvalRequest) if hasattr(args, field.name)}
    given["levels"] = tuple(numbers(args.levels, "--levels", whole(2, 2**16))) if args.levels else ()
    ranges = args.ranges.split(",") if args.ranges else []
    given["ranges"] = tuple(r if r == "best" else numbers(r, "--ranges", number(1e-6, 1e6))[0] for r in ranges)
    sampling = {name: getattr(args, name) for name in SAMPLING}
    return EvalRequest(**given, sampling=sampling, command=line)


def check_names(args: Namespace, request: "EvalRequest") -> None:
    """Raise MgenError for choices, models and files that there are not, before the heavy imports."""
    from mgen.cli.early import check_common, check_images, check_model, check_there
    from mgen.pipelines.labels import PLANS

    if request.labels is not None:
        check_choice("--labels", request.labels, PLANS)
    request.find_protocol()
    check_common(args)
    if request.reference not in (None, "none", "fmnist", "fmnist-train", "fmnist-test"):  # a path, then
        check_there("--reference", request.reference)
    if request.path and not request.samples:
        check_images(request.path)
    if request.reconstruction:
        check_model(request.reconstruction)


def numbers(text: str, option: str, read: Callable[[str], N]) -> list[N]:
    """Numbers from a comma-separated list."""
    try:
        return [read(part.strip()) for part in text.split(",")]
    except ArgumentTypeError as error:
        raise MgenError(
            f"{option} {shown(text)}: {error}; expected a comma-separated list of positive numbers, such as 16,64"
        ) from error


def evaluate(args: Namespace, request: "EvalRequest") -> int:
    import torch

    from mgen.cli.sample import processes
    from mgen.evaluation.feature_files import remove_features
    from mgen.evaluation.measure import Workers
    from mgen.evaluation.run import run_evaluation, run_levels
    from mgen.reports.write import write_report

    rank, world, device, wait = processes(args.device)
    if request.check:
        return check(request, device) if rank == 0 else 0
    workers = Workers(rank=rank, world=world, device=torch.device(device), wait=wait)
    if request.levels:
        table, file = run_levels(request, workers.device)
        print(table)
        print(file)
        return 0
    outcome = run_evaluation(request, workers, lambda pipe: chosen_sampler(pipe, args))
    if outcome is None:
        return 0
    if outcome.pipe is not None:
        outcome.result["cost"] = cost(outcome.pipe, outcome.measured, workers.device)
    examples, labels = outcome.measured.examples()
    files = write_report(outcome.folder, outcome.result, examples, labels.tolist())
    show(outcome.result)
    if not request.keep_features:
        for name in ("features", "reference"):
            remove_features(outcome.folder / name)
    for file in files:
        print(file)
    return 0


def check(request: "EvalRequest", device: str) -> int:
    """Check a tokenizer: print the verdict and the files."""
    from mgen.evaluation.tokenizer_check import FILES, check_tokenizer

    assert request.reconstruction is not None  # the request has checked
    found = check_tokenizer(
        request.reconstruction,
        str(request.path),
        request.folder,
        extractor=request.extractor,
        inception_weights=request.inception_weights,
        num_images=request.num_images or 2000,
        split=request.split or "test",
        batch_size=request.batch_size,
        vision_weights=request.vision_weights,
        device=device,
        command=request.command,
    )
    print(found.sentence)
    for line in (*found.advice, *found.notes):
        print(f"  {line}")
    for name in FILES:
        print(request.folder / name)
    return 0


def show(result: "Result") -> None:
    """Print the metrics, with what they are of."""
    reference = (result["reference"] or {}).get("name", "no reference")
    print(f"Metrics of {result['count']:,} images, protocol {result['protocol']['name']}, compared with {reference}")
    print(f"{'metric':<58} value ± standard deviation")
    for name, value in result["metrics"].items():
        deviation = result["deviations"].get(name)
        print(f"{name:<58} {value:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else ""))
    for name, reason in result["missing"].items():
        print(f"{name:<58} – ({reason})")
    for row in result["published"]["rows"] if "published" in result else ():
        print(f"published {row['metric']:<48} {row['published']} ± {row['tolerance']}: {row['verdict']}")
    if result["note"]:
        print(f"({result['note']})")


def cost(pipe: "MaskedPipeline", measured: "Measured", device: "torch.device") -> "Facts":
    """What an image of a model costs: counted operations, and seconds as measured while sampling."""
    import torch

    from mgen.bench.flops import count_run

    counts = count_run(pipe, pipe.sampler)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return {
        "parameters": sum(p.numel() for p in pipe.sampled().parameters()),
        "steps": pipe.sampler.config.steps,
        "tflops_per_image": counts.total / 1e12,
        "seconds_per_image": measured.total("seconds").item() / measured.count,
        "hardware": f"{device}{threads}",
    }
