"""--overwrite: a folder that the same command wrote before is replaced, and nothing else is ever deleted.

The old folder is set aside under a temporary name while the command works. It is put back if the command fails before it has written
anything, also after a kill (see mgen.utils.files.sweep), and removed otherwise.
"""

import argparse
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mgen.utils.errors import MgenError, shown
from mgen.utils.files import LEFTOVER, aside
from mgen.utils.launched import is_first

FEATURES = r"features\.json|part-\d+\.safetensors|[0-9a-f]{16}\.safetensors|.*\.f32"


@dataclass(frozen=True)
class Contents:
    """What a command writes into its folder.

    Attributes:
        what: for messages. marks: pattern of the files of which one at least must be there. others: of the files that may be.
        folders: of the folders of measured features.
    """

    what: str
    marks: str
    others: str = ""
    folders: str = ""


KINDS = {
    "sample": Contents(
        "run of mgen sample",
        r"run\.json",
        r"\d{6,}(_class-\d{4,})?\.png|images-\d{6,}-\d{6,}\.npz|grid\.png|animation\.(gif|png|webp)",
    ),
    "edit": Contents("result of mgen edit", r"edit-\d{6,}(_class-\d{4,})?\.png|restyled\.png", r"grid\.png"),
    "eval": Contents(
        "result of mgen eval",
        r"result\.json|levels\.json|features",
        r"grid\.png|report\.(md|html)|levels\.md",
        "features|reference",
    ),
    "tune": Contents(
        "search of mgen tune",
        r"run\.json",
        r"strategy\.yaml|trace\.jsonl|report\.md|points\.json|pareto\.svg|reference-(search|test)\.safetensors",
        "features",
    ),
    "cache": Contents("cache of mgen cache", r"index\.json", r"shard-\d{5,}\.safetensors"),
    "bench": Contents("sweep of mgen bench", r"sweep\.json", r"sweep\.(md|svg)"),
    "stats": Contents("features of mgen stats", r"features\.json", FEATURES),
}


def add_overwrite(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option of a command that writes into a folder."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help=f"start anew if the folder holds {what}: they are gone once the first new file is written; never if anything else is in it",
    )


def again(args: argparse.Namespace) -> str:
    """What to say about the command that resumes this one: with --overwrite it would start anew."""
    return " without --overwrite" if args.overwrite else ""


@contextmanager
def overwriting(
    folder: str | Path, kind: str, *, active: bool, also: str = "", inputs: Sequence[str | None] = ()
) -> Iterator[None]:
    """With --overwrite (`active`), what is in `folder` is replaced by what the block writes.

    Args:
        kind: a key of KINDS. also: pattern of names that are the command's own besides. inputs: files and folders that it reads.

    Raises:
        MgenError: the folder holds something that the command didn't write, or an input.
    """
    folder = Path(os.path.realpath(folder))
    # Of several processes one does it.
    if not active or not is_first() or not os.path.lexists(folder):
        yield
        return
    check_replaceable(folder, KINDS[kind], also, [name for name in inputs if name])
    old = aside(folder)
    os.replace(folder, old)
    try:
        yield
    finally:
        if os.path.lexists(folder):
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, folder)


def check_replaceable(folder: Path, contents: Contents, also: str, inputs: Sequence[str]) -> None:
    """Raise MgenError unless everything in a folder was written by the command."""
    if not folder.is_dir():
        raise MgenError(f"--overwrite: {folder} is no folder: choose another --out")
    here = Path(os.path.realpath("."))
    if folder == here or folder in here.parents:
        raise MgenError(f"--overwrite: {folder} is the working directory, or holds it: choose another --out")
    for name in inputs:
        real = Path(os.path.realpath(name))
        if os.path.lexists(name) and (real == folder or folder in real.parents):
            raise MgenError(
                f"--overwrite: {name} is read, and lies in {folder}, which would be replaced: choose another --out"
            )
    names = sorted(os.listdir(folder))
    if names and not any(re.fullmatch(contents.marks, name) for name in names):
        raise MgenError(f"--overwrite: {folder} holds {shown(names[0])}, but no {contents.what}: choose another --out")
    for name in names:
        if why := _foreign(folder / name, contents, also):
            raise MgenError(
                f"--overwrite: {folder} holds {why}, which is no {contents.what}: move it away, or choose another --out"
            )


def _foreign(path: Path, contents: Contents, also: str) -> str:
    """The name of what a command didn't write at `path`, "" if it wrote all."""
    if path.is_dir() and not path.is_symlink():
        if not re.fullmatch(contents.folders, path.name):
            return "" if LEFTOVER.fullmatch(path.name) else f"the folder {shown(path.name)}"
        inside = [
            name
            for name in sorted(os.listdir(path))
            if not re.fullmatch(FEATURES, name) and not LEFTOVER.fullmatch(name)
        ]
        return shown(f"{path.name}/{inside[0]}") if inside else ""
    known = "|".join(filter(None, (contents.marks, contents.others, also)))
    return "" if re.fullmatch(known, path.name) or LEFTOVER.fullmatch(path.name) else shown(path.name)
