"""The sources there are: npz files, a model that samples, a data set (folders: folder_source.py; reconstructions: reconstruction.py)."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mgen.data import FASHION_CLASSES, FashionMNIST, ImageData
from mgen.evaluation.fashion import is_small, knows_fashion
from mgen.evaluation.folder_source import from_folder
from mgen.evaluation.npz import NpzImages
from mgen.evaluation.result import Facts
from mgen.evaluation.source import Batch, Source, square, stamp, stored
from mgen.pipelines.labels import LabelPlan
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.pixels import to_uint8
from mgen.utils.errors import MgenError, shown
from mgen.utils.limits import check_memory
from mgen.zoo.recipes import recipe_names


def from_npz(path: Path, *, limit: int | None = None, size: int | None = None) -> Source:
    """ADM's sample files: arr_0 uint8 (N, H, W, C), optionally arr_1 class ids (N,); or the images as .npy. Read as a stream."""
    file = NpzImages(path)

    def read(start: int, stop: int) -> Batch:
        images = file.read(start, stop)
        if size is not None and images.shape[-2:] != (size, size):
            images = torch.stack([square(image, size) for image in images])
        return Batch(images=images, labels=file.labels[start:stop])

    count = min(len(file), limit or len(file))
    about = stored(path.suffix[1:] or "npz", path, size)
    fashion = file.shape[3] == 1 and is_small(file.shape[1:3]) and int(file.labels.max()) < len(FASHION_CLASSES)
    return Source(count=count, about=about, read=read, key=stamp(path), fashion=fashion)


def from_model(
    pipe: MaskedPipeline,
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
    """Images sampled from a pipeline; nothing is written to disk.

    Args:
        plan: of the class ids: balanced, sorted or random. batch_size: images sampled at a time; in fp32 it does not change them.
    """
    if image_size is not None:
        rows, channels = min(batch_size, count), pipe.tokenizer.config.in_channels
        what = f"a batch of {rows} images of {image_size}×{image_size} pixels"
        check_memory(5.0 * rows * channels * image_size**2, what, "choose a smaller --image-size or --batch-size")
    classes: Sequence[int | None] = range(pipe.transformer.num_classes) if pipe.conditional else [None]
    label = LabelPlan(plan, classes=classes, count=count, seed=seed)

    def sample(rows: range) -> Tensor:
        ids = [label(i) for i in rows]
        images = pipe(ids, seed=seed, indices=rows, dtype=dtype, output_type="raw", progress=False).images
        return to_uint8(images, size=image_size, quantization=quantization).cpu()

    def read(start: int, stop: int) -> Batch:
        began, rows = time.perf_counter(), range(start, stop)
        images = torch.cat([sample(rows[a : a + batch_size]) for a in range(0, len(rows), batch_size)])
        seconds = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
        ids = torch.tensor([-1 if (c := label(i)) is None else c for i in rows])
        return Batch(images=images, labels=ids, totals={"seconds": seconds})

    about: Facts = {
        "kind": "model",
        "model": name,
        "seed": seed,
        "labels": plan if pipe.conditional else "none",
        "dtype": dtype,
        "sampler": pipe.sampler.settings,
        "quantization": quantization,
        "image_size": image_size,
    }
    return Source(
        count=count,
        about=about,
        read=read,
        class_names=pipe.class_names,
        ahead=False,
        fashion=knows_fashion(pipe),
        record=pipe.data,
    )


def from_dataset(
    dataset: ImageData, *, name: str, limit: int | None = None, rows: Sequence[int] | None = None
) -> Source:
    """The images of a data set, unchanged: the first `limit`, or those of `rows`."""
    chosen = range(len(dataset))[: limit or None] if rows is None else rows

    def read(start: int, stop: int) -> Batch:
        batch = dataset.__getitems__(chosen[start:stop])
        return Batch(images=to_uint8(batch["image"]), labels=batch["label"])

    about: Facts = {"kind": "data", "data": name, "quantization": "round"}
    fashion = isinstance(dataset, FashionMNIST)
    return Source(count=len(chosen), about=about, read=read, class_names=dataset.class_names, fashion=fashion)


def open_source(
    name: str,
    *,
    channels: int | None,
    split: str = "train",
    size: int | None = None,
    limit: int | None = None,
    any_size: bool = False,
) -> Source:
    """The images of `fmnist`, an npz, a .npy or a folder as a source; those in files cropped and resized to the side `size`, if given.

    Args:
        channels, any_size: of a folder's images, see `from_folder`.
    """
    path = Path(name)
    if size is not None:
        check_memory(8.0 * size * size, f"an image of {size}×{size} pixels", "choose a smaller --image-size")
    if name == "fmnist":
        if size is not None:
            raise MgenError("--image-size is for folders and npz files: fmnist has images of 32 px")
        return from_dataset(FashionMNIST(split=split), name=f"fmnist {split}", limit=limit)
    if path.suffix in (".npz", ".npy") and not path.is_dir():
        return from_npz(path, limit=limit, size=size)
    if path.is_dir():
        return from_folder(path, channels=channels, size=size, limit=limit, any_size=any_size)
    if name in recipe_names():
        raise MgenError(f"{name} is a recipe: mgen eval --recipe {name} samples and measures its model")
    raise MgenError(
        f"{shown(name)} is not a folder of images, an .npz, a .npy, `fmnist` or a model (mgen zoo lists the models)"
    )
