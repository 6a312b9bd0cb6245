"""The files of a pass: features.json says what the shards beside it are of; a shard holds the features of consecutive images.

A kept shard counts only if it has the rows and arrays that it was written with.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mgen.evaluation.extractors import Extractor
from mgen.evaluation.source import Source
from mgen.utils.changes import changes, differs
from mgen.utils.errors import MgenError, first_line
from mgen.utils.files import make_folders, write_json, write_tensors
from mgen.utils.limits import check_disk
from mgen.utils.reading import read_json
from mgen.utils.schema import Count, Text, build, schema

SHARD = 500  # images
# What every shard has, and what has one row per image.
ALWAYS = {"features", "logits", "labels"}
PER_IMAGE = (*ALWAYS, "spatial", "original", "guesses")


@schema
class FeatureRecord:
    """The contents of features.json.

    Args:
        images: facts of the source. extractor: hash of its weights. protocol: its id. key: what else identifies the images and settings.
        shard: images per shard. count: of all images.
    """

    images: dict[str, Any]
    extractor: Text
    protocol: str
    key: Text
    shard: Count
    count: Count

    def same(self, other: "FeatureRecord") -> bool:
        """Whether both are of the same images and settings, the count aside."""
        return all(
            getattr(self, name) == getattr(other, name) for name in ("images", "extractor", "protocol", "key", "shard")
        )


def read_record(file: Path) -> FeatureRecord:
    """What features.json says; MgenError if it is damaged."""
    try:
        return build(FeatureRecord, read_json(file), f"{file}: ")
    except MgenError as error:
        raise MgenError(f"{error}. Choose another --out, or remove {file.parent}") from error


def _another(folder: Path, there: FeatureRecord, own: FeatureRecord) -> MgenError:
    """The error of kept features of other images or settings, which it names."""
    named = [c for c in changes(asdict(there), asdict(own)) if c[0] not in ("key", "count", "images.command")]
    if named:
        return differs(folder, "features of an interrupted evaluation", named)
    return MgenError(
        f"{folder} holds features of an interrupted evaluation of other images, of the same names: choose another --out, or replace it "
        "with --overwrite"
    )


def begin(folder: Path, source: Source, extractor: Extractor, protocol: str, **further: object) -> list[Path]:
    """Record in the folder what its shards are of; returns the folders made for it. MgenError if it holds shards of something else."""
    if source.count < 2:
        raise MgenError(f"{source.title}: a covariance needs at least 2 images, got {source.count}")
    key = hashlib.sha256(json.dumps([source.key, further], sort_keys=True, default=str).encode()).hexdigest()
    own = FeatureRecord(
        images=json.loads(json.dumps(source.about, default=str, ensure_ascii=False).encode(errors="replace")),
        extractor=extractor.sha256,
        protocol=protocol,
        key=key,
        shard=SHARD,
        count=source.count,
    )
    check_disk(
        folder, 4 * source.count * (extractor.length + 10), f"features of {source.count} images", "measure fewer"
    )
    file = folder / "features.json"
    if file.is_file():
        there = read_record(file)
        if not own.same(there):
            raise _another(folder, there, own)
        if there.count != source.count:  # the last shard may have had another length
            remove_features(folder)
    elif folder.is_dir() and (others := [p for p in folder.iterdir() if p.suffix not in (".f32", ".safetensors")]):
        raise MgenError(
            f"{folder} is needed for features, but holds {others[0].name}: choose another --out, or rename that folder"
        )
    elif folder.is_dir():  # shards without a record of what they are of
        for path in (*folder.glob("part-*.safetensors"), *folder.glob("*.f32")):
            path.unlink()
    made = make_folders(folder)
    write_json(file, asdict(own))
    return made


def remove_features(folder: Path) -> None:
    """Delete the features in a folder, and the folder if nothing else is in it. Does nothing to folders without features."""
    if (folder / "features.json").is_file():
        for path in (*folder.glob("part-*.safetensors"), *folder.glob("*.f32"), folder / "features.json"):
            path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


def shard_file(folder: Path, start: int) -> Path:
    return folder / f"part-{start:08d}.safetensors"


def write_shard(file: Path, arrays: dict[str, Tensor]) -> None:
    """Write the arrays of a shard, with their names beside them."""
    write_tensors(file, arrays, {"arrays": " ".join(sorted(arrays))})


def damage(file: Path, rows: int, length: int, needed: set[str]) -> str:
    """Why a kept shard does not count, "" if it does: it must have what was written, what is `needed`, and `rows` features (length,)."""
    try:
        with safe_open(str(file), framework="pt") as shard:
            names, written = set(shard.keys()), (shard.metadata() or {}).get("arrays")
            if written is None:
                return "it does not say what it holds"
            if lacking := sorted((needed | ALWAYS | set(written.split())) - names):
                return f"it lacks {', '.join(lacking)}"
            shapes = {name: shard.get_slice(name).get_shape() for name in names}
            for name, shape in shapes.items():
                if (name in PER_IMAGE or name.startswith("column.")) and shape[:1] != [rows]:
                    return f"{name} has shape {tuple(shape)} for {rows} images"
            if shapes["features"] != [rows, length]:
                return f"features have shape {tuple(shapes['features'])}"
            if not torch.isfinite(shard.get_tensor("features")).all():
                return "its features are not finite"
            labels = shard.get_tensor("labels")
    except (SafetensorError, OSError) as error:
        return first_line(error, 80)
    whole = labels.dtype == torch.int64 and labels.ndim == 1 and int(labels.min()) >= -1
    return "" if whole else "its labels are no class ids"
