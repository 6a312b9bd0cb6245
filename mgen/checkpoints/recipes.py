"""Sampler settings from files: shipped recipes, any YAML with a `sampler:` section, AutoNAT's strategy files as published."""

from pathlib import Path
from typing import Any

from mgen._folders import part
from mgen.checkpoints import maskgit
from mgen.config import read_config
from mgen.errors import MgenError


def recipe_settings(name: str) -> tuple[dict[str, Any], str]:
    """Settings of a ParallelSampler from the shipped recipe of this name or from a file, and where they stand.

    Raises:
        MgenError: no such file, not YAML, or neither a `sampler:` section nor an AutoNAT strategy in it.
    """
    shipped = part("configs") / "recipes" / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    recipe = read_config(path)
    if "sampler" in recipe:
        return recipe["sampler"], f"{path}: sampler"
    lists = ("manual_ratios", "manual_temp", "manual_samp_temp", "manual_cfg")
    if all(isinstance(recipe.get(key), list) for key in lists):
        return maskgit.strategy(recipe), str(path)
    raise MgenError(f"{path} has neither a `sampler:` section nor AutoNAT's lists ({', '.join(lists)})")
