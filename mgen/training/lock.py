"""One training per output folder: a lock that the system drops when its process ends, however it ends."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from mgen.utils.errors import MgenError

NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path, *, active: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, which is created; afterwards the lock's file is gone, and so are new folders that stayed empty.

    Args:
        active: False for the processes of a run but the first, which holds the lock for all.

    Raises:
        MgenError: another process holds it, or the folder cannot be written.
    """
    if not active:
        yield
        return
    made = [f for f in (folder, *folder.parents) if not f.exists()]
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path)
    except OSError as error:
        _remove_empty(made)
        raise MgenError(f"cannot write to {folder} ({error.strerror}): choose another output folder") from error
    try:
        yield
    finally:
        _release(path, handle)
        _remove_empty(made)


def _release(path: Path, handle: int) -> None:
    with contextlib.suppress(OSError):
        path.unlink()  # while it is held: who waits for it notices that the file is another one
    os.close(handle)


def _remove_empty(made: list[Path]) -> None:
    """Remove new folders, the deepest first, as far as they are empty and there."""
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _acquire(path: Path) -> int:
    """A descriptor of the file, locked."""
    import fcntl

    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise MgenError(
                f"{path.parent} is in use by another training ({holder}): wait for its end, stop it, or choose another output folder"
            ) from error
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                break
        os.close(handle)  # its holder has just removed it: lock the new file
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except OSError:  # a full disk
        _release(path, handle)
        raise
    _close_in_children(handle)
    return handle


def _close_in_children(handle: int) -> None:
    """Let forked children, such as loader workers, drop the descriptor: one that outlives its parent would keep the lock."""
    owner, about = os.getpid(), os.fstat(handle)

    def close() -> None:
        with contextlib.suppress(OSError):
            if os.getppid() == owner and os.path.samestat(os.fstat(handle), about):
                os.close(handle)

    os.register_at_fork(after_in_child=close)
