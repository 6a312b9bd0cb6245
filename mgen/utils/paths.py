"""What can be the path of a file or folder on this machine, and whether one lies in another."""

import os
from pathlib import Path

from mgen.utils.errors import MgenError, shown

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, of Linux


def path_fault(path: str) -> str:
    """What is wrong with a path, to stand behind it in a message; "" if a file may have it."""
    if "\0" in path:
        return "holds a null character"
    longest = max(len(os.fsencode(part)) for part in path.split("/"))
    if longest > LONGEST_NAME or len(os.fsencode(os.path.abspath(path))) > LONGEST_PATH:
        return f"is too long: a name has {LONGEST_NAME} bytes at most, a path {LONGEST_PATH}"
    return ""


def lies_in(path: str | Path, folder: str | Path) -> bool:
    """Whether a search through `folder` finds `path`: it is the folder or below it, as it is named or with links followed.

    Hidden folders are not searched.
    """
    for made in (os.path.abspath, os.path.realpath):
        inner, outer = Path(made(path)), Path(made(folder))
        if inner.is_relative_to(outer) and not any(part.startswith(".") for part in inner.relative_to(outer).parts):
            return True
    return False


def check_apart(out: str | Path, what: str, images: dict[str, str | None]) -> None:
    """Raise MgenError if `what`, the folder `out` that is written to, lies in a folder of images, where it would be taken for a class.

    Args:
        images: the folders by the option or setting that names them; None for one that is not given.
    """
    for name, folder in images.items():
        if folder is not None and os.path.isdir(folder) and lies_in(out, folder):
            raise MgenError(
                f"{what} {shown(str(out), 200)} lies in {name} {shown(folder, 200)}, so what is written there would be read as images of "
                "a class: choose a folder outside of it, and move there what has been written already"
            )
