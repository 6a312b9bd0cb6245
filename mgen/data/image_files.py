"""Image files: opened within bounds, as tensors; ADM's center crop (Dhariwal & Nichol, 2021, arXiv 2105.05233)."""

import functools
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mgen.data.listing import FORMATS
from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.reading import check_file
from mgen.utils.schema import Size, checked

# Formats that a single file may have besides those of folders. Not EPS, for which Pillow starts another program.
MORE_FORMATS = ("ICO", "ICNS", "PSD", "DDS", "SUN", "XBM", "XPM", "MSP", "IM", "CUR", "BLP", "DCX", "FLI", "SPIDER")
LIMIT = "MGEN_MAX_PIXELS"  # environment variable that raises the limit


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(kind for kind in (*FORMATS, *MORE_FORMATS) if kind in Image.OPEN)


def most_pixels() -> float:
    """Pixels that an image may have: twice Pillow's `Image.MAX_IMAGE_PIXELS` (179 million), or the environment's MGEN_MAX_PIXELS."""
    if (given := os.environ.get(LIMIT)) is not None:
        if not re.fullmatch("[1-9][0-9]{0,15}", given):
            raise MgenError(f"{LIMIT} is {given[:40]!r}: expected a number of pixels, such as 400000000")
        Image.MAX_IMAGE_PIXELS = max(1, (int(given) + 1) // 2)
    return float("inf") if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def _too_large(what: str, pixels: float) -> MgenError:
    return MgenError(
        f"{what} {pixels / 1e6:,.0f} megapixels, more than the limit of {most_pixels() / 1e6:,.0f}: make it smaller, or raise the "
        f"limit with {LIMIT}={pixels:.0f}"
    )


@contextmanager
def open_image(path: str | Path, data: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image with Pillow; its size is known, its pixels are read when they are used.

    Args:
        data: its bytes, for which `path` is but a name; None: they are in the file.

    Raises:
        MgenError: also for errors inside the `with`. The file is missing, no regular file, damaged, or larger than `most_pixels`.
    """
    most_pixels()  # also tells Pillow
    if data is None and not os.path.lexists(path):
        name = os.fspath(path)
        raise MgenError(f"no such image: {name if name.isprintable() and len(name) < 1000 else shown(name, 200)}")
    if data is None:
        check_file(path)
    try:
        with Image.open(path if data is None else io.BytesIO(data), formats=_formats()) as image:
            yield image
    except (MgenError, KeyboardInterrupt, GeneratorExit):
        raise
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(f"{path} has", int(found[1]) if found else 0) from error
    except Exception as error:  # decoders of damaged files fail in many ways
        reason = first_line(error).replace(f" {os.fspath(path)!r}", "")
        raise MgenError(f"cannot read image {path} ({reason}): damaged file? Remove or replace it") from error


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Square of `size` pixels: halve by box filter while the short side is ≥ 2·size, resize bicubically, crop the center.

    Raises an MgenError if the resized image has more than `most_pixels`, as very long ones can.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > most_pixels():
        raise _too_large(
            f"an image of {image.width}×{image.height} pixels, resized to {width}×{height}, has", width * height
        )
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def check_channels(channels: int) -> None:
    """Raise MgenError unless images can be read with this number of channels."""
    if channels not in (1, 3):
        raise MgenError(f"channels is {shown(channels)}: images are read in 3 (RGB) or 1 (gray)")


@checked
def load_image(
    path: str | Path,
    *,
    size: Size | None = None,
    channels: int = 3,
    upright: bool = False,
    data: bytes | None = None,
) -> Tensor:
    """Image file as uint8 (channels, H, W), center-cropped to `size` if given. Transparency becomes white, 16 bits are rounded to 8.

    Args:
        upright: turn the image as its EXIF orientation says. Off for training and measuring, where published numbers ignore it.
        data: its bytes, for which `path` is but a name.

    Raises:
        MgenError: the file is missing, unreadable, too large, or holds floating-point numbers.
    """
    check_channels(channels)
    with open_image(path, data) as file:
        image: Image.Image = file
        if upright:
            image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise MgenError(f"{path} holds floating-point numbers: save it with 8 or 16 bits a channel")
        if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
            deep = np.asarray(image).astype(np.int64).clip(0, 65535)
            image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "P"):
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        image = image.convert("L" if channels == 1 else "RGB")
    if size is not None:
        try:
            image = center_crop(image, size)
        except MgenError as error:
            raise MgenError(f"{path}: {error}") from error
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
