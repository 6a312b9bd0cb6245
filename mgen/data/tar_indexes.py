"""The indexes of tar shards: found, or made where they are missing or the tars have changed."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from mgen.data.tar_index import Forward, TarIndex, index_file, index_tar, read_index_file, write_index
from mgen.data.tar_stream import TarStream
from mgen.utils.errors import MgenError, shown
from mgen.utils.files import check_writable
from mgen.utils.launched import launched
from mgen.utils.paths import LONGEST_NAME
from mgen.utils.reading import check_file
from mgen.utils.tar_paths import PIPE, tar_name

SUFFIX = ".index"
PATIENCE = 600.0  # seconds in which a command is to end whose output has been read
MOST_BEHIND = 2**26  # bytes that a command may write behind the end of its tar; tar itself fills up to 10 KiB
THREADS = 8  # that read headers, from a network for example


def find_indexes(shards: Sequence[str], folder: Path | None, *, progress: bool = True) -> list[TarIndex]:
    """The indexes of these shards; missing ones are made and written into `folder`, None: beside each tar.

    Processes that do so at the same time begin with different shards, and each takes over what others have written.

    Raises:
        MgenError: a shard can't be read, or its index not written.
    """
    piped = shards[0].startswith(PIPE)
    if piped and folder is None:
        raise MgenError(
            f"{shown(shards[0], 100)} needs data.index (mgen cache: --index): the folder of the indexes of what commands write"
        )
    found: dict[int, TarIndex] = {}
    for number, name in enumerate(shards):
        if (kept := _kept(name, folder)) is not None:
            found[number] = kept
    missing = [number for number in range(len(shards)) if number not in found]
    if not missing:
        return [found[number] for number in range(len(shards))]
    for place in dict.fromkeys(index_place(shards[number], folder).parent for number in missing):
        try:
            check_writable(place)
        except MgenError as error:
            raise MgenError(
                f"{error}: there is no place for the index of the tars; set data.index (mgen cache: --index) to a folder"
            ) from error
    rank, world = launched()
    first = rank * len(missing) // world
    order = missing[first:] + missing[:first]
    with ThreadPoolExecutor(THREADS) as pool:
        # Commands are read by this thread, which a Ctrl-C interrupts.
        made = (map if piped else pool.map)(lambda number: _kept_or_made(shards[number], folder), order)
        bar = tqdm(
            made,
            total=len(order),
            unit="tar",
            desc="indexing",
            disable=not progress or rank > 0,
            delay=1.0,
            leave=False,
        )
        try:
            found.update(zip(order, bar))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [found[number] for number in range(len(shards))]


def index_place(name: str, folder: Path | None) -> Path:
    """Where the index of a shard is. In a folder for all, tars of one name from different folders have an index each."""
    if name.startswith(PIPE):
        assert folder is not None
        return folder / f"pipe-{_short(name.encode(errors='replace'))}{SUFFIX}"
    if folder is None:
        return Path(name).parent / f"{Path(name).name}{SUFFIX}"
    short = _short(os.fsencode(os.path.realpath(name)))
    own = f"{Path(name).name}-{short}{SUFFIX}"
    return folder / (own if len(os.fsencode(own)) <= LONGEST_NAME else f"tar-{short}{SUFFIX}")


def _short(data: bytes) -> str:
    """A digest that tells the indexes of one folder apart."""
    return hashlib.sha256(data).hexdigest()[:16]


def _kept(name: str, folder: Path | None) -> TarIndex | None:
    """The index that was written before, None if there is none or the tar has changed since."""
    path = index_place(name, folder)
    about = None if name.startswith(PIPE) else check_file(name).stat()
    if not os.path.lexists(path):
        return None
    index = read_index_file(path)
    if about is not None and (about.st_size, about.st_mtime_ns) != (index.about.bytes, index.about.mtime_ns):
        return None
    return index


def _kept_or_made(name: str, folder: Path | None) -> TarIndex:
    kept = _kept(name, folder)
    return _made(name, folder) if kept is None else kept


def _made(name: str, folder: Path | None) -> TarIndex:
    """The index, made and written."""
    if name.startswith(PIPE):
        stream = TarStream(name)
        try:
            index = index_tar(Forward(stream.file), tar_name(name), None)
            _drain(stream)
            status, said = stream.status(PATIENCE)
        finally:
            stream.close()
        if status is None:
            raise MgenError(
                f"{shown(name, 200)} has closed its output, but goes on for more than {PATIENCE:g} s{said}: let it end"
            )
        if status:
            raise MgenError(f"{shown(name, 200)} ended with status {status}{said}: run it by hand to see why")
    else:
        index = index_file(Path(name))
    write_index(index_place(name, folder), index)
    return index


def _drain(stream: TarStream) -> None:
    """Read what is behind the end of a tar, as a command whose output is not read to its end may fail; MgenError if that is too much."""
    left = MOST_BEHIND
    while data := stream.file.read(2**20):
        left -= len(data)
        if left < 0:
            raise MgenError(
                f"{shown(stream.name, 200)} writes more than {MOST_BEHIND >> 20} MiB behind the end of its tar: let it write one tar and "
                "end; several tars need a command each"
            )
