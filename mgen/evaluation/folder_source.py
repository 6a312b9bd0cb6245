"""Images in a folder as a source: pictures, or the npz shards of a run."""

import functools
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from mgen.data import list_images, load_image, open_image
from mgen.data.folder import sort_classes
from mgen.data.look import GRAY
from mgen.evaluation.fashion import like_samples, of_run, record_of_run
from mgen.evaluation.npz import LARGEST_ID
from mgen.evaluation.source import Batch, Source, stamp, stored
from mgen.pipelines.run_file import RunFile, read_run
from mgen.pipelines.shards import ShardFolder, find_shards
from mgen.utils.errors import MgenError

CLASS = re.compile("class-([0-9]+)")


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
    key = [(str(f.relative_to(path)), *stamp(f)) for f in files]
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
        count=len(files),
        about=stored("folder", path, size),
        read=read,
        key=key,
        class_names=names,
        fashion=fashion,
        record=record_of_run(run),
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

    key = [stamp(shard.path) for shard in find_shards(path)]
    count = min(len(shards), limit or len(shards))
    about = stored("npz shards", path)
    return Source(count=count, about=about, read=read, key=key, fashion=of_run(run), record=record_of_run(run))


def _check_complete(path: Path, run: RunFile | None, there: int, limit: int | None) -> None:
    """Raise MgenError for the folder of an unfinished run of mgen sample, unless `limit` asks for no more than is there."""
    planned = 0 if run is None else run.num_images
    if there < min(limit or planned, planned):
        raise MgenError(
            f"{path} holds {there} of the {planned} images of its run: rerun mgen sample to complete it, or measure these with "
            f"--num-images {there}"
        )


def _animated(file: Path) -> bool:
    """Whether a file is an animation that mgen sample wrote next to the numbered images."""
    suffix = file.suffix.lower()
    if suffix in (".gif", ".webp") and not (file.parent / "run.json").is_file():
        return False
    if suffix not in (".png", ".gif", ".webp") or "class-" in file.stem or re.fullmatch(r"\d+", file.stem):
        return False
    try:
        with open_image(file) as image:
            return bool(getattr(image, "is_animated", False))
    except MgenError:
        return False  # load_image will report what is wrong with it
