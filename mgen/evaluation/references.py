"""What images are compared with: statistics files, images to be measured first, or a file with both."""

from collections.abc import Sequence
from pathlib import Path

from mgen.data import list_images
from mgen.data.look import look_at
from mgen.evaluation.extractors import Extractor, any_size
from mgen.evaluation.feature_files import begin
from mgen.evaluation.measure import ALONE, Workers, measure
from mgen.evaluation.protocols import PUBLISHED
from mgen.evaluation.sources import open_source
from mgen.evaluation.statistics import BUILTIN, Reference, builtin_file, load_statistics, sha256_of
from mgen.pipelines.shards import find_shards
from mgen.utils.arrays import npz_names
from mgen.utils.errors import MgenError


def has_several_sizes(folder: Path) -> bool:
    """Whether the images in a folder differ in size, by a look at some of them."""
    return not find_shards(folder) and look_at(list_images(folder)).sizes > 1


def find_reference(
    name: str | None,
    extractor: Extractor,
    *,
    builtin: bool = False,
    images: bool = False,
    side: int | None = None,
    batch_size: int = 100,
    folder: Path | None = None,
    workers: Workers = ALONE,
) -> Reference | None:
    """The reference of this name; None for "none", and in all processes but the first if images were measured.

    Args:
        name: fmnist-train, fmnist-test, a statistics file, an npz, a .npy or a folder of images, or "none".
        builtin: whether a missing name means fmnist-train. images: whether features of single images are needed as well, for
            precision, recall and the kernel distance.
        side: in pixels, to which images in a folder are cropped if they have several sizes, as those of the compared images.
        folder: where to keep measured features until the evaluation is done.
    """
    name = name or ("fmnist-train" if builtin else "none")
    if name == "none":
        return None
    if name in BUILTIN:
        return load_statistics(builtin_file(name), extractor)
    if name == "fmnist" and not Path(name).exists():
        raise MgenError("--reference fmnist: name the split, fmnist-train or fmnist-test")
    path, found = Path(name), None
    arrays = npz_names(path) if path.suffix == ".npz" and path.is_file() else []
    if not path.is_dir() and path.suffix != ".npy" and (not arrays or "mu" in arrays):
        found = load_statistics(path, extractor)
        if not images or found.features is not None or "arr_0" not in arrays:
            return found
    size = side if side is not None and path.is_dir() and not any_size(extractor) and has_several_sizes(path) else None
    source = open_source(name, channels=extractor.channels, size=size, any_size=any_size(extractor))
    made: Sequence[Path] = ()
    if folder is not None and workers.rank == 0:
        made = begin(folder, source, extractor, extractor.resize, reference=True, spatial=extractor.spatial_length)
    workers.wait()
    measured = measure(source, extractor, folder=folder, made=made, batch_size=batch_size, examples=0, workers=workers)
    if workers.rank > 0:
        return None  # only the first process compares
    if found is None:
        mean, cov = measured.sums().finish()
        spatial = measured.sums("spatial").finish() if "spatial" in measured.names else None
        sha256 = sha256_of(mean, cov)
        prepared = str(source.about.get("prepared", ""))
        found = Reference(
            mean=mean, cov=cov, name=name, count=measured.count, sha256=sha256, spatial=spatial, prepared=prepared
        )
    if images:  # at most as many as behind published results: memory and time grow with the square
        found.features = measured.spread(PUBLISHED)
    return found
