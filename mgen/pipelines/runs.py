"""Folders of runs: run.json with the settings, and images named by index and class, or shards of them.

Resuming with other settings raises an error, as do images in the folder that don't belong to the run. Files are written under a
temporary name and renamed, so a file that exists is complete.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from mgen.pipelines.labels import LabelPlan
from mgen.pipelines.run_file import FORMATS, IMAGE, QUANTIZATIONS, SHARD, read_run
from mgen.pipelines.shards import find_shards, shard_name
from mgen.utils.changes import changes, differs
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.files import write_json
from mgen.utils.reading import read_json

# Values of settings that run.json leaves out.
DEFAULTS = {"labels": "balanced", "format": "png", "image_size": None, "quantization": "round"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of a run besides the pipeline's, and its folder.

    Attributes:
        labels: class of every image; also the number of images and the seed.
        dtype: "fp32", "bf16" or "fp16" of the generator.
        format: "png", a file per image, or "npz", a file per `shard_size` images.
        image_size, quantization: side that images are resized to, and conversion to bytes; see mgen.pipelines.pixels.
    """

    out: Path
    labels: LabelPlan
    dtype: str = "fp32"
    format: str = "png"
    shard_size: int = 1000
    image_size: int | None = None
    quantization: str = "round"

    def __post_init__(self) -> None:
        check_choice("--format", self.format, FORMATS)
        check_choice("--quantization", self.quantization, QUANTIZATIONS)

    @property
    def count(self) -> int:
        return self.labels.count

    @property
    def spans(self) -> "Spans":
        """First image of every file, and the one after its last."""
        return Spans(range(0, self.count, self.shard_size if self.format == "npz" else 1), self.count)

    def settings(self) -> dict[str, Any]:
        """For run.json."""
        own: dict[str, Any] = {
            "seed": self.labels.seed,
            "classes": list(self.labels.classes),
            "labels": self.labels.name,
            "num_images": self.count,
            "dtype": self.dtype,
            "format": self.format,
        }
        if self.format == "npz":
            own["shard_size"] = self.shard_size
        changed = {"image_size": self.image_size, "quantization": self.quantization}
        return own | {key: value for key, value in changed.items() if value != DEFAULTS[key]}

    def file(self, start: int, stop: int) -> str:
        """File name of a span."""
        return shard_name(start, stop) if self.format == "npz" else image_name(start, self.labels(start))

    def ids(self, start: int, stop: int) -> Iterator[int]:
        """Class ids of images start … stop - 1, -1 for none."""
        return (-1 if c is None else c for c in map(self.labels, range(start, stop)))


def spans(start: int, stop: int, size: int) -> "Spans":
    """start … stop - 1 in parts of `size`, the last one possibly smaller."""
    return Spans(range(start, stop, size), stop)


class Spans(Sequence[tuple[int, int]]):
    """Parts of a run: first index of each, and the one after its last. A run of any length takes no memory.

    Args:
        starts: the first indices; their step is the size of a part. stop: of the last part.
    """

    def __init__(self, starts: range, stop: int, size: int | None = None) -> None:
        self.starts, self.stop, self.size = starts, stop, size or starts.step

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, index: slice) -> "Spans": ...
    def __getitem__(self, index: int | slice) -> "tuple[int, int] | Spans":
        if isinstance(index, slice):
            return Spans(self.starts[index], self.stop, self.size)
        start = self.starts[index]
        return start, min(start + self.size, self.stop)

    @property
    def total(self) -> int:
        """Indices in all parts together."""
        return len(self) * self.size - max(0, self.starts[-1] + self.size - self.stop) if self.starts else 0


def image_name(index: int, label: int | None) -> str:
    """File name of an image: `000012_class-0003.png`, or `000012.png` without a class."""
    return f"{index:06d}.png" if label is None else f"{index:06d}_class-{label:04d}.png"


def begin_run(out: Path, settings: dict[str, Any]) -> None:
    """Create the folder and write run.json, or check that the existing one is of the same run; MgenError if it is not."""
    check_run(out, settings)
    write_json(out / "run.json", settings)


def check_run(out: Path, settings: dict[str, Any], *, defaults: Mapping[str, Any] | None = None) -> None:
    """Raise MgenError if the folder has a run.json of another run; `defaults`: values of settings that it may leave out."""
    file, defaults = out / "run.json", defaults or {}
    if not file.exists() and not file.is_symlink():
        return
    now, there = json.loads(json.dumps(settings)), read_json(file)
    if not isinstance(there, dict):
        raise MgenError(f"{file} does not describe a run: choose another --out, or remove the folder")
    skipped = {"num_images", "model"}  # the same weights may be at another path, and a run may be extended
    if "model_sha256" not in there:  # of an older version, which knew a model by its weights
        skipped.add("model_sha256")
    if there.get("guide_sha256") == now.get("guide_sha256"):
        skipped.add("guide")
    keys = sorted((now.keys() | there.keys()) - skipped)
    sides = [(key, there.get(key, defaults.get(key)), now.get(key, defaults.get(key))) for key in keys]
    if found := [change for key, old, new in sides for change in changes(old, new, key)]:
        raise differs(out, "a run", found)
    if settings.get("labels") == "sorted" and there.get("num_images") != settings["num_images"]:
        raise MgenError(
            f"{out} holds a run of {there.get('num_images')} images in sorted classes, now {settings['num_images']}: with --labels "
            "sorted the class of an image depends on their number; choose another --out, or replace it with --overwrite"
        )


def begin_images(run: Run, about: Mapping[str, Any]) -> None:
    """Start or resume: check that the folder's files are of this run, remove leftovers of killed processes, write run.json.

    Args:
        about: settings for run.json besides those of `run`: model, weights, sampler.

    Raises:
        MgenError: another run, or images that don't belong to this one; nothing is changed then.
    """
    settings = {**about, **run.settings()}
    check_run(run.out, settings, defaults=DEFAULTS)
    read_run(run.out)  # raises for what a run can't be
    names = names_in(run.out)
    _check_files(run, names)
    remove_leftovers(run.out, r"\d{6,}(_class-\d{4,})?\.png|images-\d{6,}-\d{6,}\.npz|grid\.png|run\.json")
    longest = {shard.path.name for shard in find_shards(run.out)}
    for name in names:
        if SHARD.fullmatch(name) and name not in longest:
            (run.out / name).unlink(missing_ok=True)  # killed between writing a longer last shard and this
    write_json(run.out / "run.json", settings)


def _check_files(run: Run, names: set[str]) -> None:
    """Raise MgenError for an image or a shard that, by its name, is not of this run."""
    last = -1
    for name in sorted(names):
        image, shard = IMAGE.fullmatch(name), SHARD.fullmatch(name)
        if not image and not shard:
            continue
        if "run.json" not in names:
            raise MgenError(
                f"{run.out} holds {name} but no run.json that says how it was made: choose another --out, or remove the images"
            )
        if bool(image) != (run.format == "png"):
            raise MgenError(f"{run.out} holds {name}, no file of this run (--format {run.format}): remove it")
        wrong = ""
        if image:
            start = stop = int(image[1])
            if start < run.count and name != run.file(start, start + 1):
                wrong = f"it is {run.file(start, start + 1)}"
        elif shard:
            start, stop = int(shard[1]), int(shard[2])
            if start % run.shard_size or not start <= stop < start + run.shard_size:
                wrong = f"shards are of {run.shard_size}"
        if wrong:
            raise MgenError(
                f"{run.out} holds {name}, but in this run {wrong}: remove it, choose another --out, or --overwrite all"
            )
        last = max(last, stop)
    if last >= run.count:
        raise MgenError(
            f"{run.out} holds images up to number {last}, this run ends with {run.count - 1}: ask for --num-images {last + 1} or more, "
            "choose another --out, or replace them with --overwrite"
        )


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Delete temporary files of killed processes (see mgen.utils.files.atomic_path) for files whose names match."""
    for name in names_in(folder):
        if re.fullmatch(rf"\.({pattern})\.\d+\.tmp\.\w+", name):
            with suppress(OSError):  # harmless; a read-only folder is noticed on writing
                (folder / name).unlink()


def names_in(folder: Path) -> set[str]:
    """Names in a folder, none if it doesn't exist; one listing is faster than 50,000 queries."""
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise MgenError(
            f"cannot read {folder} ({error.strerror}): check permissions, or choose another --out"
        ) from error
