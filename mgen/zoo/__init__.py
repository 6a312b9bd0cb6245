"""The models: those embedded in the package, and published ones that a recipe describes."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, suggestion
from mgen.utils.folders import embedded
from mgen.utils.hub import HubOptions, fetch, is_hub_id
from mgen.utils.reading import check_path, read_json
from mgen.utils.schema import Text, build, schema
from mgen.zoo.identity import identity
from mgen.zoo.recipes import find_recipe, read_recipe, recipe_names

DEFAULT = "fmnist-maskgit"
PROJECT = "project.yaml"  # marks the folder of a project


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model: its name, its folder on this machine (None: not here), and the contents of its recipe or measured.json."""

    name: str
    folder: Path | None
    facts: Settings


@schema(extra=True)
class Facts:
    """measured.json of an embedded model: beside the line on it any measurements."""

    about: Text | None = None


def embedded_entries() -> list[Entry]:
    """Models inside the package, with what was measured of them."""
    found = []
    for folder in sorted(p for p in embedded().glob("*") if p.is_dir()):
        file = folder / "measured.json"
        facts = read_json(file) if file.is_file() else {}
        build(Facts, facts, f"{file}: ")
        found.append(Entry(name=folder.name, folder=folder, facts=facts))
    return found


def recipe_entries() -> list[Entry]:
    """All shipped recipes by name, including those of embedded models."""
    return [recipe(name) for name in recipe_names()]


def recipe(name: str | Path) -> Entry:
    """A shipped recipe by name, or a user's recipe file; if there is none, an MgenError that names the nearest recipes."""
    file = find_recipe(name)
    facts = {"folder": f"models/{file.stem}", **{k: v for k, v in read_recipe(file).items() if v is not None}}
    return Entry(name=file.stem, folder=_on_this_machine(facts["folder"]), facts=facts)


def local_folder(entry: Entry) -> Path | None:
    """The folder of a model on this machine; None if it is not here.

    Searched are the embedded models, the folder that the recipe names (`folder:`, written by its `run:`) in the working directory, and
    that folder or one with the last part of its name in $MGEN_MODELS.
    """
    return _on_this_machine(entry.facts["folder"]) if "folder" in entry.facts else entry.folder


def _on_this_machine(folder: str) -> Path | None:
    inside = [embedded(folder)] if "/" not in folder else []
    models = os.environ.get("MGEN_MODELS")
    elsewhere = [Path(models) / Path(folder).name, Path(models) / folder] if models else []
    # Unfinished conversions and generators without a tokenizer have no index and cannot sample images.
    folders = [*inside, Path(folder), *elsewhere]
    return next((found for found in folders if (found / "model_index.json").is_file()), None)


def description(name: str | Path) -> str:
    """The comment at the top of a recipe's file: what the setting is and where it comes from."""
    lines = re.match(r"(#.*\n)*", find_recipe(name).read_text(encoding="utf-8"))
    return " ".join(line.lstrip("# ") for line in (lines[0] if lines else "").splitlines())


def same_weights(entry: Entry, among: Iterable[Entry]) -> list[Entry]:
    """The other recipes in `among` with the same weights: the same download, model and format."""
    keys = ("get", "model", "format")
    same = [other for other in among if all(other.facts.get(key) == entry.facts.get(key) for key in keys)]
    return [other for other in same if other.name != entry.name and "model" in other.facts]


def _of_project(folder: Path) -> Path:
    """The folder itself, or of a project (see mgen.project) that of its generator; MgenError if that is not trained yet."""
    if not (folder / PROJECT).is_file() or (folder / "model_index.json").is_file():
        return folder
    model = folder / "generator" / "model"
    if not model.is_dir():
        raise MgenError(f"{folder} is a project whose generator is not trained yet: run mgen train --project {folder}")
    return model


def weights_sha256(name: str | Path) -> str:
    """One hash of all weight files of a saved model."""
    return identity(resolve(name)).weights_sha256


def resolve(name: str | Path, *, hub: HubOptions = HubOptions(), variant: str | None = None) -> Path:  # noqa: B008  (frozen)
    """Folder of a saved model: a path, the name of an embedded model, or that of a model on the hub, which is fetched.

    Args:
        hub, variant: of a model on the hub, see mgen.utils.hub.

    Raises:
        MgenError: there is no such model; the message names the nearest one, or says how to get a published one.
    """
    check_path(name, "model")
    names = [entry.name for entry in embedded_entries()]
    # A bare name means the embedded model, unless the working directory has a model of that name.
    if str(name) in names and not (Path(name) / "model_index.json").is_file():
        return embedded(str(name))
    if Path(name).is_dir():
        return _of_project(Path(name))
    if Path(name).is_file():
        raise MgenError(
            f"{name} is a file, but a model is a folder: convert a checkpoint with mgen convert FORMAT {name} --out DIR"
        )
    if str(name) in recipe_names():
        entry = recipe(name)
        if entry.folder is not None:
            raise MgenError(f"{name} is a recipe; its model is in {entry.folder}: give that folder")
        raise MgenError(f"{name} is published but not on this machine: {' '.join(entry.facts['get'].split())}")
    if is_hub_id(name):
        return fetch(str(name), hub, variant=variant)
    raise MgenError(f"no model {str(name)!r}: neither a folder nor embedded. {suggestion(str(name), names)}")
