"""Fashion-MNIST (Xiao et al., 2017, arXiv 1708.07747; MIT license), 28×28 gray padded by 2 to 32×32.

Read from a folder with the four IDX files, plain or gzipped. Shoes face left in every image: do not flip.
"""

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mgen.utils.errors import MgenError

FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
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
            f"Fashion-MNIST is not in {FOLDERS[0]} and could not be downloaded ({str(error).splitlines()[0][:120]}): "
            "apt-get install dataset-fashion-mnist, or give data.path=FOLDER with the four IDX files"
        ) from error
    return base / "FashionMNIST" / "raw"


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(path: Path) -> np.ndarray:
    """Array of an IDX file of unsigned bytes, plain or gzipped."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, dims = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
        if zeros or kind != 8:
            raise ValueError("not an IDX file of unsigned bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise MgenError(f"cannot read {path} ({error}): damaged download? Fetch it again") from error


class FashionMNIST:
    """All images of a split in memory: `images` (N, 1, 32, 32) uint8, `labels` (N,) int64."""

    num_classes = 10
    class_names: Sequence[str] = FASHION_CLASSES

    def __init__(self, *, root: str | Path | None = None, split: str = "train") -> None:
        if split not in FILES:
            raise MgenError(f"unknown split {split!r}: Fashion-MNIST has {', '.join(FILES)}")
        folder = find_fashion_mnist(root)
        images, labels = (read_idx(path) for name in FILES[split] if (path := _file(folder, name)))
        self.images = torch.from_numpy(np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None])  # (N, 1, 32, 32)
        self.labels = torch.from_numpy(labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch: image (B, 1, 32, 32) float in [-1, 1] and label (B,)."""
        index = torch.as_tensor(indices)
        return {"image": self.images[index].float() / 127.5 - 1, "label": self.labels[index]}
