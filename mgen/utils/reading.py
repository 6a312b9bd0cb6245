"""Reading files that others wrote, within bounds, and errors that say why one cannot be read."""

import hashlib
import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from safetensors import SafetensorError, safe_open

from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.paths import path_fault
from mgen.utils.plain import check_plain

if TYPE_CHECKING:
    import torch

MOST_JSON_BYTES = 64 * 2**20


def check_path(path: object, what: str) -> Path:
    """The path, which need not exist; MgenError, naming `what`, for other types and for names that no file can have."""
    if not isinstance(path, str | os.PathLike) or not (text := os.fspath(path)) or not isinstance(text, str):
        raise MgenError(f"{what} is {shown(path)}: expected the path of a file or folder, as text or a pathlib.Path")
    if fault := path_fault(text):
        raise MgenError(f"{what} {shown(text)} {fault}")
    return Path(text)


def check_file(path: str | Path) -> Path:
    """The path, if a regular file is there, or a link to one; MgenError for anything else, such as a device or a pipe."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        broken = "a broken link" if path.is_symlink() else "no such file"
        raise MgenError(f"{broken}: {path}") from error
    except (OSError, ValueError) as error:
        raise MgenError(f"cannot read {str(path)[:200]} ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(mode):
        raise MgenError(f"cannot read {path}: it is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
    return path


def read_text(path: str | Path, *, most: int) -> str:
    """The text of a UTF-8 file of `most` bytes at most; MgenError if it cannot be read."""
    path = check_file(path)
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise MgenError(f"{path} is larger than {most / 2**20:g} MiB: not a file of this kind")
        return data.decode("utf-8-sig")  # editors of Windows begin a file with a mark
    except OSError as error:
        raise MgenError(f"cannot read {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise MgenError(
            f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error


def parse_json(text: str, where: str) -> Any:
    """The value that a JSON text stands for; MgenError that names `where` if it isn't valid, or holds more than plain values."""
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError:
        raise MgenError(f"{where} is nested too deeply: not a file of this kind") from None  # its trace is long
    except ValueError as error:
        raise MgenError(f"{where} is not valid JSON ({first_line(error)})") from error
    check_plain(data, f"{where}: ")
    return data


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        double = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {shown(double)} stands twice in an object")
    return made


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no number of JSON")


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file; MgenError if it cannot be read. Give it to `mgen.utils.schema.build` to learn what it holds."""
    return parse_json(read_text(path, most=MOST_JSON_BYTES), str(path))


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The same for a file that holds a mapping; MgenError for anything else."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise MgenError(f"{path} holds {shown(data)}: expected a mapping")
    return data


def read_tensors(path: str | Path) -> "tuple[dict[str, torch.Tensor], dict[str, str]]":
    """All tensors and the metadata of a safetensors file; MgenError if it is missing or damaged."""
    check_file(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise MgenError(
            f"{path} is not a readable safetensors file ({error}): truncated or of another format"
        ) from error


def tensor_places(path: str | Path) -> dict[str, tuple[int, int]]:
    """Where the bytes of each tensor of a safetensors file begin and end; MgenError if its header is damaged."""
    with check_file(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MOST_JSON_BYTES:
            raise MgenError(f"{path} is not a readable safetensors file: its header would have {length} bytes")
        header = parse_json(file.read(length).decode("utf-8", errors="replace"), f"the header of {path}")
    try:
        found = {name: about["data_offsets"] for name, about in header.items() if name != "__metadata__"}
        return {name: (8 + length + int(start), 8 + length + int(stop)) for name, (start, stop) in found.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MgenError(f"{path} is not a readable safetensors file: its header lacks data_offsets") from error


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
