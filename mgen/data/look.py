"""What the images of a folder look like, from the headers of some of them: shades of gray or colors, and how large."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mgen.data.image_files import open_image
from mgen.utils.errors import MgenError

GRAY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")  # of Pillow's modes
MOST = 200  # files that are opened


@dataclass(frozen=True, kw_only=True)
class Look:
    """channels: 1 if all images that were opened hold shades of gray, else 3. side: the median of their shorter sides, in pixels.

    sizes: the number of different sizes.
    """

    channels: int
    side: int
    sizes: int


def look_at(files: Sequence[Path] | Sequence[tuple[str, bytes]]) -> Look:
    """What evenly spread ones of these images, files or names with bytes, look like; MgenError if none of them can be opened."""
    modes, sizes, damaged = set[str](), list[tuple[int, int]](), None
    for file in files[:: -(-len(files) // MOST)]:
        path, data = (file, None) if isinstance(file, Path) else file
        try:
            with open_image(path, data) as image:
                modes.add(image.mode)
                sizes.append(image.size)
        except MgenError as error:  # loading it will tell
            damaged = error
    if not sizes:
        raise damaged or MgenError("there are no images to look at")
    side = int(statistics.median(map(min, sizes)))
    return Look(channels=1 if modes <= set(GRAY) else 3, side=side, sizes=len(set(sizes)))
