"""Recipes: what a published metric was computed with and how, from shipped files or a user's own.

A file of configs/recipes describes one setting of one model: where the weights are, `sampler:` its settings, `evaluation:` how it is
measured and what was published. AutoNAT's strategy files are read as published.
"""

import difflib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mgen.utils.config import build, read_config
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.folders import part

# Names of metrics as results have them; those of Fashion-MNIST are measured in other features and have names of their own.
METRICS: tuple[str, ...] = ("FID", "sFID", "Inception Score", "precision", "recall")
METRICS += ("Fréchet distance (fmnist-cnn)", "classifier score (fmnist-cnn)", "class accuracy (fmnist-classifier)")
METRICS += ("precision (fmnist-cnn)", "recall (fmnist-cnn)")


@dataclass(frozen=True, kw_only=True)
class RecipeEvaluation:
    """The `evaluation:` section of a recipe.

    Attributes:
        protocol: a name of mgen.evaluation.protocols, the published one or the nearest to it.
        reference: file or folder that images are compared with, or a built-in name. reference_get: where it is published or how it is made.
        count: images. labels: plan of their classes. seed: of the draws and of a random plan.
        quantization: of drawn images to bytes. image_size: side in pixels that drawn images are brought to first; None: as drawn.
        published: metric → value, for exactly this setting; empty: none. tolerance: metric → how far off a faithful run may be.
        source: where the values were published. note: where the official way of measuring differs from the protocol.
    """

    protocol: str
    reference: str
    reference_get: str | None = None
    count: int = 50000
    labels: Literal["balanced", "sorted", "random"] = "balanced"
    seed: int = 0
    quantization: Literal["round", "half-up", "truncate"] = "round"
    image_size: int | None = None
    published: dict[str, float] = field(default_factory=dict)
    tolerance: dict[str, float] = field(default_factory=dict)
    source: str | None = None
    note: str | None = None


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(file.stem for file in (part("configs") / "recipes").glob("*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """File of the shipped recipe of this name, or the file of this path.

    Raises:
        MgenError: neither; the message has the nearest names.
    """
    shipped = part("configs") / "recipes" / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    raise MgenError(f"no recipe and no file {str(name)!r}: {nearest(str(name), recipe_names())}")


def nearest(name: str, names: list[str]) -> str:
    """The tail of an error about an unknown name among many: those that begin like it or are spelt like it."""
    known = [other for other in names if name and other.startswith(name)]
    known = known or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    known = known or [other for other in names if name and name in other]
    return (f"did you mean {' or '.join(known[:3])}? " if known else "") + "`mgen zoo` lists all"


def recipe_settings(name: str | Path) -> tuple[dict[str, Any], str]:
    """Settings of a ParallelSampler from the shipped recipe of this name or from a file, and where they stand.

    Raises:
        MgenError: no such file, not YAML, or neither a `sampler:` section nor an AutoNAT strategy in it.
    """
    path = find_recipe(name)
    recipe = read_config(path)
    if "sampler" in recipe:
        return recipe["sampler"], f"{path}: sampler"
    lists = ("manual_ratios", "manual_temp", "manual_samp_temp", "manual_cfg")
    if all(isinstance(recipe.get(key), list) for key in lists):
        from mgen.convert import maskgit

        return maskgit.strategy(recipe), str(path)
    raise MgenError(f"{path} has neither a `sampler:` section nor AutoNAT's lists ({', '.join(lists)})")


def evaluation_settings(name: str | Path) -> RecipeEvaluation | None:
    """The `evaluation:` section of the shipped recipe of this name or of a file; None if there is none.

    Raises:
        MgenError: no such file, an unknown key or metric (with the nearest valid one), or a value that is not allowed.
    """
    path = find_recipe(name)
    section = read_config(path).get("evaluation")
    return None if section is None else parse_evaluation(section, str(path))


def parse_evaluation(section: Any, where: str) -> RecipeEvaluation:
    """A RecipeEvaluation from the mapping `section`, which stands in the file `where`; MgenError as of evaluation_settings."""
    from mgen.evaluation.protocols import PROTOCOLS

    try:
        if not isinstance(section, dict):
            raise MgenError("'evaluation' is not a mapping of keys such as protocol, reference and published")
        found = build(RecipeEvaluation, section, "evaluation.")
        check_choice("evaluation.protocol", found.protocol, PROTOCOLS)
        least = {"count": 2, "seed": 0, "image_size": 1}
        for key, value in least.items():
            given = getattr(found, key)
            if given is not None and given < value:
                raise MgenError(f"'evaluation.{key}' is {given}: at least {value} is needed")
        published = _numbers(found.published, "published")
        tolerance = _numbers(found.tolerance, "tolerance")
        if published.keys() != tolerance.keys():
            odd = ", ".join(sorted(published.keys() ^ tolerance.keys()))
            raise MgenError(
                f"'evaluation.published' and 'evaluation.tolerance' name the same metrics; only in one: {odd}"
            )
    except MgenError as error:
        raise MgenError(f"{where}: {error}") from error
    return replace(found, published=published, tolerance=tolerance)


def _numbers(values: dict[str, Any], key: str) -> dict[str, float]:
    """Metrics with numbers above zero; an empty section (null) has none."""
    for metric, value in values.items():
        check_choice(f"metric in evaluation.{key}", metric, METRICS)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value <= 0:
            raise MgenError(f"'evaluation.{key}' gives {metric} as {value!r}: expected a number above zero")
    return {metric: float(value) for metric, value in values.items()}
