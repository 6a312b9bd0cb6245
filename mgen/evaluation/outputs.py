"""Folders of results: nothing in them is replaced that another command or a person wrote."""

from collections.abc import Sequence
from pathlib import Path

from mgen.utils.errors import MgenError
from mgen.utils.files import check_output
from mgen.utils.reading import read_json


def check_own(folder: Path, names: Sequence[str], keys: set[str], writer: str = "mgen eval") -> None:
    """Raise MgenError if files of these names cannot be written, or are of something else; the first, with these keys, tells."""
    for name in names:
        check_output(folder / name)
    there = [name for name in names if (folder / name).exists()]
    if not there:
        return
    try:
        data = read_json(folder / names[0])
    except MgenError:
        data = None
    if not isinstance(data, dict) or not keys <= data.keys():
        raise MgenError(
            f"{folder} holds {' and '.join(there)}, which {writer} did not write and does not replace: choose another --out"
        )
