"""The files of a pass: features.json says what the shards beside it are of; a shard holds the features of consecutive images.

A kept shard counts only if it has the rows and arrays that it was written with.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mgen.utils.errors import MgenError, first_line
from mgen.utils.files import write_tensors
from mgen.utils.reading import read_json
from mgen.utils.schema import Count, Text, build, schema

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
