"""Recipes: shipped YAML files, or a user's own, that say how published results were made.

A file of configs/recipes describes one setting of one model: where the weights are, `sampler:` its settings, `evaluation:` how it is
evaluated and what was published (read by mgen.evaluation.recipe). AutoNAT's strategy files can be read as published.
"""

import difflib
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mgen.utils.config import Settings, read_config
from mgen.utils.errors import MgenError, shown
from mgen.utils.folders import shipped
from mgen.utils.schema import Positive, Text, build, schema

AUTONAT_LISTS = ("manual_ratios", "manual_temp", "manual_samp_temp", "manual_cfg")


@schema
class Recipe:
    """A recipe's file. The sections are checked by what reads them.

    Attributes:
        data: `imagenet` if the classes are those of ImageNet-1k.
        system: its name and year. parameters: of the generator, such as "478.3 M". tflops: of one image, network only.
        format: of `mgen convert`. model: a name of configs/models, or with overrides.
        get: where the weights are. run: commands that convert and sample.
        folder: that `run` makes. sampler: settings of the sampler. evaluation: how it is evaluated.
    """

    data: Literal["imagenet"] | None = None
    system: Text | None = None
    parameters: Text | None = None
    tflops: Positive | None = None
    format: Text | None = None
    model: Text | dict[str, Any] | None = None
    get: Text | None = None
    run: Text | None = None
    folder: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None


@schema(extra=True)
class Strategy:
    """AutoNAT's strategy file for T steps: T − 1 ratios and T − 1 or more temperatures of the mask, T of the others."""

    manual_ratios: Annotated[tuple[float, ...], Field(max_length=10_000)]
    manual_temp: tuple[float, ...]
    manual_samp_temp: tuple[float, ...]
    manual_cfg: Annotated[tuple[float, ...], Field(min_length=1, max_length=10_000)]


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return list(shipped("recipes"))


def find_recipe(name: str | Path) -> Path:
    """The file of a shipped recipe, or the path itself if it is a file; else an MgenError that names the nearest recipes."""
    if str(name) in (names := shipped("recipes")):
        return names[str(name)]
    if Path(name).is_file():
        return Path(name)
    raise MgenError(f"no recipe and no file {shown(str(name), 200)}: {nearest(str(name), list(names))}")


def read_recipe(path: Path) -> Settings:
    """The contents of a recipe's file or of an AutoNAT strategy; MgenError for a key that neither has or a value of another type."""
    data = read_config(path)
    build(Strategy if _is_strategy(data) else Recipe, data, f"{path}: ")
    return data


def _is_strategy(data: Settings) -> bool:
    return "sampler" not in data and all(key in data for key in AUTONAT_LISTS)


def nearest(name: str, names: Sequence[str]) -> str:
    """The end of an error message about an unknown name: the names most like it."""
    known = [other for other in names if name and other.startswith(name)]
    known = known or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    known = known or [other for other in names if name and name in other]
    return (f"did you mean {' or '.join(known[:3])}? " if known else "") + "`mgen zoo` lists all"


def recipe_settings(name: str | Path) -> tuple[Settings, str]:
    """Sampler settings of a shipped recipe or a file, and where they were found, for error messages.

    Raises:
        MgenError: the file is missing or not YAML, or has neither a `sampler:` section nor an AutoNAT strategy.
    """
    path = find_recipe(name)
    recipe = read_recipe(path)
    if "sampler" in recipe:
        return recipe["sampler"], f"{path}: sampler"
    if _is_strategy(recipe):
        return autonat_settings(recipe), str(path)
    raise MgenError(f"{path} has neither a `sampler:` section nor AutoNAT's lists ({', '.join(AUTONAT_LISTS)})")


def autonat_settings(strategy: Settings) -> Settings:
    """Sampler settings of an AutoNAT strategy file; its guidance c + w·(c − u) has the scale s = 1 + w here.

    The temperature of the draw is held at or above 1e-4, as published: at 0 it would be the likeliest id exactly.
    """
    return {
        "steps": len(strategy["manual_cfg"]),
        "order": "confidence",
        "schedule": list(strategy["manual_ratios"]),
        "confidence_temperature": list(strategy["manual_temp"]),
        "temperature": [max(temperature, 1e-4) for temperature in strategy["manual_samp_temp"]],
        "guidance": [1 + w for w in strategy["manual_cfg"]],
    }
