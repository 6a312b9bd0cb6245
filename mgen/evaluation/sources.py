"""Where evaluated images come from: a folder, an .npz, a model that draws them, or a data set (reconstructions: reconstruction.py)."""

import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mgen.data import list_images, load_image
from mgen.errors import MgenError
from mgen.evaluation.statistics import FeatureSums

# uint8 images (B, C, H, W) and class ids (B,), -1 where unknown.
Batch = tuple[Tensor, Tensor]


@dataclass(kw_only=True)
class Source:
    """Images with what a result must say of them.

    Attributes:
        more: features of all images, once they are measured → further metrics.
    """

    count: int
    about: dict[str, Any]
    batches: Iterator[Batch]
    more: Callable[[FeatureSums], dict[str, float]] | None = None


def from_folder(path: Path, *, channels: int, batch_size: int, limit: int | None) -> Source:
    """Images below a folder; class ids from names like 000012_class-0003.png. `grid.png` and animations are left out."""
    files = [f for f in list_images(path) if f.stem != "grid" and not _animated(f)][:limit]
    if not files:
        raise MgenError(
            f"{path} holds no images apart from a grid: run mgen sample --out {path}, or name another folder"
        )

    def batches() -> Iterator[Batch]:
        shape = None
        for start in range(0, len(files), batch_size):
            part = files[start : start + batch_size]
            images = [load_image(f, channels=channels) for f in part]
            shape = shape or images[0].shape
            for file, image in zip(part, images):
                if image.shape != shape:
                    raise MgenError(f"{file} has another size than the other images: all must be alike")
            found = [re.search(r"class-(\d+)", f.stem) for f in part]
            yield torch.stack(images), torch.tensor([int(m[1]) if m else -1 for m in found])

    return Source(
        count=len(files), about={"kind": "folder", "path": str(path), "quantisation": "as stored"}, batches=batches()
    )


def _animated(file: Path) -> bool:
    """Whether a PNG beside the numbered images is an animation that mgen sample wrote."""
    if file.suffix.lower() != ".png" or "class-" in file.stem:
        return False
    try:
        with Image.open(file) as image:
            return getattr(image, "n_frames", 1) > 1
    except (OSError, SyntaxError, ValueError):
        return False  # load_image will say what is wrong with it


def from_npz(path: Path, *, batch_size: int, limit: int | None) -> Source:
    """ADM's sample files: arr_0 uint8 (N, H, W, C), optionally arr_1 class ids (N,)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "arr_0" not in file.files:
                raise MgenError(f"{path} has no arr_0 with images, only {', '.join(file.files)}")
            images = file["arr_0"][:limit]
            labels = file["arr_1"][:limit] if "arr_1" in file.files else np.full(len(images), -1)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, MgenError):
            raise
        raise MgenError(f"cannot read {path} ({error}): expected an .npz with arr_0") from error
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3):
        raise MgenError(f"{path}: arr_0 is {images.dtype} {images.shape}, expected uint8 (N, H, W, C) with C = 1 or 3")
    if not len(images):
        raise MgenError(f"{path}: arr_0 holds no images")

    def batches() -> Iterator[Batch]:
        for start in range(0, len(images), batch_size):
            part = torch.from_numpy(images[start : start + batch_size]).permute(0, 3, 1, 2)
            yield part, torch.from_numpy(labels[start : start + batch_size].astype(np.int64))

    return Source(
        count=len(images), about={"kind": "npz", "path": str(path), "quantisation": "as stored"}, batches=batches()
    )


def from_model(
    pipe: Any,
    *,
    name: str,
    count: int,
    batch_size: int,
    seed: int,
    dtype: str,
    steps: int | None = None,
    guidance: float | None = None,
) -> Source:
    """Images drawn from a pipeline, classes in turn (none, if it knows none); nothing is written to disk."""
    classes = [i % pipe.generator.num_classes if pipe.conditional else None for i in range(count)]
    sampler = pipe.sampler.override(steps=steps, guidance=guidance)

    def batches() -> Iterator[Batch]:
        for start in range(0, count, batch_size):
            part = classes[start : start + batch_size]
            indices = range(start, start + len(part))
            images = pipe(
                part, seed=seed, indices=indices, sampler=sampler, dtype=dtype, output_type="uint8", progress=False
            ).images
            yield images, torch.tensor([-1 if c is None else c for c in part])

    about = {
        "kind": "model",
        "model": name,
        "seed": seed,
        "dtype": dtype,
        "sampler": sampler.settings,
        "quantisation": "round",
    }
    return Source(count=count, about=about, batches=batches())


def from_dataset(dataset: Any, *, name: str, batch_size: int, limit: int | None) -> Source:
    """The images of a data set as they are."""
    count = min(len(dataset), limit or len(dataset))

    def batches() -> Iterator[Batch]:
        from mgen.pipeline import to_uint8

        for start in range(0, count, batch_size):
            batch = dataset.__getitems__(range(start, min(start + batch_size, count)))
            yield to_uint8(batch["image"]), batch["label"]

    return Source(count=count, about={"kind": "data", "data": name, "quantisation": "round"}, batches=batches())
