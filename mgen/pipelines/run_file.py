"""run.json: what a folder of sampled images says about how they were made."""

import re
from pathlib import Path
from typing import Any, Literal

from mgen.utils.reading import check_file, read_json
from mgen.utils.schema import Count, Natural, Size, Text, build, schema

FORMATS = ("png", "npz")
QUANTIZATIONS = ("round", "half-up", "truncate")
PRECISIONS = ("fp32", "bf16", "fp16")
ANIMATIONS = {".gif": "GIF", ".png": "PNG", ".webp": "WEBP"}  # suffix → Pillow's name of the format
# Names of the files that hold images.
IMAGE = re.compile(r"(\d{6,})(?:_class-\d{4,})?\.png")
SHARD = re.compile(r"images-(\d{6,})-(\d{6,})\.npz")


@schema(extra=True)
class RunFile:
    """The contents of a run.json; what it leaves out has the default. Files of other commands of that name hold other keys besides.

    Args:
        num_images: images of the complete run. model: as it was named. weights_sha256, model_sha256: see mgen.zoo.identity; older
            versions wrote the first alone. guide, guide_sha256: a guide as it was named, and its model_sha256.
        Others: see mgen.pipelines.runs.Run.
    """

    num_images: Count
    model: Text | None = None
    weights_sha256: Text | None = None
    model_sha256: Text | None = None
    guide: Text | None = None
    guide_sha256: Text | None = None
    sampler: dict[str, Any] | None = None
    seed: int = 0
    classes: tuple[Natural | None, ...] = ()
    labels: Literal["balanced", "sorted", "random"] = "balanced"
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    format: Literal["png", "npz"] = "png"
    shard_size: Count | None = None
    image_size: Size | None = None
    quantization: Literal["round", "half-up", "truncate"] = "round"


def read_run(folder: str | Path) -> RunFile | None:
    """What run.json in a folder says, None if there is none; MgenError if it is damaged."""
    file = Path(folder) / "run.json"
    if not file.exists() and not file.is_symlink():
        return None
    return build(RunFile, read_json(check_file(file)), f"{file}: ")
