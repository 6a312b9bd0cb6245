"""A look at a folder of images before anything is trained: classes, sizes, channels, and what is odd about them."""

import hashlib
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from mgen.data.folder import ClassRule, ImageFolder
from mgen.data.image_files import open_image
from mgen.data.look import GRAY
from mgen.utils.errors import MgenError, one_line

MOST_HEADERS = 50_000  # files whose size is read, and compared with others for copies
MOST_PIXELS = 5_000  # files whose pixels are read
TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")
LONG = 2.0  # longer side / shorter side, from which on the middle square is less than half of an image
FEW = 20  # images of a class, below which it is said to be small


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found. Counts of images are of those that were looked at, `seen` of `count`.

    Attributes:
        root: the folder. counts: images of every class, in the order of the ids; one entry without classes.
        has_classes: whether there are class folders. sides: shorter sides in pixels, sorted. long: images of which the middle square is
            less than half. color: whether any image has colors. transparent, deep: images with transparency, or with 16 bits.
        formats: files by format. copies: images that are byte for byte copies of another.
    """

    root: Path
    counts: dict[str, int]
    has_classes: bool
    seen: int
    sides: Sequence[int]
    long: int
    color: bool
    transparent: int
    deep: int
    formats: Counter[str] = field(default_factory=Counter)
    copies: int = 0

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    @property
    def classes(self) -> int:
        return len(self.counts)

    @property
    def side(self) -> int:
        """The median of the shorter sides."""
        return int(statistics.median(self.sides))


def survey(root: str | Path, *, classes: ClassRule = "any", progress: bool = True) -> Survey:
    """Look at the images of a folder; of a large one at evenly spread ones.

    Raises:
        MgenError: there are no images, some lie outside of class folders, or some cannot be read; the message names the first of them.
    """
    data = _listed(root, classes)
    counts = dict.fromkeys(data.class_names, 0)
    for label, number in Counter(data.labels.tolist()).items():
        counts[data.class_names[label]] = number
    files = data.files[:: -(-len(data.files) // MOST_HEADERS)]
    every = -(-len(files) // MOST_PIXELS)
    looks = _looks(files, every, progress)
    return Survey(
        root=Path(root),
        counts=counts,
        has_classes=classes != "none" and any(len(f.relative_to(data.root).parts) > 1 for f in data.files),
        seen=len(files),
        sides=sorted(min(one.size) for one in looks),
        long=sum(max(one.size) >= LONG * min(one.size) for one in looks),
        color=any(one.color for one in looks),
        transparent=sum(one.transparent for one in looks),
        deep=sum(one.deep for one in looks),
        formats=Counter(one.format for one in looks),
        copies=_copies(files),
    )


def _listed(root: str | Path, classes: ClassRule) -> ImageFolder:
    """The images and their classes; those outside of class folders raise an error if there are class folders too."""
    data = ImageFolder(root=root, image_size=64, classes=classes)
    if classes == "any" and "" in data.class_names:
        data = ImageFolder(root=root, image_size=64, classes="folders")  # raises
    return data


@dataclass(frozen=True)
class _Look:
    """What one image is. color: whether it or one before it has colors, as far as pixels were read."""

    size: tuple[int, int]
    format: str
    color: bool
    transparent: bool
    deep: bool


def _looks(files: Sequence[Path], every: int, progress: bool) -> list[_Look]:
    """The images as they are; the pixels of every n-th. MgenError if some cannot be read."""
    looks, bad = list[_Look](), list[str]()
    bar = tqdm(files, unit="img", desc="looking", file=sys.stderr, delay=1.0, leave=False, disable=not progress)
    for i, file in enumerate(bar):
        try:
            looks.append(_look(file, pixels=i % every == 0, color=bool(looks and looks[-1].color)))
        except MgenError as error:
            bad.append(str(error))
    if bad:
        more = (
            f" (and {len(bad) - 1} more, such as {bad[1].removeprefix('cannot read image ')})" if len(bad) > 1 else ""
        )
        raise MgenError(one_line(f"{bad[0]}{more}"))
    return looks


def _look(file: Path, *, pixels: bool, color: bool) -> _Look:
    with open_image(file) as image:
        mode, form = image.mode, str(image.format)
        if mode == "F":
            raise MgenError(f"{file} holds floating-point numbers: save it with 8 or 16 bits a channel")
        transparent = mode in TRANSPARENT or "transparency" in image.info
        if pixels:
            image.load()  # finds damage
            color = color or (mode not in GRAY and _has_color(image))
        return _Look(image.size, form, color, transparent, mode.startswith("I"))


def _has_color(image: Image.Image) -> bool:
    """Whether a pixel is no shade of gray, apart from what JPEG rounds."""
    rgba = np.asarray(image.convert("RGBA")).astype(np.int16)
    rgb = rgba[..., :3] * (rgba[..., 3:] > 0)  # colors of transparent pixels are arbitrary
    return bool((rgb.max(-1) - rgb.min(-1) > 8).any())


def _copies(files: Sequence[Path]) -> int:
    """How many files have the contents of another, not counting one of each."""
    by_size: dict[int, list[Path]] = {}
    for file in files:
        by_size.setdefault(file.stat().st_size, []).append(file)
    copies = 0
    for same in by_size.values():
        if len(same) > 1:
            copies += len(same) - len({hashlib.sha256(file.read_bytes()).digest() for file in same})
    return copies
