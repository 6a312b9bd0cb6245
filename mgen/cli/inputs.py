"""What the measuring commands take: images by name, references by name, numbers of an option."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from mgen.utils.errors import MgenError


def numbers(text: str, option: str, kind: type) -> list[Any]:
    """Numbers above zero, parted by commas."""
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise MgenError(f"{option} {text!r}: expected numbers parted by commas, such as 16,64") from error
    if not all(0 < number < float("inf") for number in found):
        raise MgenError(f"{option} {text!r}: the numbers must be above zero")
    return found


def open_source(
    name: str, *, channels: int, split: str = "train", size: int | None = None, limit: int | None = None
) -> Any:
    """The images that `fmnist`, an npz or a folder holds, as a source.

    Args:
        size: side in pixels that folders and npz files are cut and brought to; None: as they are.
    """
    from mgen.data import FashionMNIST
    from mgen.evaluation import sources

    path = Path(name)
    if name == "fmnist" and size is not None:
        raise MgenError("--image-size is for folders and npz files: fmnist has images of 32 px")
    if name == "fmnist":
        return sources.from_dataset(FashionMNIST(split=split), name=f"fmnist {split}", limit=limit)
    if path.suffix == ".npz":
        if not path.is_file():
            raise MgenError(f"no such file: {path}")
        return sources.from_npz(path, limit=limit, size=size)
    if path.is_dir():
        return sources.from_folder(path, channels=channels, size=size, limit=limit)
    from mgen.zoo.recipes import recipe_names

    if name in recipe_names():
        raise MgenError(f"{name} is a recipe: mgen eval --recipe {name} draws and measures its model")
    raise MgenError(
        f"{name} is neither a folder of images, nor an .npz, nor `fmnist`, nor a model (mgen zoo lists them)"
    )


def find_reference(
    name: str | None,
    extractor: Any,
    *,
    builtin: bool = False,
    images: int = 0,
    batch_size: int = 100,
    folder: Path | None = None,
    **shared: Any,
) -> Any:
    """What to compare with: statistics, images that are measured first, or a file with both; None if there is nothing.

    Args:
        name: fmnist-train, fmnist-test, a statistics file, an npz or a folder of images, or none. builtin: whether no name means
            fmnist-train. images: features of so many single images are needed too, for precision, recall and the kernel distance.
        folder: where measured features are kept while measuring. shared: rank, world and wait of the processes that take part.
    """
    from mgen.evaluation.measure import begin, measure
    from mgen.evaluation.npz import npz_names
    from mgen.evaluation.protocols import PUBLISHED
    from mgen.evaluation.statistics import (
        BUILTIN,
        Reference,
        builtin_file,
        load_statistics,
        sha256_of,
        spread_features,
    )

    name = name or ("fmnist-train" if builtin else "none")
    if name == "none":
        return None
    if name in BUILTIN:
        return load_statistics(builtin_file(name), extractor)
    path, found = Path(name), None
    arrays = npz_names(path) if path.suffix == ".npz" and path.is_file() else []
    if not path.is_dir() and (not arrays or "mu" in arrays):
        found = load_statistics(path, extractor)
        if not images or found.features is not None or "arr_0" not in arrays:
            return found
    source = open_source(name, channels=extractor.channels)
    if folder is not None and not shared.get("rank"):
        begin(folder, source, extractor, extractor.resize, reference=True, spatial=extractor.spatial_length)
    if shared.get("wait"):
        shared["wait"]()
    measured = measure(source, extractor, examples=0, batch_size=batch_size, folder=folder, **shared)
    if shared.get("rank"):
        return None  # the first process alone compares
    # As many as the images of a published figure; more would take memory and time by their square.
    features = spread_features(measured, PUBLISHED) if images else None
    if found is not None:
        found.features = features
        return found
    mean, cov = measured.sums().finish()
    spatial = measured.sums("spatial").finish() if "spatial" in measured.names else None
    digest = sha256_of(mean, cov)
    return Reference(
        mean=mean, cov=cov, name=name, count=source.count, sha256=digest, features=features, spatial=spatial
    )


def chosen_rows(data: Any, args: Namespace) -> range:
    """The first --num-images of fmnist; of a folder, where classes follow each other, evenly spread ones."""
    most = min(args.num_images or len(data), len(data))
    return range(0, len(data), 1 if args.path == "fmnist" else len(data) // most)[:most]
