"""Images to be evaluated, whatever they come from: read by index, so that processes can share them and a pass can resume.

Unknown class ids are -1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from mgen.data import DataRecord, center_crop
from mgen.evaluation.result import Facts
from mgen.utils.reading import check_file

Images = Tensor | Sequence[Tensor]  # uint8 (B, C, H, W), or (C, H, W) of several sizes
SHOWN = 256  # side in pixels of the examples of images of several sizes


@dataclass(kw_only=True)
class Batch:
    """Images start … stop of a source.

    Attributes:
        images: of one size, unless the source allows several. labels: class ids (B,). originals: of reconstructions, like `images`.
        columns: further numbers per image, (B,). totals: quantities to be summed over batches, float64.
    """

    images: Images
    labels: Tensor
    originals: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)

    def stacked(self) -> Tensor:
        """The images (B, C, H, W) of one size."""
        return self.images if isinstance(self.images, Tensor) else torch.stack(list(self.images))

    def shown(self, rows: Sequence[int]) -> Tensor:
        """Some of the images for a grid, (n, C, H, W) on the CPU; of several sizes, their middle squares."""
        if isinstance(self.images, Tensor):
            return self.images[list(rows)].cpu()
        return torch.stack([square(self.images[i].cpu(), SHOWN) for i in rows])


@dataclass(kw_only=True)
class Source:
    """Images by index, with what a result says about them.

    Attributes:
        about: facts for the result. key: what else identifies these images, so that an evaluation resumes on the same ones only.
        ahead: whether a batch may be read while the previous one is measured. fashion: whether they are known to be images like
            Fashion-MNIST's, see mgen.evaluation.fashion. record: the data of the model that made them, if known.
    """

    count: int
    about: Facts
    read: Callable[[int, int], Batch]
    class_names: Sequence[str] = ()
    key: object = None
    ahead: bool = True
    fashion: bool = False
    record: DataRecord | None = None

    @property
    def title(self) -> str:
        """What the images are, in a few words."""
        about = self.about
        return str(about.get("model") or about.get("path") or about.get("data") or about["kind"])


def square(image: Tensor, side: int) -> Tensor:
    """The middle square of an image (C, H, W) at `side` pixels."""
    return pil_to_tensor(center_crop(to_pil_image(image), side))


def stored(kind: str, path: Path, size: int | None = None) -> Facts:
    """What a result says about images in files."""
    prepared = {} if size is None else {"prepared": f"center crop of {size} px (ADM's)"}
    return {"kind": kind, "path": str(path), "quantization": "as stored", **prepared}


def stamp(file: Path) -> tuple[str, int, int]:
    """Identifies a file without reading it."""
    about = check_file(file).stat()
    return file.name, about.st_size, about.st_mtime_ns
