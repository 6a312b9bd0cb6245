"""`mgen tune`: search a sampling strategy, step by step, for a trained model."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mgen.cli import resumable
from mgen.cli.overwrite import add_overwrite, again, overwriting
from mgen.cli.parser import make_parser, path, whole
from mgen.utils.errors import MgenError

if TYPE_CHECKING:
    from mgen.evaluation.extractors import Extractor
    from mgen.evaluation.statistics import Reference
    from mgen.pipelines.pipeline import MaskedPipeline
    from mgen.tune.strategies import Space
    from mgen.tune.tuning import Outcome
    from mgen.utils.config import Settings

EXAMPLES = """  mgen tune --steps 6 --out tune-6                            the embedded model; rerun to resume
  mgen sample --recipe tune-6/strategy.yaml                   sample with the strategy found
  mgen tune --steps 8 --max-passes-per-image 12               guidance in four of eight steps at most
  mgen tune --steps 8 --start autonat-heuristic-8 --search guidance,temperature --trials 30 --out tune-8
  mgen tune --model models/autonat-l --steps 8 --num-images 5000 --test-images 10000 --extractor inception \\
      --inception-weights FILE --reference-search train-a.npz --reference-test train-b.npz

The search compares images of one seed with one reference. The best strategy is then measured with another seed against another
reference, and kept only if it is better there too."""


REFERENCES = "--reference-search and --reference-test, two sets of images or statistics of them"


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "tune",
        "Search mask fractions, temperatures and guidance, step by step, for the least Fréchet distance.",
        EXAMPLES,
    )
    add_options(parser)
    args = parser.parse_args(argv)

    from mgen.cli.early import check_common, check_recipe, check_there

    if args.inception_weights and args.extractor != "inception":
        extractor = args.extractor or "fmnist-cnn"
        raise MgenError(f"--inception-weights is for --extractor inception, this is {extractor}: leave it out")
    if args.seed == args.test_seed:
        raise MgenError(f"--seed and --test-seed are both {args.seed}: the final comparison needs images of its own")
    check_common(args)
    if args.start:
        check_recipe(args.start)
    both = (args.reference_search, args.reference_test)
    if all(both) and "none" not in both and os.path.realpath(both[0]) != os.path.realpath(both[1]):
        check_there("--reference-search", args.reference_search)
        check_there("--reference-test", args.reference_test)
    inputs = (args.model, args.start, args.reference_search, args.reference_test, args.extractor)
    with (
        overwriting(args.out, "tune", active=args.overwrite, inputs=inputs),
        resumable(f"the same command{again(args)} goes on after the trials it has made"),
    ):
        return tune(args, "mgen tune " + " ".join(argv if argv is not None else sys.argv[2:]))


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
    option("--steps", type=whole(1, 2**20), help="decoding steps; default: the start's")
    option(
        "--start",
        metavar="NAME|FILE",
        type=path,
        help="sampler to start from: a recipe or strategy file; default: the model's",
    )
    option(
        "--search",
        metavar="LISTS",
        help="comma-separated: schedule, confidence_temperature, temperature, guidance; default: all that apply",
    )
    option("--knots", type=whole(1, 1000), default=2, help="numbers that bend each list; 1 shifts the whole list")
    option("--trials", type=whole(2), default=60, help="strategies to measure, including the start")
    option(
        "--max-passes-per-image",
        type=whole(1),
        metavar="N",
        help="most forward passes, with and without class; guidance is removed from the first steps until they fit",
    )
    option("--num-images", type=whole(2), default=500, help="images of each trial")
    option("--test-images", type=whole(2), default=1000, help="images of the final comparison")
    option("--seed", type=int, default=0, help="of the search's images")
    option("--test-seed", type=int, default=1, help="of the images of the final comparison")
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


def tune(args: Namespace, line: str) -> int:
    from mgen.bench.flops import check_duration
    from mgen.evaluation.belonging import chosen_extractor
    from mgen.evaluation.extractors import make_extractor
    from mgen.pipelines.pipeline import load
    from mgen.pipelines.runs import begin_run
    from mgen.pipelines.sizes import check_batch
    from mgen.samplers import ParallelSampler
    from mgen.tune import tuning
    from mgen.tune.strategies import Space
    from mgen.utils.files import check_writable, write_text
    from mgen.zoo.recipes import recipe_settings

    out = Path(args.out)
    check_writable(out)
    pipe = load(args.model, device=args.device).optimize()
    sampler = pipe.sampler
    if args.start:
        sampler = ParallelSampler.suited(pipe.transformer, *recipe_settings(args.start))
    space = Space(
        sampler.override(steps=args.steps),
        pipe.transformer,
        search=None if args.search is None else [name.strip() for name in args.search.split(",") if name.strip()],
        knots=args.knots,
        limit=args.max_passes_per_image,
    )
    given = (args.reference_search, args.reference_test)
    # Who names Fashion-MNIST's files means them.
    name = chosen_extractor(args.extractor, given, pipe, args.model, REFERENCES, told=bool(args.data_path))
    extractor = make_extractor(name, weights=args.inception_weights, device=pipe.device)
    sides, notes = describe(args, extractor, pipe), notes_on(extractor, pipe)
    check_batch(pipe, space.sampler(space.start), args.batch_size, args.batch_size)
    check_duration(pipe, space.sampler(space.start), args.trials * args.num_images + 2 * args.test_images)
    settings = search_settings(args, space, extractor, sides)
    trace = tuning.Trace(path=out / "trace.jsonl")
    references = given_references(args, extractor, pipe.tokenizer.config.image_size)
    begin_run(out, settings)
    references = references or {side: half(side, facts["reference"], extractor, args) for side, facts in sides.items()}
    objectives = {
        side: tuning.Distance(
            pipe=pipe,
            extractor=extractor,
            reference=references[side],
            count=facts["images"],
            seed=facts["seed"],
            batch_size=args.batch_size,
            dtype=args.dtype,
            progress=side == "test",
        )
        for side, facts in sides.items()
    }
    tried = tuning.search(space, objectives["search"], trace, trials=args.trials)
    outcome = tuning.compare(space, tried, objectives["test"], trace)
    write_text(out / "strategy.yaml", recipe(outcome, space, sides, args.model, line))
    write_text(out / "report.md", report(outcome, space, sides, settings, line, notes))
    print(verdict(outcome, sides))
    print(out / "strategy.yaml")
    return 0


class Side(TypedDict):
    """What is measured on one side, of the search or of the test."""

    distance: str
    images: int
    seed: int
    reference: str


def search_settings(args: Namespace, space: "Space", extractor: "Extractor", sides: dict[str, Side]) -> "Settings":
    """What determines the result of a search; a folder is only resumed with the same."""
    from mgen.tune.strategies import own_settings
    from mgen.zoo import resolve
    from mgen.zoo.identity import identity

    return {
        "model": args.model,
        **vars(identity(resolve(args.model))),
        "start": own_settings(space.sampler(space.start)),
        "search": space.search,
        "knots": args.knots,
        "limit": args.max_passes_per_image,
        "extractor": {"name": extractor.name, "sha256": extractor.sha256},
        "dtype": args.dtype,
        **{f"{side}_{key}": facts[key] for side, facts in sides.items() for key in ("images", "seed", "reference")},
    }


def describe(args: Namespace, extractor: "Extractor", pipe: "MaskedPipeline") -> dict[str, Side]:
    """What is measured for the search and for the test, and the name of the distance."""
    from mgen.evaluation.evaluate import metric_names
    from mgen.evaluation.fashion import require_fashion

    counts = {"search": (args.num_images, args.seed), "test": (args.test_images, args.test_seed)}
    names = {"search": args.reference_search, "test": args.reference_test}
    if "none" in names.values():
        raise MgenError(
            "--reference-search and --reference-test cannot be none: a search needs something to compare with"
        )
    if None not in names.values():
        if os.path.realpath(names["search"]) == os.path.realpath(names["test"]):
            raise MgenError(
                f"--reference-search and --reference-test are both {names['test']}: give two disjoint sets of images"
            )
    elif any(names.values()):
        raise MgenError("--reference-search and --reference-test go together: give two disjoint sets of images")
    elif not extractor.name.startswith("fmnist"):
        raise MgenError(
            f"extractor {extractor.name} has no built-in reference: give --reference-search and --reference-test"
        )
    else:
        if not args.data_path:  # who names Fashion-MNIST's files means them
            require_fashion(pipe, args.model, REFERENCES)
        names = {"search": "fmnist train, images 0, 2, 4 …", "test": "fmnist train, images 1, 3, 5 …"}
    return {
        side: {"distance": metric_names(extractor, count)[0], "images": count, "seed": seed, "reference": names[side]}
        for side, (count, seed) in counts.items()
    }


def given_references(args: Namespace, extractor: "Extractor", size: int) -> "dict[str, Reference]":
    """The statistics that the options name, images of several sizes cropped to `size`; none where halves of Fashion-MNIST serve."""
    from mgen.data.fashion_mnist import find_fashion_mnist
    from mgen.evaluation.references import find_reference

    if not args.reference_search:
        find_fashion_mnist(args.data_path)
        return {}
    found = {
        side: reference
        for side, name in (("search", args.reference_search), ("test", args.reference_test))
        if (reference := find_reference(name, extractor, side=size, batch_size=args.batch_size)) is not None
    }
    if (found["search"].cov == found["test"].cov).all():
        raise MgenError(
            "--reference-search and --reference-test hold equal statistics: give two disjoint sets of images"
        )
    return found


def notes_on(extractor: "Extractor", pipe: "MaskedPipeline") -> list[str]:
    """What to know about distances in an extractor's features; warnings also go to stderr."""
    from mgen.evaluation.belonging import extractor_notes, unsuited
    from mgen.evaluation.sources import from_model

    config, source = pipe.tokenizer.config, from_model(pipe, name="", count=1, seed=0)
    found = [unsuited(extractor, config.in_channels, config.image_size), *extractor_notes(extractor, source)]
    notes = [note for note in found if note]
    for note in notes:
        if note.startswith("WARNING"):
            print(note, file=sys.stderr)
    return notes


def half(side: str, name: str, extractor: "Extractor", args: Namespace) -> "Reference":
    """The statistics of one half of Fashion-MNIST's training images; kept in the output folder."""
    from mgen.data import FashionMNIST
    from mgen.evaluation.measure import measure
    from mgen.evaluation.sources import from_dataset
    from mgen.evaluation.statistics import load_statistics, save_statistics

    file = Path(args.out) / f"reference-{side}.safetensors"
    if not file.is_file():
        data, first = FashionMNIST(root=args.data_path, split="train"), ("search", "test").index(side)
        data.images, data.labels = data.images[first::2], data.labels[first::2]
        source = from_dataset(data, name=name)
        save_statistics(file, measure(source, extractor, batch_size=500, examples=0).sums(), extractor, name)
    return load_statistics(file, extractor)


def verdict(outcome: "Outcome", sides: dict[str, Side]) -> str:
    """One sentence: which strategy is kept, and why."""
    (first, best), distance = (record["distance"] for record in outcome.test), sides["test"]["distance"]
    if outcome.better:
        return f"The strategy found is better on the test images too: {distance} {best:.4f}, the start's {first:.4f}"
    if outcome.search[0] is outcome.search[1]:
        return f"No strategy was better than the start on the images of the search: the start is kept ({distance} {first:.4f})"
    return f"The strategy found is not better on the test images ({distance} {best:.4f}, the start's {first:.4f}): the start is kept"


def recipe(outcome: "Outcome", space: "Space", sides: dict[str, Side], model: str, line: str) -> str:
    """The file for `mgen sample --recipe`."""
    import yaml

    from mgen.tune.strategies import own_settings

    settings = own_settings(space.sampler(outcome.kept))
    lines = [f"Made for {model} by: {line}", f"{verdict(outcome, sides)}."]
    for side, pair in (("search", outcome.search), ("test", outcome.test)):
        facts, (first, best) = sides[side], (record["distance"] for record in pair)
        lines.append(
            f"{side}: {facts['distance']} of the start {first:.4f}, found {best:.4f}; {facts['images']} images of seed "
            f"{facts['seed']} against {facts['reference']}"
        )
    lines.append(f"{space.cost(outcome.kept)} forward passes per image.")
    text = yaml.safe_dump(
        {"sampler": settings}, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True
    )
    return "".join(f"# {' '.join(x.split())}\n" for x in lines) + text


def report(
    outcome: "Outcome",
    space: "Space",
    sides: dict[str, Side],
    settings: "Settings",
    line: str,
    notes: Sequence[str] = (),
) -> str:
    """The report: what was searched, what was found, and how it was measured."""
    rows = [f"# Search of a strategy for {settings['model']}", "", f"    {line}", "", f"{verdict(outcome, sides)}.", ""]
    rows += ["**Distances of the start and of the strategy found** (lower is better), and what an image costs", ""]
    rows += [
        "| images of | measured | start | found | images | seed | compared with |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, pair in (("search", outcome.search), ("test", outcome.test)):
        facts, (first, best) = sides[side], (record["distance"] for record in pair)
        rows.append(
            f"| {side} | {facts['distance']} | {first:.4f} | {best:.4f} | {facts['images']} | {facts['seed']} | "
            f"{facts['reference']} |"
        )
    start = "without guidance in its first steps, to stay within the limit" if space.held else "as given"
    (first, best), seconds = outcome.search, sum(record["seconds"] for record in outcome.tried)
    costs = f"{first['passes_per_image']} | {best['passes_per_image']}"
    rows += [
        f"| | forward passes per image | {costs} | | | |",
        "",
        "Start and found strategy sample the same classes from the same seeds. The search score is the least of "
        f"{len(outcome.tried)} distances and therefore optimistic; the test score is not. The distance falls with the number of "
        "images: compare equal numbers only.",
        *(f"\n> {note}" for note in notes),
        "",
        "**The strategy**: a value for each step, the first step first",
        "",
        "| list | start | found |",
        "|---|---|---|",
    ]
    for name, values in first["strategy"].items():
        lists = (" ".join(f"{v:.3f}" for v in x) for x in (values, best["strategy"][name]))
        rows.append(f"| {name}{'' if name in space.search else ' (not searched)'} | " + " | ".join(lists) + " |")
    about = {
        "strategies measured": f"{len(outcome.tried)}, in {seconds:.0f} s",
        "numbers searched": f"{space.size}: " + ", ".join(f"{name} {size}" for name, size in space.sizes.items()),
        "most forward passes per image": space.limit or "any",
        "start": start,
        "weights_sha256": settings["weights_sha256"],
        "dtype": settings["dtype"],
        **{f"extractor: {key}": value for key, value in settings["extractor"].items()},
    }
    return "\n".join(
        [
            *rows,
            "",
            "**How it was searched**",
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in about.items()),
            "",
        ]
    )
