"""Which images are Fashion-MNIST's, or of a model trained on it: only those are measured against it, and by its classifier, by default.

A model tells by the record of its data; one of earlier versions by the names of its classes and the size of its images; a run by its
model; images alone by their size and the names that `mgen sample` gives to files.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from mgen.data import FASHION_CLASSES, DataRecord, open_image
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.run_file import RunFile
from mgen.pipelines.saved import ClassNames, find_record
from mgen.utils.errors import MgenError
from mgen.utils.hub import HubOptions
from mgen.utils.reading import read_json
from mgen.utils.schema import build, schema
from mgen.zoo import resolve
from mgen.zoo.identity import identity

SIDES = (28, 32)  # in pixels, as published and as padded here
_SAMPLE = re.compile(r"[0-9]{6,}(_class-000[0-9])?\.png")  # what mgen sample calls images of ten classes

# What to do where a reference has no default.
CLASSIFIER = "the folder of a classifier of your data (mgen train --config classifier --data DATA makes one)"
MEASURE = f"name what to measure with, a --protocol with Inception such as torch-fidelity, or --extractor, {CLASSIFIER}"
HOW = f"{MEASURE}; and what to compare with, --reference FOLDER of images or FILE (of mgen stats), or none"
# SHA-256 of the images and labels of its training and test split, see DataRecord.
DIGESTS = (
    "57a2b6bf4b8765263f60b3ec4eba35d846bfc658105661ce0e4bb3d5c7d190e5",
    "f24cf301b160abd47850a2434112a8d30edf9ad82607c27a849f98e1ea756a55",
)


def is_small(sides: Sequence[int]) -> bool:
    """Whether height and width are Fashion-MNIST's."""
    return len(sides) == 2 and sides[0] == sides[1] and sides[0] in SIDES


def knows_fashion(pipe: MaskedPipeline) -> bool:
    """Whether a pipeline was trained on Fashion-MNIST, by its record; without one: ten classes with its names, gray images of its size."""
    if pipe.data is not None:
        return pipe.data.digest in DIGESTS
    config = pipe.tokenizer.config
    names, side, channels = pipe.class_names, config.get("image_size"), config.get("in_channels")
    return tuple(names) == FASHION_CLASSES and side in SIDES and channels == 1


def require_fashion(pipe: object, name: str, how: str) -> None:
    """Raise MgenError unless the pipeline called `name` was trained on Fashion-MNIST; `how`: what to give then."""
    if not isinstance(pipe, MaskedPipeline) or not knows_fashion(pipe):
        raise MgenError(
            f"{name} is not known to be trained on Fashion-MNIST ({_why(pipe)}), so it is not compared with it by default: give {how}"
        )


def _why(pipe: object) -> str:
    if isinstance(pipe, MaskedPipeline) and pipe.data is not None:
        return f"its data are {pipe.data}"
    return "its classes have other names, or its images another size"


@schema(extra=True)
class _Index:
    class_names: ClassNames | None = None
    data: DataRecord | None = None


@schema(extra=True)
class _Tokenizer:
    in_channels: int | None = None
    image_size: int | None = None


def of_run(run: RunFile | None) -> bool:
    """Whether a run's model, if it is still where the run says, was trained on Fashion-MNIST."""
    if run is None or run.model is None or run.image_size not in (None, *SIDES):
        return False
    try:
        folder = _model_of(run)
        index, config = folder / "model_index.json", folder / "tokenizer" / "config.json"
        found, tokenizer = build(_Index, read_json(index)), build(_Tokenizer, read_json(config))
    except MgenError:  # moved, removed or damaged: nothing is known of it
        return False
    if found.data is not None:
        return found.data.digest in DIGESTS
    return found.class_names == FASHION_CLASSES and tokenizer.image_size in SIDES and tokenizer.in_channels == 1


def record_of_run(run: RunFile | None) -> DataRecord | None:
    """The data of a run's model, if it is still where the run says and tells."""
    if run is None or run.model is None:
        return None
    try:
        return find_record(_model_of(run))
    except MgenError:
        return None


def _model_of(run: RunFile) -> Path:
    """The folder of a run's model on this machine: a name in a file is no reason to ask the hub.

    Raises:
        MgenError: it is not here, or another one is at its path.
    """
    assert run.model is not None  # callers have checked
    folder = resolve(run.model, hub=HubOptions(local_files_only=True))
    if run.model_sha256 is not None and identity(folder).model_sha256 != run.model_sha256:
        raise MgenError(f"{folder} holds another model than the one that sampled the images")
    return folder


def like_samples(root: Path, files: Sequence[Path], run: RunFile | None) -> bool:
    """Whether images in files come from a model of Fashion-MNIST, by their run, or by names, size and shades of gray without one."""
    if run is not None:
        return of_run(run)
    if not all(f.parent == root and _SAMPLE.fullmatch(f.name) for f in files):
        return False
    return all(map(_small_and_gray, files[:: max(1, len(files) // 20)]))


def _small_and_gray(file: Path) -> bool:
    try:
        with open_image(file) as image:
            return image.mode == "L" and is_small(image.size)
    except MgenError:  # loading it will tell
        return False
