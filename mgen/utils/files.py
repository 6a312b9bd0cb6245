"""Atomic writing of files, and errors that say why a file cannot be read or written."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mgen.utils.errors import MgenError


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Create the folder that `path` is in; an error of writing becomes an MgenError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MgenError(f"cannot write {path} ({reason}): check permissions and free space") from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `path` on success and removed on failure."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    with _writing(path):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder, which replaces an existing `path`."""
    path = Path(path)
    old = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    with _writing(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            os.chmod(temporary, 0o755)
            yield temporary
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
            if old.exists():
                shutil.rmtree(old)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: str | Path) -> None:
    """Raise MgenError if the folder `path` cannot be created or written to. Creates nothing."""
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise MgenError(
            f"cannot write to {path}: {folder} is {'read-only' if folder.is_dir() else 'a file'}; choose another folder"
        )


def write_text(path: str | Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: object) -> None:
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file; MgenError if it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MgenError(f"cannot read {path} ({error.strerror})") from error
    except ValueError as error:
        raise MgenError(f"{path} is not valid JSON ({error})") from error


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Save tensors as safetensors, atomically."""
    with atomic_path(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)


def read_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file; MgenError if it is missing or damaged."""
    if not Path(path).is_file():
        raise MgenError(f"no such file: {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise MgenError(
            f"{path} is not a readable safetensors file ({error}): truncated or of another format"
        ) from error


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
