"""The `evaluation:` section of a recipe: how its setting is evaluated, and what was published."""

import math
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Literal

from mgen.evaluation.protocols import PROTOCOLS, Quantization
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.schema import build, schema
from mgen.zoo.recipes import find_recipe, read_recipe

# Names of metrics in results. Those of Fashion-MNIST use other features and have their own names.
METRICS: tuple[str, ...] = ("FID", "sFID", "Inception Score", "precision", "recall")
METRICS += ("Fréchet distance (fmnist-cnn)", "classifier score (fmnist-cnn)", "class accuracy (fmnist-classifier)")
METRICS += ("precision (fmnist-cnn)", "recall (fmnist-cnn)")


@schema
class RecipeEvaluation:
    """The `evaluation:` section of a recipe.

    Attributes:
        protocol: name in mgen.evaluation.protocols of the published protocol, or of the one nearest to it.
        reference: file or folder to compare with, or a built-in name. reference_get: where it is published or how to make it.
        count: number of images. labels: plan of their classes. seed: of the sampling and of a random plan.
        quantization: how sampled images become bytes. image_size: side in pixels to resize them to first; None: as sampled.
        published: metric → published value for exactly this setting; empty if there is none. tolerance: metric → how far a faithful
            run may be from it.
        source: where the values were published. note: how the official evaluation differs from the protocol.
    """

    protocol: str
    reference: str
    reference_get: str | None = None
    count: int = 50000
    labels: Literal["balanced", "sorted", "random"] = "balanced"
    seed: int = 0
    quantization: Quantization = "round"
    image_size: int | None = None
    published: dict[str, float] = field(default_factory=dict)
    tolerance: dict[str, float] = field(default_factory=dict)
    source: str | None = None
    note: str | None = None


def evaluation_settings(name: str | Path) -> RecipeEvaluation | None:
    """The `evaluation:` section of a shipped recipe or a file; None if it has none.

    Raises:
        MgenError: there is no such file, or a key, metric or value is not allowed.
    """
    path = find_recipe(name)
    section = read_recipe(path).get("evaluation")
    return None if section is None else parse_evaluation(section, str(path))


def parse_evaluation(section: object, where: str) -> RecipeEvaluation:
    """A RecipeEvaluation from the mapping `section` of the file `where`; raises MgenError as evaluation_settings does."""
    try:
        if not isinstance(section, dict):
            raise MgenError("'evaluation' is not a mapping of keys such as protocol, reference and published")
        found = build(RecipeEvaluation, section, "evaluation.")
        check_choice("evaluation.protocol", found.protocol, PROTOCOLS)
        for key, least in {"count": 2, "seed": 0, "image_size": 1}.items():
            if (given := getattr(found, key)) is not None and given < least:
                raise MgenError(f"'evaluation.{key}' is {given}: at least {least} is needed")
        published, tolerance = _numbers(found.published, "published"), _numbers(found.tolerance, "tolerance")
        if published.keys() != tolerance.keys():
            odd = ", ".join(sorted(published.keys() ^ tolerance.keys()))
            raise MgenError(
                f"'evaluation.published' and 'evaluation.tolerance' must name the same metrics; only in one: {odd}"
            )
    except MgenError as error:
        raise MgenError(f"{where}: {error}") from error
    return replace(found, published=published, tolerance=tolerance)


def _numbers(values: Mapping[str, object], key: str) -> dict[str, float]:
    """Checked values of metrics: all must be positive numbers."""
    found = {}
    for metric, value in values.items():
        check_choice(f"metric in evaluation.{key}", metric, METRICS)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise MgenError(f"'evaluation.{key}' gives {metric} as {value!r}: expected a number above zero")
        found[metric] = float(value)
    return found
