"""The index of a tar shard of a WebDataset: where its images lie, and their labels, so that any of them can be read alone.

A sample is a run of members with one key, the name up to the first dot of its last part: an image (jpg, jpeg, png or webp) and a label, as
text in `cls` or as "label" (else "cls") in `json`. One pass over the headers, by Python's tarfile, makes the index; for tars on this
machine it skips the contents. It is kept as safetensors beside the tar, or in a folder of one's own, and made anew when the tar changes.

Why not the library webdataset for reading: its pipelines read streams, and where they are in a stream is not saved; with offsets any batch
of a training can be read without those before it, which makes an exact resume cheap. The format of the shards is the same.

Nothing is ever extracted: names of members are keys and nothing else, links are not followed, and sizes are checked against the file.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.files import write_tensors
from mgen.utils.reading import check_file, parse_json, read_tensors
from mgen.utils.schema import Natural, build, schema

IMAGES = ("jpg", "jpeg", "png", "webp")
MOST_HEADER, MOST_LABEL, MOST_IMAGE = 2**20, 2**20, 2**30  # bytes
MOST_TOLD = 5  # problems that are kept word by word
LABEL = re.compile(r"\s*([0-9]{1,9})\s*")
META = "mgen"
# What tarfile and reading raise for a tar that is damaged or cut off.
DAMAGES = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, MemoryError, OSError)


@schema
class About:
    """What an index says of its tar: size and time of change of the file (0 for streams), number of problems and the first of them."""

    version: Literal[1] = 1
    bytes: Natural
    mtime_ns: Annotated[int, Field(ge=-(2**63), lt=2**63)]  # negative before 1970
    problems: Natural = 0
    first: tuple[str, ...] = ()
    unlabeled: Natural = (
        0  # images without a label, or with one that can't be read; they are in the index, with label -1
    )
    first_unlabeled: str = ""


@dataclass(frozen=True)
class TarIndex:
    """offsets, sizes (n,) int64: bytes of the images in the tar. labels (n,) int64, -1 without one. keys: UTF-8, each ends with a zero."""

    about: About
    offsets: Tensor
    sizes: Tensor
    labels: Tensor
    keys: Tensor

    def __len__(self) -> int:
        return len(self.offsets)

    def key(self, number: int) -> str:
        """The key of a sample."""
        return bytes(self.keys.numpy().data).split(b"\0")[number].decode("utf-8", errors="replace")


@dataclass
class Sample:
    """A sample of which some members have passed. image: its offset and size in bytes."""

    key: str = ""
    image: tuple[int, int] | None = None
    label: int | None = None
    wrong: str = ""  # why the label can't be read
    names: set[str] = field(default_factory=set)


class Found:
    """What a pass has found so far: the sample whose members are passing; of those before it rows of offset, size, label, and keys."""

    def __init__(self) -> None:
        self.sample, self.members = Sample(), 0
        self.rows: list[tuple[int, int, int]] = []
        self.keys: list[str] = []
        self.problems, self.first = 0, list[str]()
        self.unlabeled, self.first_unlabeled = 0, ""

    def problem(self, text: str) -> None:
        self.problems += 1
        if len(self.first) < MOST_TOLD:
            self.first.append(text)

    def add(self, sample: Sample) -> None:
        if not sample.names:
            return
        if sample.image is None:
            self.problem(
                f"{shown(sample.key)} has no image ({', '.join(sorted(sample.names)[:5])}), expected one of {', '.join(IMAGES)}"
            )
            return
        if sample.label is None:
            self.unlabeled += 1
            self.first_unlabeled = self.first_unlabeled or (
                f"{shown(sample.key)} has {sample.wrong or 'no label: expected a member .cls, or .json with a label'}"
            )
        self.rows.append((*sample.image, -1 if sample.label is None else sample.label))
        self.keys.append(sample.key)


class _Headers:
    """A file whose reads are bounded, as those of headers are: a hostile one can't ask for memory. `last` is what was read last."""

    def __init__(self, file: "IO[bytes] | Forward") -> None:
        self.file, self.last = file, b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self.file.read(size)
        return self.last

    def seek(self, place: int, whence: int = 0) -> int:
        return self.file.seek(place, whence)

    def tell(self) -> int:
        return self.file.tell()


class Forward:
    """A stream that can be read and skipped forward, as tarfile needs it. `ended`: whether it ended before what was to be read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.place, self.ended = file, 0, False

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.place += len(data)
        self.ended = self.ended or len(data) < size
        return data

    def seek(self, place: int, whence: int = 0) -> int:
        if whence != 0 or place < self.place:
            raise tarfile.ReadError("a header that leads back")
        while self.place < place and self.read(min(2**20, place - self.place)):
            pass
        return self.place

    def tell(self) -> int:
        return self.place


def index_tar(file: IO[bytes] | Forward, name: str, size: int | None, mtime_ns: int = 0) -> TarIndex:
    """The index of a tar of `size` bytes, None for a stream; MgenError unless it begins as a tar.

    What is wrong behind the first header is counted and told in the index, and samples in front of it are in there.
    """
    found, end = Found(), size if size is not None else 2**62
    try:
        for _ in walk(file, found, end):
            pass
    except DAMAGES as error:
        if not found.members:
            raise MgenError(
                f"{name} is no tar that can be read ({first_line(error)}); compressed ones must be unpacked to .tar"
            ) from error
        found.problem(f"it is damaged or cut off behind {shown(found.sample.key)} ({first_line(error)})")
        end = min(end, file.place) if isinstance(file, Forward) else end  # a stream may have ended within an image
    sample = found.sample
    if sample.image is None or sample.image[0] + sample.image[1] <= end:
        found.add(sample)
    rows = torch.tensor(found.rows, dtype=torch.int64).reshape(-1, 3)
    about = About(
        bytes=size or 0,
        mtime_ns=mtime_ns,
        problems=found.problems,
        first=tuple(found.first),
        unlabeled=found.unlabeled,
        first_unlabeled=found.first_unlabeled,
    )
    keys = b"".join(key_bytes(key) + b"\0" for key in found.keys)
    return TarIndex(about, rows[:, 0].contiguous(), rows[:, 1].contiguous(), rows[:, 2].contiguous(), _bytes(keys))


def walk(file: IO[bytes] | Forward, found: Found, end: int) -> Iterator[None]:
    """Pass the members of a tar of `end` bytes one by one, noting in `found` what they are; raises DAMAGES.

    The last sample stays `found.sample`: whether it is whole is for the caller to say.
    """
    headers = _Headers(file)
    with tarfile.open(fileobj=headers, mode="r:") as tar:  # type: ignore[call-overload]  # read, seek and tell will do
        for member in _members(tar, headers, end):
            found.members += 1
            split = re.fullmatch(r"((?:.*/|)[^./][^./]*)\.([^/]+)", member.name, re.DOTALL)
            if split and not os.path.basename(split[1]).startswith("__"):
                key, kind = split[1], split[2].lower()
                if key != found.sample.key:
                    found.add(found.sample)
                    found.sample = Sample(key)
                _take(member, kind, found.sample, found, file)
            yield


def key_bytes(key: str) -> bytes:
    """A key as an index holds it."""
    return key.encode("utf-8", errors="replace").replace(b"\0", b"?")


def _members(tar: tarfile.TarFile, headers: _Headers, end: int) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, without keeping them; tarfile takes a damaged header for the end, which is checked here."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]
        if member.size < 0:
            raise tarfile.ReadError("a member of negative size")
        if member.isreg() and member.offset_data + member.size > end:
            raise tarfile.ReadError(f"{shown(member.name)} has {member.size} bytes, more than are left")
        yield member
    if headers.last.strip(b"\0"):  # the block that ended it, of zeros in a whole tar
        raise tarfile.ReadError(f"no header at byte {headers.tell() - len(headers.last)}")


def _take(member: tarfile.TarInfo, kind: str, sample: Sample, found: Found, file: IO[bytes] | Forward) -> None:
    """Note a member of a sample."""
    if kind in sample.names:
        found.problem(f"{shown(sample.key)} has two members .{kind}")
        return
    wanted = kind in IMAGES or kind in ("cls", "json")
    if wanted and (not member.isreg() or member.sparse is not None):
        what = "a link" if member.islnk() or member.issym() else "no regular file"
        found.problem(f"{shown(member.name)} is {what}: tars must hold the images themselves")
        return
    if member.isdir():
        return
    sample.names.add(kind)
    if kind in IMAGES and sample.image is None:
        if not 0 < member.size <= MOST_IMAGE:
            found.problem(f"{shown(member.name)} has {member.size} bytes")
        else:
            sample.image = member.offset_data, member.size
    elif kind in ("cls", "json") and sample.label is None:
        if member.size > MOST_LABEL:
            sample.wrong = f"a label of {member.size} bytes"
            return
        file.seek(member.offset_data)
        data = file.read(member.size)
        if len(data) < member.size:
            raise tarfile.ReadError(f"{shown(member.name)} is cut off")
        _read_label(data, kind, sample)


def _read_label(data: bytes, kind: str, sample: Sample) -> None:
    """Note the label that the contents of a member give."""
    value: object = data.decode("utf-8", errors="replace")
    if kind == "json":
        try:
            about = parse_json(str(value), "its .json")
        except MgenError as error:
            sample.wrong = f"a .json that can't be read ({error})"
            return
        about = about if isinstance(about, dict) else {}
        if (value := about.get("label", about.get("cls"))) is None:
            return  # of many things besides the label
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    number = LABEL.fullmatch(value) if isinstance(value, str) else None
    if number is None:
        sample.wrong = f"the label {shown(value)}: expected a number from 0 on"
    else:
        sample.label = int(number[1])


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


# -- files -----------------------------------------------------------------------------------------------------------------


def write_index(path: Path, index: TarIndex) -> None:
    """Write an index, atomically."""
    tensors = {name: getattr(index, name) for name in ("offsets", "sizes", "labels", "keys")}
    write_tensors(path, tensors, {META: json.dumps(asdict(index.about))})


def read_index_file(path: Path) -> TarIndex:
    """An index that was written before, checked; MgenError if it is damaged."""
    check_file(path)  # what else is there in its place need not be removed
    try:
        tensors, metadata = read_tensors(path)
    except MgenError as error:
        raise MgenError(f"{error}: remove it, and it is made anew") from error
    try:
        if META not in metadata:
            raise MgenError("it is none of mgen")
        about = build(About, parse_json(metadata[META], "its metadata"), "its metadata: ")
        n = len(tensors["offsets"])
        for name, dtype in (
            ("offsets", torch.int64),
            ("sizes", torch.int64),
            ("labels", torch.int64),
            ("keys", torch.uint8),
        ):
            if tensors[name].dtype != dtype or tensors[name].ndim != 1 or (name != "keys" and len(tensors[name]) != n):
                raise MgenError(f"it holds {name} of another kind")
        offsets, sizes, labels = tensors["offsets"], tensors["sizes"], tensors["labels"]
        end = about.bytes or 2**62
        if n and not (offsets.min() >= 512 and sizes.min() > 0 and sizes.max() <= MOST_IMAGE and labels.min() >= -1):
            raise MgenError("it holds numbers that no index has")
        if n and not ((offsets + sizes).max() <= end and bool((offsets.diff() > 0).all())):
            raise MgenError("it holds places that are not in the tar")
        if int((tensors["keys"] == 0).sum()) != n:
            raise MgenError("it holds another number of keys than of images")
    except (MgenError, KeyError) as error:
        raise MgenError(f"{path} is damaged ({first_line(error)}): remove it") from error
    return TarIndex(about, **{name: tensors[name] for name in ("offsets", "sizes", "labels", "keys")})


def index_file(path: Path) -> TarIndex:
    """The index of a tar on this machine, made now."""
    about = path.stat()
    with path.open("rb", buffering=io.DEFAULT_BUFFER_SIZE) as file:
        return index_tar(file, str(path), about.st_size, about.st_mtime_ns)
