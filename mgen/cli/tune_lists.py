"""`mgen tune` without a budget: the search of per-step lists, its recipe and its report."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mgen.cli.tune_sides import (
    Side,
    common_settings,
    describe,
    given_references,
    half,
    notes_on,
    open_extractor,
    open_start,
)

if TYPE_CHECKING:
    from mgen.evaluation.extractors import Extractor
    from mgen.tune.strategies import Space
    from mgen.tune.tuning import Outcome
    from mgen.utils.config import Settings


def search_lists(args: Namespace, line: str) -> int:
    """Search, test, and write the files."""
    from mgen.bench.flops import check_duration
    from mgen.pipelines.runs import begin_run
    from mgen.pipelines.sizes import check_batch
    from mgen.tune import tuning
    from mgen.tune.strategies import Space
    from mgen.utils.files import check_writable, write_text

    out = Path(args.out)
    check_writable(out)
    pipe, start = open_start(args)
    space = Space(
        start,
        pipe.transformer,
        search=None if args.search is None else [name.strip() for name in args.search.split(",") if name.strip()],
        knots=args.knots,
        limit=args.max_passes_per_image,
    )
    extractor = open_extractor(args, pipe)
    sides, notes = describe(args, extractor, pipe, images=args.num_images), notes_on(extractor, pipe)
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


def search_settings(args: Namespace, space: "Space", extractor: "Extractor", sides: dict[str, Side]) -> "Settings":
    """What determines the result of a search; a folder is only resumed with the same."""
    from mgen.tune.strategies import own_settings

    return {
        **common_settings(args, extractor, sides),
        "start": own_settings(space.sampler(space.start)),
        "search": space.search,
        "knots": args.knots,
        "limit": args.max_passes_per_image,
    }


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
