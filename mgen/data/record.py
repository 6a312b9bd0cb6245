"""DataRecord: what a model says about the data that it was trained on, so that it is measured against those and no others."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field

from mgen.utils.errors import MgenError, shown
from mgen.utils.files import write_json
from mgen.utils.reading import read_json
from mgen.utils.schema import Count, Natural, Share, Size, Text, build, schema

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
TRAINED_ON = "trained_on.json"
SHOWN = 8  # digits of a digest in a name
PARTS = ("train", "training", "val", "valid", "validation", "test", "images", "data")  # folders that say little


@schema(extra=True)
class DataRecord:
    """A data set, as model_index.json and trained_on.json have it.

    Args:
        name: `fmnist`, or a folder's. images: their number. class_names: in the order of the ids; empty without classes.
        image_size: pixels to which the images were cropped. channels: 3 RGB, 1 gray. digest: of the listing of a folder (names and
            sizes of its images), or of the images and labels of Fashion-MNIST.
    """

    name: Text
    images: Count
    class_names: tuple[Text, ...] = ()
    image_size: Size
    channels: Annotated[int, Field(ge=1, le=4)]
    digest: Digest

    def same(self, other: "DataRecord | None") -> bool:
        """Whether both are of the same images, at whatever size."""
        return other is not None and self.digest == other.digest

    def __str__(self) -> str:
        return f"{self.name} (data {self.digest[:SHOWN]})"


@schema(extra=True)
class TrainedOn:
    """trained_on.json in the folder of a network: its data, the images of them it was trained on, and how well it does on others.

    Args:
        images: trained on. held_out: used for validation. accuracy: of a classifier on those; None if there are none.
    """

    data: DataRecord
    images: Count
    held_out: Natural = 0
    accuracy: Share | None = None


def write_trained_on(folder: Path, about: TrainedOn) -> None:
    """Write trained_on.json into the folder of a network."""
    write_json(folder / TRAINED_ON, asdict(about))


def read_trained_on(folder: Path) -> TrainedOn | None:
    """What trained_on.json in a folder says, None if there is none; MgenError if it is damaged."""
    file = folder / TRAINED_ON
    return build(TrainedOn, read_json(file), f"{file}: ") if file.exists() else None


@runtime_checkable
class RecordedData(Protocol):
    """Data that know their record; None where an older file holds none."""

    @property
    def record(self) -> DataRecord | None: ...


def record_of(data: object) -> DataRecord | None:
    """The record of a data set, None if it has none."""
    return data.record if isinstance(data, RecordedData) else None


def read_record(data: object, where: str) -> DataRecord | None:
    """A record, or one from its entries; MgenError that names `where` for anything else."""
    if data is None or isinstance(data, DataRecord):
        return data
    if not isinstance(data, Mapping):
        raise MgenError(f"{where} is {shown(data)}: expected a DataRecord, its entries, or None")
    return build(DataRecord, data, f"{where}.")


def folder_name(root: Path) -> str:
    """What to call a folder of images: its name, with the one above if that alone says little, such as `photos/train`."""
    path = Path(os.path.abspath(root))
    name = f"{path.parent.name}/{path.name}" if path.name in PARTS and path.parent.name else path.name
    return os.fsencode(name).decode(errors="replace").strip() or "images"


def listing_digest(root: Path, files: Sequence[Path]) -> str:
    """SHA-256 of names below `root` and sizes of files, in this order; the same wherever the folder lies."""
    return _digest((os.fsencode(file.relative_to(root)), _size(file)) for file in files)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise MgenError(f"cannot read {file} ({error.strerror}): run the command again") from error


def _digest(entries: Iterable[tuple[bytes, int]]) -> str:
    digest = hashlib.sha256()
    for name, size in entries:
        digest.update(b"%s\0%d\n" % (name, size))
    return digest.hexdigest()
