"""Image folders, whose subfolders are the classes."""

import functools
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
from mgen.data.record import DataRecord, folder_name, listing_digest
from mgen.data.unreadable import OnError, load_or_next
from mgen.utils import seeds
from mgen.utils.errors import MgenError
from mgen.utils.limits import check_memory
from mgen.utils.schema import Rate, Size, checked

# Where classes come from: subfolders, which there must be; nowhere, all images are of one class; subfolders if there are any.
ClassRule: TypeAlias = Literal["folders", "none", "any"]

NO_CLASS = "images"  # name of the one class of images without classes


def sort_classes(names: Iterable[str]) -> list[str]:
    """Class names in the order of their ids: as numbers if all are numbers (0, 1, … 10, 11), else as text."""
    names = sorted(names)
    return sorted(names, key=int) if all(re.fullmatch("[0-9]+", name) for name in names) else names


class ImageFolder:
    """Images below `root`, center-cropped to `image_size` pixels. Classes are its direct subfolders, see `sort_classes`.

    Args:
        classes: "folders" raises an error for images without a class folder; "none": all images are of one class; "any": folders if
            there are any.
        held_out: share of each class that is kept for validation. part: the images without those, or those alone.
        keep: keep images in memory once they are read. on_error: "skip": the next image takes the place of one that can't be read.

    Raises:
        MgenError: see `list_images`; or images lie outside of class folders; or nothing is left to train on.
    """

    @checked
    def __init__(
        self,
        *,
        root: str | Path,
        image_size: Size,
        channels: int = 3,
        classes: ClassRule = "folders",
        held_out: Rate = 0.0,
        part: Literal["train", "held out"] = "train",
        keep: bool = False,
        on_error: OnError = "raise",
    ) -> None:
        check_channels(channels)
        self.root = Path(root)
        self.files = list_images(self.root)
        self.image_size, self.channels, self.on_error = image_size, channels, on_error
        names = self._names(classes)
        self.class_names: Sequence[str] = tuple(sort_classes(set(names)))
        self.num_classes = len(self.class_names)
        index = {name: i for i, name in enumerate(self.class_names)}
        self.labels = torch.tensor([index[name] for name in names])
        self._listed, self._has_classes = self.files, classes != "none" and set(names) != {NO_CLASS}
        if held_out:
            rows = self._part(held_out, part)
            self.files, self.labels = [self.files[i] for i in rows], self.labels[rows]
        self._kept: dict[int, Tensor] | None = {} if keep else None
        if keep:
            size = 1.0 * len(self.files) * channels * image_size**2
            check_memory(size, f"keeping {len(self.files)} images of {image_size} px", "set data.keep=false")

    def _part(self, share: float, part: str) -> list[int]:
        """The rows that are held out for validation, at least one of each class of several images; or all others."""
        held: set[int] = set()
        for label in range(self.num_classes):
            rows = (self.labels == label).nonzero().flatten().tolist()
            count = min(len(rows) - 1, max(1, round(share * len(rows))))
            order = torch.randperm(len(rows), generator=seeds.generator("held out", self.class_names[label]))
            held.update(rows[i] for i in order[:count].tolist())
        kept = sorted(held) if part == "held out" else [i for i in range(len(self.files)) if i not in held]
        if not kept:
            raise MgenError(
                f"{self.root} has one image in every class: none can be held out for validation, set it to 0"
            )
        return kept

    @functools.cached_property
    def record(self) -> DataRecord:
        """What the folder holds, the images that are held out included."""
        return DataRecord(
            name=folder_name(self.root),
            images=len(self._listed),
            class_names=tuple(self.class_names) if self._has_classes else (),
            image_size=self.image_size,
            channels=self.channels,
            digest=listing_digest(self.root, self._listed),
        )

    def _names(self, classes: ClassRule) -> list[str]:
        """The name of the class of every image."""
        parts = [file.relative_to(self.root).parts for file in self.files]
        outside = [p[0] for p in parts if len(p) == 1]
        if classes == "none" or (classes == "any" and len(outside) == len(parts)):
            return [NO_CLASS] * len(parts)
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
        count, what = len(self.files), str(self.root)
        found = [load_or_next(self._image, int(i), count, on_error=self.on_error, what=what) for i in indices]
        images = torch.stack([image for _, image in found])
        return {"image": images.float() / 127.5 - 1, "label": self.labels[torch.tensor([i for i, _ in found])]}

    def _image(self, index: int) -> Tensor:
        """An image (C, size, size) uint8."""
        if self._kept is None:
            return load_image(self.files[index], size=self.image_size, channels=self.channels)
        if index not in self._kept:
            self._kept[index] = load_image(self.files[index], size=self.image_size, channels=self.channels)
        return self._kept[index]

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
