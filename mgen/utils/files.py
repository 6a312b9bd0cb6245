"""Atomic writing of files and folders, and errors that say why one cannot be written.

A file is written under a temporary name, `.NAME.HOST-PID.tmp`, and renamed when it is complete. What a killed process left behind is
removed the next time a process writes into the folder.
"""

import contextlib
import ctypes
import hashlib
import json
import math
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from safetensors import SafetensorError

from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.paths import path_fault

if TYPE_CHECKING:
    import torch

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
LEFTOVER = re.compile(rf"\.(.+)\.{_HOST}-([0-9]{{1,9}})\.(?:\w+\.)?(old|tmp)(?:\..+)?", re.DOTALL)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Create the folder that `path` is in, and remove it again on failure; an error of writing becomes an MgenError."""
    made: list[Path] = []
    try:
        made = make_folders(path.parent)
        _sweep_once(path.parent)
        yield
    except BaseException as error:
        for folder in made:
            with contextlib.suppress(OSError):  # another process has written into it
                folder.rmdir()
        if not isinstance(error, OSError | SafetensorError | UnicodeError):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise MgenError(f"cannot write {path} ({reason}): check permissions and free space") from error


def make_folders(folder: Path) -> list[Path]:
    """Create a folder and those above it, however many; returns the new ones, the deepest first. OSError if it can't be."""
    missing: list[Path] = []
    folder = Path(os.path.abspath(folder))
    while not folder.is_dir():  # Path.mkdir(parents=True) would recurse
        missing.append(folder)
        folder = folder.parent
    for below in reversed(missing):
        below.mkdir(exist_ok=True)
    return missing


def check_target(path: str | Path, *, folder: bool = False) -> Path:
    """Where `path` leads when links are followed; MgenError if something is there that a new file or folder must not replace."""
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
            kind = "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "a device or a pipe"
            raise MgenError(f"cannot write {path}: it is {kind}; choose another name")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise MgenError(f"cannot write {shown(str(path))} ({getattr(error, 'strerror', None) or error})") from error
    return Path(os.path.realpath(path))


def _temporary(path: Path) -> Path:
    # PIL, numpy and safetensors look at the suffix.
    return path.with_name(f".{_stem(path)}.{_HOST}-{os.getpid()}.tmp{path.suffix if len(path.suffix) < 20 else ''}")


def _stem(path: Path) -> str:
    """The name of a file, or a hash of it if it is so long that a longer one would not fit into 255 bytes."""
    name = os.fsencode(path.name)
    return path.name if len(name) < 180 else hashlib.sha256(name).hexdigest()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `path` on success and removed on failure. Links are followed."""
    path = check_target(path)
    temporary = _temporary(path)
    with _writing(path):
        try:
            yield temporary
            _usual_mode(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder, which replaces an existing `path` in one step."""
    path = check_target(path, folder=True)
    with _writing(path):
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{_stem(path)}.{_HOST}-{os.getpid()}.", suffix=".tmp", dir=path.parent)
        )
        try:
            yield temporary
            for below in (temporary, *temporary.rglob("*")):
                _usual_mode(below)
            _swap(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch_folder(path: str | Path) -> Iterator[Path]:
    """Yield a folder for temporary files inside `path`, on the same file system; it is removed at the end."""
    path = Path(path)
    with _writing(path / "scratch"):
        temporary = Path(tempfile.mkdtemp(prefix=f".scratch.{_HOST}-{os.getpid()}.", suffix=".tmp", dir=path))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def filled_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder inside the folder `path`, which may be new; what is written into it is moved to `path`, all or nothing.

    Unlike `atomic_folder` it leaves `path` in its place, which may be a mount point or the working folder.
    """
    path, moved = Path(path), list[Path]()
    with scratch_folder(path) as temporary:
        try:
            yield temporary
            for below in sorted(temporary.iterdir()):
                os.replace(below, path / below.name)
                moved.append(path / below.name)
        except BaseException as error:
            for there in moved:
                with contextlib.suppress(OSError):
                    shutil.rmtree(there) if there.is_dir() else there.unlink()
            if isinstance(error, MgenError):  # with the names that the files were to have
                raise MgenError(str(error).replace(f"{temporary.name}/", "")) from error
            raise


def _usual_mode(path: Path) -> None:
    """Give the mode of a new file or folder under the process's umask; temporary ones and safetensors are private."""
    if not path.is_symlink():  # of which the target would change
        os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~_umask())


def _umask() -> int:
    """The process's umask. Linux tells it; elsewhere it has to be set to be read, which another thread might notice."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"^Umask:\s*([0-7]+)$", status, re.MULTILINE)[1], 8)  # type: ignore[index]
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _swap(new: Path, path: Path) -> None:
    """Put the folder `new` in the place of `path`, which may exist and is then at `new`, to be removed."""
    if not os.path.lexists(path):
        os.replace(new, path)
        return
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or a file system that cannot
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
        if exchange(-100, os.fsencode(new), -100, os.fsencode(path), 2) == 0:  # AT_FDCWD, RENAME_EXCHANGE
            return
    # Killed between the two renames, the next process puts it back. The name is the whole one for that; if it is too long, this fails.
    old = aside(path)
    os.replace(path, old)
    os.replace(new, path)
    shutil.rmtree(old)


def aside(path: Path) -> Path:
    """Where a folder is while it is being replaced; `sweep` puts it back if this process is killed meanwhile."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.old")


_swept: set[Path] = set()


def _sweep_once(folder: Path) -> None:
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder)


def sweep(folder: Path) -> None:
    """Remove what killed processes of this machine left in a folder, and put back a folder whose replacement they had begun."""
    try:
        names = os.listdir(folder)
    except OSError:  # not there; one that can't be read is noticed by whoever needs it
        return
    for name in names:
        if (left := LEFTOVER.fullmatch(name)) and not psutil.pid_exists(int(left[2])):
            there = folder / name
            with contextlib.suppress(OSError):  # another process may be sweeping too
                if left[3] == "old" and not os.path.lexists(folder / left[1]):
                    os.replace(there, folder / left[1])
                elif there.is_dir() and not there.is_symlink():
                    shutil.rmtree(there)
                else:
                    there.unlink()


def check_writable(path: str | Path) -> None:
    """Raise MgenError if the folder `path` cannot be created or written to. Leaves nothing."""
    folder = Path(path).absolute()
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(folder)  # ValueError for a null character, which `exists` passes over
        while not folder.exists():
            if folder.is_symlink():
                raise MgenError(
                    f"cannot write to {path}: {folder} is a broken link; remove it or choose another folder"
                )
            folder = folder.parent
        writable = folder.is_dir() and os.access(folder, os.W_OK)
        if writable:  # of some file systems, such as /proc, only trying tells
            os.rmdir(tempfile.mkdtemp(prefix=f".try.{_HOST}-{os.getpid()}.", suffix=".tmp", dir=folder))
    except (OSError, ValueError) as error:
        raise MgenError(f"cannot write to {path} ({getattr(error, 'strerror', None) or error})") from error
    if not writable:
        raise MgenError(
            f"cannot write to {path}: {folder} is {'read-only' if folder.is_dir() else 'a file'}; choose another folder"
        )


def check_output(path: str | Path) -> None:
    """Raise MgenError if the file `path` cannot be written: its folder, see `check_writable`, or something else of that name."""
    path = Path(os.path.realpath(path))
    if fault := path_fault(str(path)):
        raise MgenError(f"cannot write {shown(str(path))}: the name {fault}")
    if os.path.lexists(path) and not path.is_file():
        raise MgenError(
            f"cannot write {path}: it is {'a folder' if path.is_dir() else 'no regular file'}; choose another name"
        )
    check_writable(path.parent)


def write_text(path: str | Path, text: str) -> None:
    with atomic_path(path) as temporary:
        # Names of files may hold bytes that are no text; here they become "?".
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: str | Path, data: object) -> None:
    """Write JSON; a number that is not finite, which JSON cannot hold, becomes null."""
    write_text(path, json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(data: object) -> object:
    """`data` with null in place of NaN and infinity."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    return [finite(value) for value in data] if isinstance(data, list | tuple) else data


def write_tensors(path: str | Path, tensors: "dict[str, torch.Tensor]", metadata: dict[str, str] | None = None) -> None:
    """Save tensors as safetensors, atomically; equal contents make equal files."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)
        if metadata is not None and len(metadata) > 1:
            _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, which its writer puts into another order each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        data = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(data) <= length, "safetensors writes headers as compactly"
        file.seek(8)
        file.write(data.ljust(length))
