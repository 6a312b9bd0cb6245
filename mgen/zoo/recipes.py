"""Recipes: shipped YAML files, or a user's own, that say how published results were made.

A file of configs/recipes describes one setting of one model: where the weights are, `sampler:` its settings, `evaluation:` how it is
evaluated and what was published (read by mgen.evaluation.recipe). AutoNAT's strategy files can be read as published.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path

from mgen.utils.config import Settings, read_config
from mgen.utils.errors import MgenError
from mgen.utils.folders import part

AUTONAT_LISTS = ("manual_ratios", "manual_temp", "manual_samp_temp", "manual_cfg")


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(file.stem for file in (part("configs") / "recipes").glob("*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """The file of a shipped recipe, or the path itself if it is a file; else an MgenError that names the nearest recipes."""
    shipped = part("configs") / "recipes" / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    raise MgenError(f"no recipe and no file {str(name)!r}: {nearest(str(name), recipe_names())}")


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
    recipe = read_config(path)
    if "sampler" in recipe:
        return recipe["sampler"], f"{path}: sampler"
    if all(isinstance(recipe.get(key), list) for key in AUTONAT_LISTS):
        return autonat_settings(recipe), str(path)
    raise MgenError(f"{path} has neither a `sampler:` section nor AutoNAT's lists ({', '.join(AUTONAT_LISTS)})")


def autonat_settings(strategy: Settings) -> Settings:
    """Sampler settings of an AutoNAT strategy file; its guidance c + w·(c − u) has the scale s = 1 + w here."""
    return {
        "steps": len(strategy["manual_cfg"]),
        "order": "confidence",
        "schedule": list(strategy["manual_ratios"]),
        "confidence_temperature": list(strategy["manual_temp"]),
        "temperature": list(strategy["manual_samp_temp"]),
        "guidance": [1 + w for w in strategy["manual_cfg"]],
    }
