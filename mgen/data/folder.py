"""Image folders, whose subfolders are the classes."""

import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mgen.data.image_files import check_channels, load_image
from mgen.data.listing import class_folders, list_images
from mgen.utils.errors import MgenError
from mgen.utils.schema import Size, checked

# Where classes come from: subfolders, which there must be; nowhere, all images are of one class; subfolders if there are any.
ClassRule: TypeAlias = Literal["folders", "none", "any"]


def sort_classes(names: Iterable[str]) -> list[str]:
    """Class names in the order of their ids: as numbers if all are numbers (0, 1, … 10, 11), else as text."""
    names = sorted(names)
    return sorted(names, key=int) if all(re.fullmatch("[0-9]+", name) for name in names) else names


class ImageFolder:
    """Images below `root`, center-cropped to `image_size` pixels. Classes are its direct subfolders, see `sort_classes`.

    Args:
        classes: "folders" raises an error for images without a class folder; "none": all images are of one class; "any": folders if
            there are any.

    Raises:
        MgenError: see `list_images`; or images lie outside of class folders.
    """

    @checked
    def __init__(
        self, *, root: str | Path, image_size: Size, channels: int = 3, classes: ClassRule = "folders"
    ) -> None:
        check_channels(channels)
        self.root = Path(root)
        self.files = list_images(self.root)
        self.image_size, self.channels = image_size, channels
        names = self._names(classes)
        self.class_names: Sequence[str] = tuple(sort_classes(set(names)))
        self.num_classes = len(self.class_names)
        index = {name: i for i, name in enumerate(self.class_names)}
        self.labels = torch.tensor([index[name] for name in names])

    def _names(self, classes: ClassRule) -> list[str]:
        """The name of the class of every image."""
        parts = [file.relative_to(self.root).parts for file in self.files]
        outside = [p[0] for p in parts if len(p) == 1]
        if classes == "none" or (classes == "any" and len(outside) == len(parts)):
            return ["images"] * len(parts)
        if classes == "folders" and outside:
            raise MgenError(
                f"{self.root} holds {len(outside)} images outside of class folders, such as {outside[0]}: make one folder per class, or "
                "take all images as one class with data.classes=none (mgen cache: --classes none)"
            )
        names = [p[0] if len(p) > 1 else "" for p in parts]
        for name in set(names):
            if any("\ud800" <= letter <= "\udfff" for letter in name):
                raise MgenError(
                    f"the class folder {name!r} in {self.root} has a name that is no text in UTF-8: rename it"
                )
        if empty := sorted(set(class_folders(self.root)) - set(names)):
            some = ", ".join(empty[:5]) + (", …" if len(empty) > 5 else "")
            warnings.warn(f"{self.root}: folders without readable images are no classes: {some}", stacklevel=3)
        return names

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch: image (B, C, size, size) float in [-1, 1] and label (B,)."""
        images = torch.stack([load_image(self.files[i], size=self.image_size, channels=self.channels) for i in indices])
        return {"image": images.float() / 127.5 - 1, "label": self.labels[torch.as_tensor(indices)]}

    def stamp(self, rows: range) -> str:
        """A digest of names, sizes, times and labels of these images: another one if any was replaced, moved or removed."""
        digest = hashlib.sha256()
        for i in rows:
            try:
                about = self.files[i].stat()
            except OSError as error:
                raise MgenError(f"cannot read {self.files[i]} ({error.strerror}): run the command again") from error
            name = os.fsencode(self.files[i].relative_to(self.root))
            digest.update(b"%s\0%d\0%d\0%d\n" % (name, about.st_size, about.st_mtime_ns, int(self.labels[i])))
        return digest.hexdigest()
