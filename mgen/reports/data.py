"""Formatting of numbers and settings, shared by the page and the Markdown of a report."""

import math
import re
from collections.abc import Iterable, Mapping

from mgen.evaluation.protocols import PUBLISHED
from mgen.evaluation.result import Facts, NearestImages, NearImage, Result
from mgen.reports.read import is_number

COST = {
    "parameters": "parameters",
    "tflops_per_image": "TFLOPs per image",
    "seconds_per_image": "seconds per image",
    "steps": "steps",
    "hardware": "measured on",
}


def number(value: object) -> str:
    """A number with four significant digits, integers in full; "–" for None."""
    if value is None:
        return "–"
    if not is_number(value):
        return plain(value)
    if isinstance(value, int) or not math.isfinite(value) or value == 0:
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def plus_minus(value: float | None, deviation: float | None) -> str:
    """A value and its standard deviation, with two significant digits of the deviation: 11.90 ± 0.21."""
    if value is None or not deviation or not math.isfinite(deviation) or not math.isfinite(value):
        return number(value)
    digits = min(8, max(0, 1 - math.floor(math.log10(abs(deviation)))))
    return f"{value:,.{digits}f} ± {deviation:,.{digits}f}"


def column_numbers(values: Iterable[object]) -> list[str]:
    """Numbers of a column with equal decimals, so that they are easy to compare."""
    found = list(values)
    floats = [abs(x) for x in found if isinstance(x, float) and math.isfinite(x)]
    top = max(floats, default=0.0)
    digits = 0 if top == 0 else min(8, max(0, 3 - math.floor(math.log10(top)) - (top < 1)))
    return [f"{x:,.{digits}f}" if isinstance(x, float) and math.isfinite(x) else number(x) for x in found]


def plain(value: object) -> str:
    """A setting as text."""
    if value is None or value == "" or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def flatten(settings: Mapping[str, object], prefix: str = "") -> Facts:
    """Nested mappings as one, with dotted keys."""
    flat: Facts = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = None if value == {} else value
    return flat


def has_distance(result: Result) -> bool:
    """Whether a metric is a distance between sets of images, which depends on their number."""
    return any(re.search(r"\b[rs]?FID\b|\bKID\b|MMD|distance", metric) for metric in result["metrics"])


def class_number(label: object) -> int | None:
    """The class id that a text stands for, None if it isn't one."""
    digits = str(label)
    return int(digits) if re.fullmatch("[0-9]{1,18}", digits) else None


def class_name(result: Result, label: object) -> str:
    """The name of a class id, which may be text, or "class ID" if it has no name."""
    names, number = result["class_names"], class_number(label)
    if number is not None and number < len(names):
        return str(names[number])
    return "unknown" if str(label) in ("-1", "None") else f"class {label}"


def neighbor_name(result: Result, image: NearImage) -> str:
    """The class of a training image: its own data's name, else the result's."""
    return image.get("name") or class_name(result, image.get("label"))


def class_ids(result: Result) -> list[str]:
    """The ids of by_class, in numerical order."""
    ids = {str(key) for column in result["by_class"].values() for key in column}
    return sorted(ids, key=lambda c: (class_number(c) is None, class_number(c) or 0, c))


def headline(result: Result) -> list[tuple[str, str, str]]:
    """Name, value and direction of the first two metrics that have a direction, and of the class accuracy."""
    names = [name for name in result["metrics"] if name in result["better"]] or list(result["metrics"])
    names = names[:2] + [name for name in names[2:] if name.startswith("class accuracy")][:1]
    return [(name, metric(result, name), direction(result["better"].get(name))) for name in names]


def direction(better: str | None) -> str:
    return f"{better} is better" if better else ""


def metric(result: Result, name: str) -> str:
    return plus_minus(result["metrics"].get(name), result["deviations"].get(name))


def warnings(result: Result) -> list[str]:
    """What to know before comparing the numbers with others."""
    found = [part.strip() for part in (result["note"] or "").split(";") if part.strip()]
    count = result["count"]
    if has_distance(result) and count < PUBLISHED and not any(f"{count} images" in part for part in found):
        found.append(f"{count:,} images, below {PUBLISHED:,}: distances fall with the count, compare only equal counts")
    return list(map(sentence, found))


def deviation_note(result: Result) -> str:
    """How the standard deviations were computed."""
    if not result["deviations"]:
        return "No deviations were computed."
    made = result["bootstrap"] or {}
    how = f" ({made['replicates']} replicates, seed {made.get('seed', 0)})" if "replicates" in made else ""
    kernel = any(name.startswith(("KID", "kernel")) for name in result["deviations"])
    end = "; for the kernel distance over its subsets." if kernel else "."
    return f"±: one standard deviation, by bootstrap over the images{how}{end}"


PUBLISHED_HEADS = ("metric", "published", "measured", "verdict")


def published_rows(result: Result) -> list[list[str]]:
    """A recipe's published values beside the measured ones, with the columns PUBLISHED_HEADS; empty without a recipe."""
    rows = []
    for row in result["published"]["rows"] if result.get("published") else []:
        tolerance = f" ± {number(row['tolerance'])}" if row.get("tolerance") is not None else ""
        published = number(row.get("published")) + tolerance
        rows.append([str(row.get("metric")), published, number(row.get("measured")), str(row.get("verdict"))])
    return rows


COST_CAPTION = "Of the images measured here; an operation is a multiplication or an addition, of the network only."
CLASS_CAPTION = "One row per class; accuracies are shares from 0 to 1."


def cost_rows(result: Result) -> list[tuple[str, str]]:
    """What the images cost, as text."""
    return [(COST.get(key, key.replace("_", " ")), number(value)) for key, value in (result["cost"] or {}).items()]


def parts(result: Result) -> dict[str, Facts]:
    """Everything that determines the numbers, in groups, flattened."""
    images = dict(result["images"])
    sampler = images.pop("sampler", None)
    groups: dict[str, Facts] = {
        "Images": {"count": result["count"], **images},
        "Sampler": sampler if isinstance(sampler, dict) else {},
        "Protocol": result["protocol"],
        "Extractor": result["extractor"],
        "Reference": result["reference"] or {"reference": None},
        "Classifier": result["classifier"] or {},
        "Bootstrap": result["bootstrap"] or {},
        "Versions": {**result["versions"], "measured": result["created"]},
    }
    return {name: flatten(group) for name, group in groups.items() if group}


def nearest_note(nearest: NearestImages) -> str:
    """How to read the nearest training images."""
    typical, own = nearest.get("typical"), str(nearest.get("note") or "").strip()
    said = (
        f"The nearest of {number(nearest.get('count'))} images of {nearest.get('data')}, by distance in feature space."
    )
    if typical:
        said += (
            f" A training image and its nearest other one are typically {number(typical)} apart: a sampled image much nearer than that "
            "to a training image may be a copy of it. Distances below half of it are marked."
        )
    return f"{said} {sentence(own)}" if own else said


def sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "." * (not words.endswith("."))


def is_near(nearest: NearestImages, distance: float) -> bool:
    """Whether a sampled image is suspiciously near: below half of the typical distance."""
    return bool(nearest.get("typical")) and distance < nearest["typical"] / 2
