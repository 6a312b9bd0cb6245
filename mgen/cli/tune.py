"""`mgen tune`: search how to sample from a trained model: the best policy within a budget, or per-step lists of a number of steps."""

import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from mgen.cli import resumable
from mgen.cli.overwrite import add_overwrite, again, overwriting
from mgen.cli.parser import make_parser, number, path, whole
from mgen.utils.errors import MgenError, shown

EXAMPLES = """  mgen tune --budget 0.5x --out half                          half of the operations, best quality; rerun to resume
  mgen sample --recipe half/strategy.yaml                     sample with the policy found
  mgen tune --model fmnist-mar --budget 0.25x --axes steps,head,guidance --trials 30 --seconds 1800 --out quarter
  mgen tune --budget "0.1 s" --rungs 200,600,2000 --test-seeds 5 --out tenth
  mgen tune --start half/strategy.yaml --trials 30 --out half-lists      then bend its lists, step by step
  mgen tune --steps 8 --max-passes-per-image 12               guidance in four of eight steps at most
  mgen tune --steps 8 --start autonat-heuristic-8 --search guidance,temperature --trials 30 --out tune-8
  mgen tune --model models/autonat-l --steps 8 --num-images 5000 --test-images 10000 --extractor inception \\
      --inception-weights FILE --reference-search train-a.npz --reference-test train-b.npz

With --budget, --axes or --space the policy of the sampler is searched: steps, order, schedule, guidance, head, reuse. Candidates get more
images the better they are; none over the budget is sampled. Without, the lists of a sampler are bent at its number of steps.
The search compares images of one seed with one reference. The best is then measured with other seeds against another reference."""

LISTS = {"search": None, "knots": 2, "max_passes_per_image": None, "num_images": 500}
POLICIES = {"axes": None, "space": None, "rungs": "100,300,1000", "finalists": 3, "test_seeds": 3, "seconds": None}


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "tune",
        "Search how to sample from a model: the policy of least Fréchet distance within a budget per image, or lists over the steps.",
        EXAMPLES,
    )
    add_options(parser)
    args = parser.parse_args(argv)
    policies = any(value is not None for value in (args.budget, args.axes, args.space))
    settle(args, policies)
    from mgen.cli.early import check_common, check_recipe, check_there

    if args.inception_weights and args.extractor != "inception":
        extractor = args.extractor or "fmnist-cnn"
        raise MgenError(f"--inception-weights is for --extractor inception, this is {extractor}: leave it out")
    check_common(args)
    if args.start:
        check_recipe(args.start)
    both = (args.reference_search, args.reference_test)
    if all(both) and "none" not in both and os.path.realpath(both[0]) != os.path.realpath(both[1]):
        check_there("--reference-search", args.reference_search)
        check_there("--reference-test", args.reference_test)
    line = "mgen tune " + " ".join(argv if argv is not None else sys.argv[2:])
    inputs = (args.model, args.start, args.space, args.reference_search, args.reference_test, args.extractor)
    with (
        overwriting(args.out, "tune", active=args.overwrite, inputs=inputs),
        resumable(f"the same command{again(args)} goes on after the trials it has made"),
    ):
        if policies:
            from mgen.cli.tune_policies import search_policies

            return search_policies(args, line)
        from mgen.cli.tune_lists import search_lists

        return search_lists(args, line)


def settle(args: Namespace, policies: bool) -> None:
    """Fill in the defaults of the kind of search, and check options against one another; MgenError for those of the other kind."""
    own, other = (POLICIES, LISTS) if policies else (LISTS, POLICIES)
    for name in other:
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            if policies:
                raise MgenError(f"{option} is for the search of lists: leave it out, or --budget, --axes and --space")
            raise MgenError(f"{option} is for the search of policies: give --budget too, such as --budget 0.5x")
    for name, default in own.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if policies:
        from mgen.cli.early import check_shipped

        args.rungs = numbers(args.rungs)
        if args.space is not None:
            check_shipped("spaces", "space", args.space)
    last = args.test_seed + (args.test_seeds - 1 if policies else 0)
    if args.test_seed <= args.seed <= last:
        what = f"both {args.seed}" if args.test_seed == last else f"{args.seed} and {args.test_seed} … {last}"
        raise MgenError(f"--seed and --test-seed are {what}: the final comparison needs images of its own")


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of images of --rungs; MgenError unless they rise."""
    if len(text) > 200 or not re.fullmatch(r"[0-9]{1,15}( *, *[0-9]{1,15})*", text):
        raise MgenError(f"--rungs {shown(text)}: give numbers of images with commas between them, such as 100,300,1000")
    found = tuple(map(int, text.split(",")))
    if found[0] < 2 or any(a >= b for a, b in zip(found, found[1:])):
        raise MgenError(f"--rungs {text}: give numbers of images that rise, the first at least 2")
    return found


def add_options(parser: ArgumentParser) -> None:
    # Longer than 60 lines since it is the list of the command's options, one after the other.
    from mgen.zoo import DEFAULT

    option = parser.add_argument
    option(
        "--model",
        default=DEFAULT,
        metavar="NAME|PATH",
        type=path,
        help="a model of `mgen zoo`, a folder, or owner/name on the hub",
    )
    option("--out", default="tune", metavar="DIR", type=path, help="for strategy.yaml, trace.jsonl and report.md")
    add_overwrite(parser, "another search")
    option(
        "--budget",
        metavar="COST",
        help="most that an image may cost, decoding included: 0.5x of the start's operations, '0.5x seconds', '12 GFLOPs', 0.8s; "
        "default of a search of policies: 1x",
    )
    option(
        "--axes",
        metavar="NAMES",
        help="comma-separated: what the search of policies changes, such as steps,order,guidance,head,reuse; default: all of the space",
    )
    option(
        "--space",
        metavar="NAME|FILE",
        type=path,
        help="axes and their values, a file like configs/spaces/default.yaml; default: that",
    )
    option("--steps", type=whole(1, 2**20), help="decoding steps of the start; default: its own")
    option(
        "--start",
        metavar="NAME|FILE",
        type=path,
        help="sampler to start from: a recipe or strategy file; default: the model's",
    )
    option(
        "--search",
        metavar="LISTS",
        help="comma-separated lists to bend: schedule, confidence_temperature, temperature, guidance; default: all that apply",
    )
    option("--knots", type=whole(1, 1000), help="numbers that bend each list; 1 shifts the whole list; default: 2")
    option("--trials", type=whole(2), default=60, help="policies or strategies to measure, including the start")
    option(
        "--rungs",
        metavar="NUMBERS",
        help="images of a policy: of every one, of the best third, of the best third of those; default: 100,300,1000",
    )
    option(
        "--seconds",
        type=number(0.001, 999_999),
        help="of measuring, after which the search of policies ends and its best are tested; default: any",
    )
    option("--finalists", type=whole(1, 1000), help="policies in the final comparison; default: 3")
    option(
        "--max-passes-per-image",
        type=whole(1),
        metavar="N",
        help="most forward passes, with and without class; guidance is removed from the first steps until they fit",
    )
    option("--num-images", type=whole(2), help="images of each trial of lists; default: 500")
    option("--test-images", type=whole(2), default=1000, help="images of the final comparison, of each seed")
    option("--seed", type=int, default=0, help="of the search's images")
    option(
        "--test-seed", type=int, default=1, help="of the images of the final comparison, the first if there are several"
    )
    option(
        "--test-seeds",
        type=whole(1, 1000),
        metavar="N",
        help="so many seeds of policies in the final comparison, for its confidence intervals; default: 3",
    )
    option(
        "--extractor",
        type=path,
        help="fmnist-cnn, inception, or a folder of an ImageClassifier; default: fmnist-cnn for models of Fashion-MNIST",
    )
    option(
        "--inception-weights",
        metavar="FILE",
        type=path,
        help="torch-fidelity's Inception weights; downloaded if not given",
    )
    option(
        "--reference-search",
        type=path,
        help="folder or statistics file; default for fmnist-cnn: training images 0, 2, 4 …",
    )
    option(
        "--reference-test",
        type=path,
        help="the same of other images; default for fmnist-cnn: training images 1, 3, 5 …",
    )
    option("--data-path", metavar="DIR", type=path, help="Fashion-MNIST's IDX files, if not in a known place")
    option("--batch-size", type=whole(1), default=100)
    option("--device", default="auto")
    option("--dtype", default="fp32", help="fp32, bf16 or fp16, of the generator")
