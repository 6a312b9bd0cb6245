"""What makes a saved model the same model: the contents of its files, wherever they are."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from mgen.utils.reading import file_sha256, read_json

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Hashes of a model's files.

    weights_sha256: of all weight files. model_sha256: of those and the configurations of the networks, which say what they compute; the
    sampler, class names, notes and the version that saved them are left out.
    """

    weights_sha256: str
    model_sha256: str


def identity(folder: str | Path) -> Identity:
    """The identity of a pipeline, or of a network saved on its own."""
    folder = Path(folder)
    files = [f for f in folder.rglob("*") if f.suffix in WEIGHTS and f.is_file() and not f.name.startswith(".")]
    weights = "".join(f"{_name(f)} {file_sha256(f)}\n" for f in sorted(files, key=_name))
    folders = (folder / "tokenizer", folder / "generator", folder / "transformer", folder)
    configs = "".join(f"{_name(f)} {_network(f)}\n" for f in (d / "config.json" for d in folders) if f.is_file())
    return Identity(weights_sha256=_sha256(weights), model_sha256=_sha256(weights + configs))


def _name(file: Path) -> str:
    """Folder and name of a file. Earlier versions called a pipeline's transformer its generator: the same weights keep their hashes."""
    return f"{'generator' if file.parent.name == 'transformer' else file.parent.name}/{file.name}"


def _network(config: Path) -> str:
    """The contents of a configuration that matter, in one order of its keys."""
    data = read_json(config)
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if not key.startswith("_") or key == "_class_name"}
    return json.dumps(data, sort_keys=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
