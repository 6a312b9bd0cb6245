"""Which files below a folder are images, and what was passed over.

Hidden files and folders are ignored, links to folders are followed.
"""

import functools
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from mgen.utils.errors import MgenError, first_line
from mgen.utils.schema import checked

# Formats of Pillow that are looked for in folders. JXL and HEIF need a plugin, which registers itself when it is imported.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF", "AVIF", "JPEG2000", "TGA", "QOI", "PCX", "SGI"),
    *("JXL", "HEIF"),
)
# Suffixes of images and photos that are not looked for; other files are no images and need no word.
UNREAD = (
    *(".jxl", ".heic", ".heif", ".avif", ".svg", ".psd", ".xcf", ".eps", ".ai", ".exr", ".hdr", ".pfm", ".ico", ".dds"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".jxr", ".jls", ".fits", ".dcm"),
)
MOST_LINKS = 4  # within each other, so that links to links end


@functools.cache
def image_suffixes() -> tuple[str, ...]:
    """Suffixes of the files that count as images, such as ".png"."""
    Image.init()
    known = Image.registered_extensions().items()
    return tuple(
        sorted(suffix for suffix, kind in known if kind in FORMATS and kind in Image.OPEN and suffix != ".pfm")
    )


@checked
def list_images(root: str | Path) -> list[Path]:
    """All image files below `root`, sorted by path; a warning says how many images of other formats were passed over.

    Raises:
        MgenError: the folder is missing, cannot be read or has no images; an image is a broken link or no regular file.
    """
    root = Path(root)
    if not root.is_dir():
        raise MgenError(f"no such folder: {root}")
    readable, files, skipped = set(image_suffixes()), [], Counter[str]()
    for entry in _entries(root):
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in readable:
            files.append(_regular(entry))
        elif suffix in UNREAD:
            skipped[suffix] += 1
    if skipped:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(skipped.items()))
        warnings.warn(
            f"{root}: passed over {kinds}, which cannot be read: convert them, to PNG for example", stacklevel=2
        )
    if not files:
        raise MgenError(f"no images below {root}: expected files ending in {', '.join(image_suffixes())}")
    return sorted(files)


def class_folders(root: str | Path) -> list[str]:
    """Names of the direct subfolders of `root` that are not hidden, links included."""
    return [e.name for e in _scan(os.fspath(root)) if not e.name.startswith(".") and e.is_dir()]


def _regular(entry: "os.DirEntry[str]") -> Path:
    try:
        if entry.is_file():
            return Path(entry.path)
    except OSError as error:
        raise MgenError(f"cannot read {entry.path} ({error.strerror}): remove it") from error
    if not os.path.exists(entry.path):
        raise MgenError(f"{entry.path} is a broken link: remove or mend it")
    raise MgenError(f"{entry.path} is no regular file, but a pipe, socket or device: remove it")


def _entries(root: Path) -> Iterator["os.DirEntry[str]"]:
    """Everything below `root` but folders and what is hidden."""
    stack: list[tuple[str, frozenset[tuple[int, int]], int]] = [(os.fspath(root), frozenset([_identity(root)]), 0)]
    while stack:
        folder, above, links = stack.pop()
        for entry in _scan(folder):
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield entry
                continue
            own = _identity(entry.path)
            if own in above:
                raise MgenError(f"{entry.path} links to a folder that it is in: remove the link")
            linked = links + entry.is_symlink()
            if linked > MOST_LINKS:
                raise MgenError(f"{entry.path}: more than {MOST_LINKS} links to folders within each other: remove some")
            stack.append((entry.path, above | {own}, linked))


def _scan(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise MgenError(f"cannot read the folder {folder} ({first_line(error)})") from error


def _identity(folder: str | Path) -> tuple[int, int]:
    about = os.stat(folder)
    return about.st_dev, about.st_ino
