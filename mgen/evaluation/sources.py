"""Where evaluated images come from: a folder, npz files, a model that samples them, or a data set (reconstructions: reconstruction.py).

A source is read by index, `read(start, stop)`, so that several processes can share it and an interrupted evaluation can resume.
Unknown class ids are -1.
"""

import functools
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from mgen.data import FASHION_CLASSES, FashionMNIST, ImageData, center_crop, list_images, load_image, open_image
from mgen.data.folder import sort_classes
from mgen.evaluation.fashion import is_small, knows_fashion, like_samples, of_run
from mgen.evaluation.npz import LARGEST_ID, NpzImages
from mgen.evaluation.result import Facts
from mgen.pipelines.labels import LabelPlan
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.pixels import to_uint8
from mgen.pipelines.run_file import RunFile, read_run
from mgen.pipelines.shards import ShardFolder, find_shards
from mgen.utils.errors import MgenError, shown
from mgen.utils.limits import check_memory
from mgen.utils.reading import check_file
from mgen.zoo.recipes import recipe_names

Images = Tensor | Sequence[Tensor]  # uint8 (B, C, H, W), or (C, H, W) of several sizes
SHOWN = 256  # side in pixels of the examples of images of several sizes
CLASS = re.compile("class-([0-9]+)")
GRAY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")  # of Pillow's modes


@dataclass(kw_only=True)
class Batch:
    """Images start … stop of a source.

    Attributes:
        images: of one size, unless the source allows several. labels: class ids (B,). originals: of reconstructions, like `images`.
        columns: further numbers per image, (B,). totals: quantities to be summed over batches, float64.
    """

    images: Images
    labels: Tensor
    originals: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)

    def stacked(self) -> Tensor:
        """The images (B, C, H, W) of one size."""
        return self.images if isinstance(self.images, Tensor) else torch.stack(list(self.images))

    def shown(self, rows: Sequence[int]) -> Tensor:
        """Some of the images for a grid, (n, C, H, W) on the CPU; of several sizes, their middle squares."""
        if isinstance(self.images, Tensor):
            return self.images[list(rows)].cpu()
        return torch.stack([_square(self.images[i].cpu(), SHOWN) for i in rows])


@dataclass(kw_only=True)
class Source:
    """Images by index, with what a result says about them.

    Attributes:
        about: facts for the result. key: what else identifies these images, so that an evaluation resumes on the same ones only.
        ahead: whether a batch may be read while the previous one is measured. fashion: whether they are known to be images like
            Fashion-MNIST's, see mgen.evaluation.fashion.
    """

    count: int
    about: Facts
    read: Callable[[int, int], Batch]
    class_names: Sequence[str] = ()
    key: object = None
    ahead: bool = True
    fashion: bool = False

    @property
    def title(self) -> str:
        """What the images are, in a few words."""
        about = self.about
        return str(about.get("model") or about.get("path") or about.get("data") or about["kind"])


def from_folder(
    path: Path, *, channels: int | None = 3, size: int | None = None, limit: int | None = None, any_size: bool = False
) -> Source:
    """Images below a folder; class ids from names like 000012_class-0003.png. `grid.png` and animations are skipped.

    Folders of npz shards, written by `mgen sample --format npz`, can be read as well.

    Args:
        channels: 1 or 3; None: 1 if the images are gray, else 3. size: crop the middle square and resize it to this side, as ADM does;
            None: all images must have one size, unless `any_size`.
    """
    run = read_run(path)
    if find_shards(path):
        return _from_shards(path, run, size=size, limit=limit)
    files = [f for f in list_images(path) if f.stem != "grid" and not _animated(f)][:limit]
    _check_complete(path, run, len(files), limit)
    if not files:
        raise MgenError(f"{path} holds no images except a grid: run mgen sample --out {path}, or give another folder")
    labels, names = _classes(path, files)
    key = [(str(f.relative_to(path)), *_stamp(f)) for f in files]
    depth = channels or (1 if all(_is_gray(f) for f in files[:: max(1, len(files) // 20)]) else 3)
    pool = ThreadPoolExecutor(4)

    @functools.cache
    def shape() -> torch.Size:  # of the first image, read late: all options are checked before any image
        return load_image(files[0], size=size, channels=depth).shape

    def load(file: Path) -> Tensor:
        image = load_image(file, size=size, channels=depth)
        if image.shape != shape() and not any_size:
            raise MgenError(
                f"{file} differs in size from the other images: all must have one size, except with --protocol clean, which resizes each; "
                "mgen stats --image-size crops and resizes them"
            )
        return image

    def read(start: int, stop: int) -> Batch:
        images = list(pool.map(load, files[start:stop]))
        same = all(image.shape == images[0].shape for image in images)
        # If sizes may differ, examples must look alike in all batches.
        return Batch(images=torch.stack(images) if same and not any_size else images, labels=labels[start:stop])

    fashion = like_samples(path, files, run)
    return Source(
        count=len(files), about=_stored("folder", path, size), read=read, key=key, class_names=names, fashion=fashion
    )


def _classes(root: Path, files: Sequence[Path]) -> tuple[Tensor, Sequence[str]]:
    """Class ids from the names of the files, else from the subfolders they are in, whose names come second; -1 if unknown."""
    found = [CLASS.search(f.stem) for f in files]
    parts = [f.relative_to(root).parts for f in files]
    if not any(found) and all(len(p) > 1 for p in parts):
        names = sort_classes({p[0] for p in parts})
        index = {name: i for i, name in enumerate(names)}
        return torch.tensor([index[p[0]] for p in parts]), names
    for file, match in zip(files, found):
        if match and (len(match[1]) > 10 or int(match[1]) > LARGEST_ID):
            raise MgenError(f"{file.name[:60]}: a class id in a file's name is at most {LARGEST_ID}: rename the file")
    return torch.tensor([int(m[1]) if m else -1 for m in found]), ()


def _is_gray(file: Path) -> bool:
    """Whether an image holds shades of gray; loading it will tell what is wrong with it."""
    try:
        with open_image(file) as image:
            return image.mode in GRAY
    except MgenError:
        return True


def _square(image: Tensor, side: int) -> Tensor:
    """The middle square of an image (C, H, W) at `side` pixels."""
    return pil_to_tensor(center_crop(to_pil_image(image), side))


def _stored(kind: str, path: Path, size: int | None = None) -> Facts:
    """What a result says about images in files."""
    prepared = {} if size is None else {"prepared": f"center crop of {size} px (ADM's)"}
    return {"kind": kind, "path": str(path), "quantization": "as stored", **prepared}


def _from_shards(path: Path, run: RunFile | None, *, size: int | None, limit: int | None) -> Source:
    """A folder of npz shards that `mgen sample --format npz` wrote."""
    shards = ShardFolder(path)
    if size is not None and shards.read(0, 1)[0].shape[-2:] != (size, size):
        raise MgenError(
            f"{path} holds sampled images: only folders of pictures and npz files can be resized to {size} px"
        )

    def read(start: int, stop: int) -> Batch:
        images, ids = shards.read(start, stop)
        return Batch(images=images, labels=ids)

    key = [_stamp(shard.path) for shard in find_shards(path)]
    count = min(len(shards), limit or len(shards))
    return Source(count=count, about=_stored("npz shards", path), read=read, key=key, fashion=of_run(run))


def _check_complete(path: Path, run: RunFile | None, there: int, limit: int | None) -> None:
    """Raise MgenError for the folder of an unfinished run of mgen sample, unless `limit` asks for no more than is there."""
    planned = 0 if run is None else run.num_images
    if there < min(limit or planned, planned):
        raise MgenError(
            f"{path} holds {there} of the {planned} images of its run: rerun mgen sample to complete it, or measure these with "
            f"--num-images {there}"
        )


def _stamp(file: Path) -> tuple[str, int, int]:
    """Identifies a file without reading it."""
    about = check_file(file).stat()
    return file.name, about.st_size, about.st_mtime_ns


def _animated(file: Path) -> bool:
    """Whether a file is an animation that mgen sample wrote next to the numbered images."""
    suffix = file.suffix.lower()
    if suffix == ".gif" and not (file.parent / "run.json").is_file():
        return False
    if suffix not in (".png", ".gif") or "class-" in file.stem or re.fullmatch(r"\d+", file.stem):
        return False
    try:
        with open_image(file) as image:
            return bool(getattr(image, "is_animated", False))
    except MgenError:
        return False  # load_image will report what is wrong with it


def from_npz(path: Path, *, limit: int | None = None, size: int | None = None) -> Source:
    """ADM's sample files: arr_0 uint8 (N, H, W, C), optionally arr_1 class ids (N,); or the images as .npy. Read as a stream."""
    file = NpzImages(path)

    def read(start: int, stop: int) -> Batch:
        images = file.read(start, stop)
        if size is not None and images.shape[-2:] != (size, size):
            images = torch.stack([_square(image, size) for image in images])
        return Batch(images=images, labels=file.labels[start:stop])

    count = min(len(file), limit or len(file))
    about = _stored(path.suffix[1:] or "npz", path, size)
    fashion = file.shape[3] == 1 and is_small(file.shape[1:3]) and int(file.labels.max()) < len(FASHION_CLASSES)
    return Source(count=count, about=about, read=read, key=_stamp(path), fashion=fashion)


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
    classes: Sequence[int | None] = range(pipe.generator.num_classes) if pipe.conditional else [None]
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
        count=count, about=about, read=read, class_names=pipe.class_names, ahead=False, fashion=knows_fashion(pipe)
    )


def from_dataset(dataset: ImageData, *, name: str, limit: int | None = None) -> Source:
    """The images of a data set, unchanged."""

    def read(start: int, stop: int) -> Batch:
        batch = dataset.__getitems__(range(start, stop))
        return Batch(images=to_uint8(batch["image"]), labels=batch["label"])

    about: Facts = {"kind": "data", "data": name, "quantization": "round"}
    count = min(len(dataset), limit or len(dataset))
    fashion = isinstance(dataset, FashionMNIST)
    return Source(count=count, about=about, read=read, class_names=dataset.class_names, fashion=fashion)


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
