"""What models there are: embedded in the package, and published ones that a recipe describes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgen._folders import embedded, part
from mgen.errors import MgenError, suggestion

DEFAULT = "fmnist-maskgit"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model: its name, folder (None if it is not on this machine), and what its recipe or measurements file says."""

    name: str
    folder: Path | None
    facts: dict[str, Any]


def embedded_entries() -> list[Entry]:
    """Models shipped inside the package, with what was measured of them."""
    from mgen.files import read_json

    found = []
    for folder in sorted(p for p in embedded().glob("*") if p.is_dir()):
        facts = folder / "measured.json"
        found.append(Entry(name=folder.name, folder=folder, facts=read_json(facts) if facts.is_file() else {}))
    return found


def recipe_entries() -> list[Entry]:
    """Published systems: the recipes shipped in configs/recipes; some state a published figure."""
    from mgen.config import read_config

    files = sorted((part("configs") / "recipes").glob("*.yaml"))
    return [Entry(name=file.stem, folder=None, facts=read_config(file)) for file in files]


def weights_sha256(name: str | Path) -> str:
    """One hash over all weight files of a saved model."""
    from mgen.files import file_sha256

    files = sorted(resolve(name).rglob("*.safetensors"))
    return hashlib.sha256("".join(f"{f.parent.name}/{f.name} {file_sha256(f)}\n" for f in files).encode()).hexdigest()


def resolve(name: str | Path) -> Path:
    """Folder of a saved model: a path, or the name of an embedded model.

    Raises:
        MgenError: neither; the message names the nearest, or says how to get a published one.
    """
    names = [entry.name for entry in embedded_entries()]
    # A bare name means the embedded model, unless a model of that name lies in the working directory.
    if str(name) in names and not (Path(name) / "model_index.json").is_file():
        return embedded(str(name))
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise MgenError(
            f"{name} is a file, a model is a folder: turn a checkpoint into one with mgen convert FORMAT {name} --out DIR"
        )
    for entry in recipe_entries():
        if entry.name == str(name):
            raise MgenError(f"{name} is published but not on this machine: {' '.join(entry.facts['get'].split())}")
    raise MgenError(f"no model {str(name)!r}: not a folder, and not embedded. {suggestion(str(name), names)}")
