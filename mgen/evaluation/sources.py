"""Where evaluated images come from: a folder, npz files, a model that draws them, or a data set (reconstructions: reconstruction.py).

A source is read by index, `read(start, stop)`, so that several processes share one and an interrupted measurement goes on. Class ids
are -1 where unknown.
"""

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mgen.data import center_crop, list_images, load_image
from mgen.evaluation.npz import NpzImages
from mgen.utils.errors import MgenError
from mgen.utils.files import read_json


@dataclass(kw_only=True)
class Batch:
    """Images start … stop of a source.

    Attributes:
        images: uint8 (B, C, H, W). labels: class ids (B,). originals: of reconstructions, uint8 as `images`.
        columns: further numbers of each image, (B,). totals: what adds up over batches, float64.
    """

    images: Tensor
    labels: Tensor
    originals: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)


@dataclass(kw_only=True)
class Source:
    """Images by index, with what a result must say of them.

    Attributes:
        about: what is said in a result. key: what else tells these images from others, for going on with a measurement.
        ahead: whether reading a batch may overlap with measuring the one before it.
    """

    count: int
    about: dict[str, Any]
    read: Callable[[int, int], Batch]
    class_names: Sequence[str] = ()
    key: Any = None
    ahead: bool = True


def from_folder(
    path: Path, *, channels: int = 3, size: int | None = None, limit: int | None = None, threads: int = 4
) -> Source:
    """Images below a folder; class ids from names like 000012_class-0003.png. `grid.png` and animations are left out.

    A folder of npz shards that `mgen sample --format npz` wrote is read too.

    Args:
        size: cut the middle square and bring it to so many pixels, as ADM does; None: all must be alike.
        threads: that decode files.
    """
    from mgen.pipelines.shards import ShardFolder, find_shards

    if find_shards(path):
        shards = ShardFolder(path)
        if size is not None and shards.read(0, 1)[0].shape[-2:] != (size, size):
            raise MgenError(
                f"{path} holds images that were drawn: only folders of pictures and npz files are brought to {size} px"
            )
        count = min(len(shards), limit or len(shards))

        def stored(start: int, stop: int) -> Batch:
            images, ids = shards.read(start, stop)
            return Batch(images=images, labels=ids)

        told = {"kind": "npz shards", "path": str(path), "quantization": "as stored"}
        return Source(count=count, about=told, read=stored, key=[_stamp(s.path) for s in find_shards(path)])
    files = [f for f in list_images(path) if f.stem != "grid" and not _animated(f)][:limit]
    if (path / "run.json").is_file():
        run = read_json(path / "run.json")
        planned = run.get("num_images", 0) if isinstance(run, dict) else 0
        if len(files) < min(limit or planned, planned):
            raise MgenError(
                f"{path} holds {len(files)} of the {planned} images of its run: run the same mgen sample again, or measure what is "
                f"there with --num-images {len(files)}"
            )
    if not files:
        raise MgenError(
            f"{path} holds no images apart from a grid: run mgen sample --out {path}, or name another folder"
        )
    found = [re.search(r"class-(\d+)", f.stem) for f in files]
    labels = torch.tensor([int(m[1]) if m else -1 for m in found])
    pool = ThreadPoolExecutor(threads)

    @cache
    def shape() -> torch.Size:
        return load_image(files[0], size=size, channels=channels).shape

    def load(file: Path) -> Tensor:
        image = load_image(file, size=size, channels=channels)
        if image.shape != shape():
            raise MgenError(f"{file} has another size than the other images: all must be alike")
        return image

    def read(start: int, stop: int) -> Batch:
        return Batch(images=torch.stack(list(pool.map(load, files[start:stop]))), labels=labels[start:stop])

    about: dict[str, Any] = {"kind": "folder", "path": str(path), "quantization": "as stored"}
    if size is not None:
        about["prepared"] = f"center crop of {size} px (ADM's)"
    key = [(str(f.relative_to(path)), *_stamp(f)) for f in files]
    return Source(count=len(files), about=about, read=read, key=key)


def _stamp(file: Path) -> tuple[str, int, int]:
    """What tells a file from others without reading it."""
    return file.name, file.stat().st_size, file.stat().st_mtime_ns


def _animated(file: Path) -> bool:
    """Whether a PNG beside the numbered images is an animation that mgen sample wrote."""
    if file.suffix.lower() != ".png" or "class-" in file.stem or re.fullmatch(r"\d+", file.stem):
        return False
    try:
        with Image.open(file) as image:
            return getattr(image, "n_frames", 1) > 1
    except (OSError, SyntaxError, ValueError):
        return False  # load_image will say what is wrong with it


def from_npz(path: Path, *, limit: int | None = None, size: int | None = None) -> Source:
    """ADM's sample files: arr_0 uint8 (N, H, W, C), optionally arr_1 class ids (N,); read as a stream, never whole."""
    file = NpzImages(path)
    count = min(len(file), limit or len(file))

    def read(start: int, stop: int) -> Batch:
        images = file.read(start, stop)
        if size is not None and images.shape[-2:] != (size, size):
            images = torch.stack([_cropped(image, size) for image in images])
        return Batch(images=images, labels=file.labels[start:stop])

    about: dict[str, Any] = {"kind": "npz", "path": str(path), "quantization": "as stored"}
    if size is not None:
        about["prepared"] = f"center crop of {size} px (ADM's)"
    return Source(count=count, about=about, read=read, key=_stamp(path))


def _cropped(image: Tensor, size: int) -> Tensor:
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    return pil_to_tensor(center_crop(to_pil_image(image), size))


def from_model(
    pipe: Any,
    *,
    name: str,
    count: int,
    seed: int,
    batch_size: int = 100,
    dtype: str = "fp32",
    plan: str = "balanced",
    image_size: int | None = None,
    quantization: str = "round",
) -> Source:
    """Images drawn from a pipeline by its sampler; nothing is written to disk.

    Args:
        plan: of the class ids: balanced, sorted or random. batch_size: images drawn at a time; it changes nothing in fp32.
    """
    from mgen.pipelines.labels import label_plan
    from mgen.pipelines.pipeline import to_uint8

    classes: Sequence[int | None] = range(pipe.generator.num_classes) if pipe.conditional else [None]
    label = label_plan(plan, classes=classes, count=count, seed=seed)
    plain = image_size is None and quantization == "round"

    def draw(start: int, stop: int) -> Tensor:
        images = pipe(
            [label(i) for i in range(start, stop)],
            seed=seed,
            indices=range(start, stop),
            dtype=dtype,
            output_type="uint8" if plain else "raw",
            progress=False,
        ).images
        if plain:
            return images.cpu()
        return to_uint8(images, size=image_size, quantization=quantization).cpu()

    def read(start: int, stop: int) -> Batch:
        began = time.perf_counter()
        images = torch.cat([draw(a, min(a + batch_size, stop)) for a in range(start, stop, batch_size)])
        labels = [label(i) for i in range(start, stop)]
        seconds = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
        ids = torch.tensor([-1 if c is None else c for c in labels])
        return Batch(images=images, labels=ids, totals={"seconds": seconds})

    about = {
        "kind": "model",
        "model": name,
        "seed": seed,
        "labels": plan if pipe.conditional else "none",
        "dtype": dtype,
        "sampler": pipe.sampler.settings,
        "quantization": quantization,
        "image_size": image_size,
    }
    return Source(count=count, about=about, read=read, class_names=pipe.class_names, ahead=False)


def from_dataset(dataset: Any, *, name: str, limit: int | None = None) -> Source:
    """The images of a data set as they are."""
    from mgen.pipelines.pipeline import to_uint8

    def read(start: int, stop: int) -> Batch:
        batch = dataset.__getitems__(range(start, stop))
        return Batch(images=to_uint8(batch["image"]), labels=batch["label"])

    about = {"kind": "data", "data": name, "quantization": "round"}
    names = getattr(dataset, "class_names", ())
    return Source(count=min(len(dataset), limit or len(dataset)), about=about, read=read, class_names=names)
