"""Image folders, with ADM's center crop (Dhariwal & Nichol, 2021, arXiv 2105.05233) that ImageNet results are based on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mgen.utils.errors import MgenError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")


def list_images(root: str | Path) -> list[Path]:
    """All image files below `root`, sorted by path; MgenError if the folder is missing or has no images."""
    root = Path(root)
    if not root.is_dir():
        raise MgenError(f"no such folder: {root}")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise MgenError(f"no images below {root}: expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return files


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Square of `size` pixels: halve by box filter while the short side is ≥ 2·size, resize bicubically, crop the center."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def load_image(path: str | Path, *, size: int | None = None, channels: int = 3) -> Tensor:
    """Image file as uint8 (channels, H, W), center-cropped to `size` if given. Transparency becomes white, 16 bits are rounded to 8.

    Raises:
        MgenError: the file is missing, unreadable, or holds floating-point numbers.
    """
    try:
        with Image.open(path) as file:
            image: Image.Image = file
            if image.mode == "F":
                raise MgenError(f"{path} holds floating-point numbers: save it with 8 or 16 bits a channel")
            if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
                deep = np.asarray(image).astype(np.int64).clip(0, 65535)
                image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
            if image.mode in ("RGBA", "LA", "P"):
                rgba = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            image = image.convert("L" if channels == 1 else "RGB")
    except MgenError:
        raise
    except FileNotFoundError as error:
        raise MgenError(f"no such image: {path}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise MgenError(f"cannot read image {path} ({error}): damaged file? Remove or replace it") from error
    if size is not None:
        image = center_crop(image, size)
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


class ImageFolder:
    """Images below `root`. Classes are its direct subfolders, sorted by name; without subfolders all labels are 0."""

    def __init__(self, *, root: str | Path, image_size: int, channels: int = 3) -> None:
        self.files = list_images(root)
        self.image_size, self.channels = image_size, channels
        parts = [p.relative_to(root).parts for p in self.files]
        names = [p[0] if len(p) > 1 else "" for p in parts]
        self.class_names: Sequence[str] = tuple(sorted(set(names)))
        self.num_classes = len(self.class_names)
        index = {name: i for i, name in enumerate(self.class_names)}
        self.labels = torch.tensor([index[name] for name in names])

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch: image (B, C, size, size) float in [-1, 1] and label (B,)."""
        images = torch.stack([load_image(self.files[i], size=self.image_size, channels=self.channels) for i in indices])
        return {"image": images.float() / 127.5 - 1, "label": self.labels[torch.as_tensor(indices)]}
