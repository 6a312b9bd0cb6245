"""Fashion-MNIST (Xiao et al., 2017, arXiv 1708.07747; MIT license), 28×28 gray padded by 2 to 32×32.

Read from a folder with the four IDX files, plain or gzipped. Shoes face left in every image: do not flip.
"""

import functools
import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mgen.data.record import DataRecord
from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.reading import check_file
from mgen.utils.schema import checked

FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SIDES = (28, 28)  # of an image
MOST_IMAGES = 2**18
# Debian's package dataset-fashion-mnist, and where torchvision downloads to.
FOLDERS = ("/usr/share/datasets/fashion-mnist", "~/.cache/mgen/FashionMNIST/raw")


def find_fashion_mnist(root: str | Path | None = None) -> Path:
    """Folder with the IDX files: `root` if given, else a known folder, else a torchvision download; MgenError if all fail."""
    if root is not None and not Path(root).expanduser().is_dir():
        raise MgenError(f"no such folder: {root} (expected the four Fashion-MNIST IDX files in it)")
    folders = [Path(p).expanduser() for p in ((root,) if root is not None else FOLDERS)]
    folders += [p / "FashionMNIST" / "raw" for p in folders]
    for folder in folders:
        if all(_file(folder, name) for names in FILES.values() for name in names):
            return folder
    if root is not None:
        raise MgenError(
            f"{folders[0]} lacks some of {', '.join(n for names in FILES.values() for n in names)} (plain or .gz)"
        )
    from torchvision.datasets import FashionMNIST as Downloader

    base = Path("~/.cache/mgen").expanduser()
    try:
        Downloader(str(base), download=True)
    except Exception as error:  # network, disk and checksum errors are of many types
        raise MgenError(
            f"Fashion-MNIST is not in {FOLDERS[0]} and could not be downloaded ({first_line(error, 120)}): "
            "apt-get install dataset-fashion-mnist, or give data.path=FOLDER with the four IDX files"
        ) from error
    return base / "FashionMNIST" / "raw"


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(path: str | Path, *, item: tuple[int, ...] = SIDES) -> np.ndarray:
    """Array (N, *item) of an IDX file of unsigned bytes, plain or gzipped; no more is read than its header says.

    Raises:
        MgenError: the file is missing, damaged, of another shape or type, empty, or holds another number of bytes than its header says.
    """
    path = check_file(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            zeros, kind, dims = struct.unpack(">HBB", file.read(4))
            if zeros or kind != 8 or dims != 1 + len(item):
                raise ValueError(f"not an IDX file of unsigned bytes in {1 + len(item)} dimensions")
            count, *sides = struct.unpack(f">{dims}I", file.read(4 * dims))
            if tuple(sides) != item or not 1 <= count <= MOST_IMAGES:
                shape = "×".join(map(str, (count, *sides)))
                raise ValueError(
                    f"it holds {shape} numbers, expected {'×'.join(map(str, ('N', *item)))}, N at most {MOST_IMAGES}"
                )
            size = count * math.prod(item)
            data = file.read(size + 1)
        if len(data) != size:
            raise ValueError(f"{'more' if len(data) > size else 'fewer'} bytes than the {size} that its header says")
        return np.frombuffer(data, np.uint8).reshape(count, *item)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise MgenError(f"cannot read {path} ({first_line(error)}): damaged download? Fetch it again") from error


class FashionMNIST:
    """All images of a split in memory: `images` (N, 1, 32, 32) uint8, `labels` (N,) int64."""

    num_classes = 10
    class_names: Sequence[str] = FASHION_CLASSES

    @checked
    def __init__(self, *, root: str | Path | None = None, split: str = "train") -> None:
        if split not in FILES:
            raise MgenError(f"unknown split {shown(split)}: Fashion-MNIST has {', '.join(FILES)}")
        folder = find_fashion_mnist(root)
        of_images, of_labels = (path for name in FILES[split] if (path := _file(folder, name)))
        images, labels = read_idx(of_images), read_idx(of_labels, item=())
        if len(images) != len(labels):
            raise MgenError(
                f"{of_images} holds {len(images)} images, but {of_labels} {len(labels)} labels: fetch both again"
            )
        if labels.max() >= self.num_classes:
            raise MgenError(
                f"{of_labels} holds label {labels.max()}: Fashion-MNIST has classes 0 … {self.num_classes - 1}"
            )
        self.images = torch.from_numpy(np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None])  # (N, 1, 32, 32)
        self.labels = torch.from_numpy(labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch: image (B, 1, 32, 32) float in [-1, 1] and label (B,)."""
        index = torch.as_tensor(indices)
        return {"image": self.images[index].float() / 127.5 - 1, "label": self.labels[index]}

    @functools.cached_property
    def record(self) -> DataRecord:
        """What this split holds."""
        digest = self.stamp(range(len(self)))
        return DataRecord(
            name="fmnist",
            images=len(self),
            class_names=tuple(self.class_names),
            image_size=self.images.shape[-1],
            channels=1,
            digest=digest,
        )

    def stamp(self, rows: range) -> str:
        """A digest of these images and labels."""
        part = slice(rows.start, rows.stop)
        digest = hashlib.sha256(self.images[part].numpy().tobytes())
        digest.update(self.labels[part].numpy().tobytes())
        return digest.hexdigest()
