"""`mgen zoo`: the models, which of them are on this machine, and their recipes; the architectures that have a name."""

import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from fnmatch import filter as fnfilter
from fnmatch import fnmatch
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgen.cli.parser import make_parser
from mgen.utils.errors import MgenError, shown, suggestion

if TYPE_CHECKING:
    from mgen.zoo import Entry

EXAMPLES = """  mgen zoo                        a table: cost, published metrics, what is on this machine
  mgen zoo mar-l-imagenet256      one recipe in full: how to get, convert, sample and evaluate the model
  mgen zoo --verbose              the table, with how to get published models
  mgen zoo mar-l-imagenet256 --classes terrier      ids and names of its classes, for mgen sample --classes
  mgen zoo --json                 everything, machine-readable; for one recipe: mgen zoo NAME --json
  mgen zoo --models "mar*"        names of architectures, for create_model, `model:` of a configuration and mgen bench --arch

A published model is on this machine if the folder that its recipe names is in the working directory or in $MGEN_MODELS."""

Row = dict[str, Any]  # a recipe as read from YAML, with what is known about its model
WIDTH = 118
COLUMNS = "  {:<38}{:>10} {:>5} {:>7} {:>9} {:>11}  {:<15}{}"
DISTANCE, ACCURACY = "Fréchet distance (fmnist-cnn)", "class accuracy (fmnist-classifier)"


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("zoo", "List the embedded models and the published ones that mgen can run.", EXAMPLES)
    option = parser.add_argument
    option("name", nargs="?", metavar="NAME", help="show one model or recipe in full")
    option("--verbose", action="store_true", help="also say where to get published checkpoints and how to convert them")
    option("--json", action="store_true", help="print everything, machine-readable")
    option(
        "--models",
        nargs="?",
        const="*",
        metavar="PATTERN",
        help='list the architectures of configs/models instead, those whose names match, such as "mar*"; default: all',
    )
    option(
        "--classes",
        nargs="?",
        const="*",
        metavar="PATTERN",
        help="list the classes of a model, by NAME or folder: ids and names, those with a name like PATTERN, such as terrier",
    )
    args = parser.parse_args(argv)
    if args.models is not None:
        if args.name is not None or args.verbose or args.classes is not None:
            raise MgenError("--models lists architectures: leave out the name of a recipe, --verbose and --classes")
        found = architectures(args.models)
        width = max(map(len, found))
        listing = "\n".join(f"{name:<{width}}  {about}" for name, about in found.items())
        print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else listing)
    elif args.classes is not None:
        if args.name is None or args.verbose:
            raise MgenError("--classes lists the classes of one model: mgen zoo NAME --classes, without --verbose")
        classes = class_names(args.name, args.classes)
        listed = "\n".join(f"{i:>6}  {', '.join(names)}" for i, names in classes.items())
        caption = f"Classes of {args.name} for --classes, by id; the first name is shown\n    id  names"
        print(json.dumps(classes, indent=2, ensure_ascii=False) if args.json else f"{caption}\n{listed}")
    elif args.json:
        found_rows: object = rows() if args.name is None else row_named(args.name)
        print(json.dumps(found_rows, indent=2, ensure_ascii=False))
    elif args.name is not None:
        print("\n".join(full(row_named(args.name))))
    else:
        print("\n".join(table(rows(), verbose=args.verbose)))
    return 0


def architectures(pattern: str) -> dict[str, str]:
    """Models of configs/models whose names match, and the first line of their files; MgenError if there is none."""
    from mgen.utils.folders import first_comment, shipped

    files = shipped("models")
    names = fnfilter(files, pattern)
    if not names:
        raise MgenError(f"--models {shown(pattern)}: no architecture has such a name: {suggestion(pattern, files)}")
    return {name: first_comment(files[name]) for name in names}


def class_names(name: str, pattern: str) -> dict[int, list[str]]:
    """Ids and names of a model's classes, synonyms behind the first name, of those that have a name like `pattern`."""
    from mgen.utils.class_names import names_by_id
    from mgen.utils.reading import read_mapping
    from mgen.zoo import embedded_entries, recipe, resolve
    from mgen.zoo.imagenet import NAME, folded, imagenet_classes, imagenet_names, nearest_classes
    from mgen.zoo.recipes import recipe_names

    embedded = [entry.name for entry in embedded_entries()]
    names: object
    if name in recipe_names() and name not in embedded and recipe(name).facts.get("data") == NAME:
        names = imagenet_names()
    else:
        if not Path(name).is_dir():
            row_named(name)  # raises for a name that there is not
        file = resolve(name) / "model_index.json"
        names = names_by_id(read_mapping(file).get("class_names") if file.is_file() else None)
    if not isinstance(names, list | tuple) or not names:
        raise MgenError(f"{name} has no names of classes: they are called by their ids")
    known = imagenet_classes() if tuple(names) == imagenet_names() else None
    every = {
        i: [str(n), *(known[i].others if known else ()), *([known[i].wordnet] if known else [])]
        for i, n in enumerate(names)
    }
    like = folded(pattern) if any(c in pattern for c in "*?[") else f"*{folded(pattern)}*"
    found = {i: own for i, own in every.items() if any(fnmatch(folded(n), like) for n in own)}
    if not found:
        near = ", ".join(f"{names[i]} ({i})" for i in nearest_classes(pattern, names))
        raise MgenError(
            f"--classes {shown(pattern)}: no class of {name} has such a name"
            + (f"; the nearest: {near}" if near else "")
        )
    return found


def rows() -> list[Row]:
    """Everything known about every model: embedded ones first, then published ones by year, system, image size and cost."""
    from mgen.zoo import embedded_entries, recipe_entries

    inside, recipes = embedded_entries(), recipe_entries()
    entries = {entry.name: entry for entry in (*inside, *recipes)}
    return sorted((row(entry, inside, recipes) for entry in entries.values()), key=_order)


def row_named(name: str) -> Row:
    """Everything known about one model; MgenError if there is none of this name."""
    from mgen.utils.folders import shipped
    from mgen.zoo import embedded_entries
    from mgen.zoo.recipes import nearest, recipe_names

    names = {*(entry.name for entry in embedded_entries()), *recipe_names()}
    if name not in names:
        bare = f"; {name} is a model without weights, see mgen zoo --models {name}" if name in shipped("models") else ""
        raise MgenError(f"the zoo has no {shown(name)}: {nearest(name, sorted(names))}{bare}")
    return next(row for row in rows() if row["name"] == name)


def row(entry: "Entry", inside: "list[Entry]", recipes: "list[Entry]") -> Row:
    """A recipe with its evaluation settings, what was measured of the model, and where it is; for a classifier a description."""
    from mgen.evaluation.recipe import parse_evaluation
    from mgen.zoo import description, local_folder, same_weights

    measured = {other.name: other.facts for other in inside}
    folder = local_folder(entry)
    found = {"name": entry.name, "embedded": entry.name in measured, "path": str(folder) if folder else None}
    if entry.name in measured:
        found["measured"] = measured[entry.name]
    if "sampler" not in entry.facts:
        return found | {"about": entry.facts.get("about", "")}
    found |= {"about": description(entry.name), **entry.facts}
    found["same_weights"] = [other.name for other in same_weights(entry, recipes)]
    if "evaluation" in entry.facts:
        found["evaluation"] = asdict(parse_evaluation(entry.facts["evaluation"], entry.name))
    return found


def _order(row: Row) -> tuple[object, ...]:
    """Sort key of a row in the table."""
    if "sampler" not in row or row["embedded"]:
        return (0, "sampler" not in row, row["name"])
    year = re.search(r"\b20\d\d\b", row["system"])
    size = re.search(r"\d+$", row["name"])
    return (
        1,
        year[0] if year else "",
        row["system"],
        int(size[0]) if size else 0,
        float(row["parameters"].split()[0]),
        own_steps(row["sampler"]),
        row["name"],
    )


def steps(row: Row) -> str:
    """Decoding steps; those of a first stage come first."""
    sampler = row["sampler"]
    first = f"{own_steps(sampler['first_stage'])}+" if "first_stage" in sampler else ""
    return f"{first}{own_steps(sampler)}"


def own_steps(sampler: Row) -> int:
    """Decoding steps of a sampler's settings, without those of a first stage; stages have steps of their own."""
    count: int = sampler["steps"] if "steps" in sampler else sum(stage["steps"] for stage in sampler["stages"])
    return count


def published(row: Row, metric: str, text: str = "{:g}") -> str:
    """A published metric, or a dash."""
    value = row.get("evaluation", {}).get("published", {}).get(metric)
    return "-" if value is None else text.format(value)


def cells(row: Row, *metrics: str) -> str:
    """One line of a table."""
    protocol = row.get("evaluation", {}).get("protocol", "-")
    tflops = f"{row['tflops']:.3g}" if "tflops" in row else "-"
    here = "here" if row["path"] else "-"
    return COLUMNS.format(row["name"], row["parameters"], steps(row), tflops, *metrics, protocol, here)


def heading(*metrics: str) -> str:
    return COLUMNS.format("name", "parameters", "steps", "TFLOPs", *metrics, "protocol", "on this machine")


def table(every: list[Row], *, verbose: bool) -> list[str]:
    """The table as lines of text."""
    from mgen.zoo import DEFAULT

    inside = [row for row in every if row["embedded"]]
    caption = "Models: parameters (M: millions) of the generator, steps and TFLOPs per image, quality as measured or published."
    lines = [caption, "", "inside the package:", heading("distance", "accuracy, %")]
    for row in inside:
        if "sampler" in row:
            lines.append(cells(row, published(row, DISTANCE, "{:.2f}"), published(row, ACCURACY, "{:.1%}").rstrip("%")))
        else:
            lines.append(f"  {row['name']:<38}{row['about']}")
    lines += ["", "published, to be downloaded and converted (mgen zoo NAME says how):", heading("FID", "IS")]
    for system, group in groupby((row for row in every if not row["embedded"]), key=itemgetter("system")):
        lines.append(f" {system}")
        for row in group:
            lines.append(cells(row, published(row, "FID", "{:.2f}"), published(row, "Inception Score", "{:.1f}")))
            if verbose:
                lines += wrapped("get: " + row["get"], 6) + wrapped("run: " + row["run"], 6)
    return lines + [
        "",
        *wrapped(
            f"{DEFAULT} is the default of mgen sample. TFLOPs: per image, network only, a multiplication and an addition count as 2. "
            f"FID, IS: as published; -: nothing published for the setting. distance: {DISTANCE}, accuracy: {ACCURACY}, measured by this "
            "project. Numbers of different protocols are not comparable.",
            0,
        ),
    ]


def wrapped(text: str, indent: int, end: str = "") -> list[str]:
    """Text wrapped to WIDTH characters, indented by `indent`; all lines but the last end with `end`."""
    lines = textwrap.wrap(text, WIDTH - indent - len(end), break_long_words=False, break_on_hyphens=False)
    return [" " * indent + line + (end if i < len(lines) - 1 else "") for i, line in enumerate(lines)]


def section(title: str, lines: Iterable[str]) -> list[str]:
    return ["", title, *lines]


def full(row: Row) -> list[str]:
    """Everything known about one model, as lines of text."""
    if "sampler" not in row:
        return [row["name"], *wrapped(row["about"], 2), f"  on this machine  {row['path']}"]
    here = row["path"] or f"not here: neither {row['folder']} nor a folder of that name in $MGEN_MODELS exists"
    cost = f"{row['tflops']} TFLOPs per image, network only" if "tflops" in row else "not counted"
    lines = [f"{row['name']}: {row['system']}", *wrapped(row["about"], 2), ""]
    lines += [f"  parameters       {row['parameters']}", f"  steps            {steps(row)}"]
    lines += [f"  cost             {cost}", f"  on this machine  {here}"]
    if row["same_weights"]:
        names = wrapped(", ".join(row["same_weights"]), 19)
        lines += ["  same weights     " + names[0].strip(), *names[1:]]
    lines += section("get", wrapped(row["get"], 2))
    commands = [part.strip() for part in " ".join(row["run"].split()).split("&&")]
    lines += section("convert and sample" if len(commands) > 1 else "sample", ())
    for text in commands:
        first, *rest = wrapped(text, 2, " \\")
        lines += [first, *("    " + line.strip() for line in rest)]
    lines += evaluation(row) if "evaluation" in row else section("evaluate", ["  the recipe does not say how"])
    return lines + section("sampler", sampler(row["sampler"]))


def evaluation(row: Row) -> list[str]:
    """How a recipe is evaluated and what was published, as lines of text."""
    e = row["evaluation"]
    size = f", resized to {e['image_size']} px" if e["image_size"] else ""
    cut = {"round": "", "half-up": ", rounded half up to bytes", "truncate": ", truncated to bytes"}[e["quantization"]]
    lines = [f"  mgen eval --recipe {row['name']}"]
    lines += [f"  {e['count']:,} images{size}{cut}, labels {e['labels']}, seed {e['seed']}, protocol {e['protocol']}"]
    lines += [f"  reference: {e['reference']}", *wrapped(e["reference_get"] or "", 2)]
    lines = section("evaluate", lines)
    metrics = [f"  {metric:<32} {value:>8g} ± {e['tolerance'][metric]:g}" for metric, value in e["published"].items()]
    lines += section("published", metrics or ["  nothing published for this setting"])
    if e["source"]:
        lines += wrapped(e["source"], 2)
    return lines + (section("note", wrapped(e["note"], 2)) if e["note"] else [])


def sampler(settings: Row) -> list[str]:
    """Sampler settings as in a recipe, as lines of text."""
    import yaml

    # YAML breaks a list only after the number that exceeds the width, and numbers have up to 20 digits.
    text = yaml.safe_dump(settings, default_flow_style=None, sort_keys=False, allow_unicode=True, width=WIDTH - 24)
    return ["  " + line for line in text.splitlines()]
