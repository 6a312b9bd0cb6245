"""Images in npz files: written as a stream, read from a folder of shards.

    images-000000-000999.npz      images 0 … 999 of a run
        arr_0   uint8 (n, H, W, C)
        arr_1   int64 (n,)        class ids, -1 for none

The arrays are named as in ADM's sample files (github.com/openai/guided-diffusion). Nothing is compressed.
"""

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from mgen.pipelines.run_file import SHARD, read_run
from mgen.utils.arrays import Header, read_npz
from mgen.utils.errors import MgenError
from mgen.utils.files import atomic_path


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Images start … stop - 1 of a run, according to the file's name."""

    start: int
    stop: int
    path: Path

    def __len__(self) -> int:
        return self.stop - self.start


def shard_name(start: int, stop: int) -> str:
    """File name of images start … stop - 1."""
    return f"images-{start:06d}-{stop - 1:06d}.npz"


def find_shards(path: str | Path) -> list[Shard]:
    """The shards of a folder in order, by their names; an empty list if there are none or the folder doesn't exist.

    Of two with the same start the longer one counts: a run that is extended replaces its last, shorter shard.
    """
    found: dict[int, Shard] = {}
    for file in Path(path).glob("images-*.npz"):
        match = SHARD.fullmatch(file.name)
        if match and int(match[2]) >= int(match[1]):
            shard = Shard(start=int(match[1]), stop=int(match[2]) + 1, path=file)
            found[shard.start] = max(shard, found.get(shard.start, shard), key=len)
    return [found[start] for start in sorted(found)]


class ShardFolder:
    """Images and classes of a folder of shards, by index; the last shard read stays in memory.

    Raises:
        MgenError: no shards, some missing, fewer images than run.json states; on reading, a damaged shard or another kind of array.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.shards = Path(path), find_shards(path)
        if not self.shards:
            raise MgenError(
                f"{path} holds no shards (images-000000-000999.npz): write them with mgen sample --format npz"
            )
        expected = 0
        for shard in self.shards:
            if shard.start > expected:
                raise MgenError(
                    f"images {expected} … {shard.start - 1} are missing from {path}: rerun the same mgen sample to complete it"
                )
            if shard.start < expected:
                raise MgenError(f"{shard.path} overlaps the shard before it: the folder holds shards of two runs")
            expected = shard.stop
        run = read_run(self.path)
        planned = expected if run is None else run.num_images
        if expected < planned:
            raise MgenError(
                f"{path} holds {expected} of the {planned} images of its run: rerun the same mgen sample to complete it"
            )
        self._kept: tuple[Shard, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return self.shards[-1].stop

    def labels(self) -> Tensor:
        """Class ids int64 (N,), -1 for none; the images are not read."""
        return torch.cat([_read(shard, ("arr_1",))[0] for shard in self.shards])

    def labels_by_shard(self) -> Iterator[list[int]]:
        """The same, of one shard after the other."""
        return (_read(shard, ("arr_1",))[0].tolist() for shard in self.shards)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images start … stop - 1 as uint8 (n, C, H, W), and their class ids int64 (n,)."""
        if not 0 <= start < stop <= len(self):
            raise MgenError(f"images {start} … {stop - 1} of {self.path}: it holds 0 … {len(self) - 1}")
        images: list[Tensor] = []
        labels: list[Tensor] = []
        for shard in self.shards:
            if shard.stop <= start or stop <= shard.start:
                continue
            here, ids = self._shard(shard)
            if images and images[0].shape[1:] != here.shape[1:]:
                raise MgenError(
                    f"{shard.path} holds images of another size than the shard before it: all must have the same size"
                )
            rows = slice(max(0, start - shard.start), stop - shard.start)
            images.append(here[rows])
            labels.append(ids[rows])
        return torch.cat(images), torch.cat(labels)

    def _shard(self, shard: Shard) -> tuple[Tensor, Tensor]:
        kept = self._kept
        if kept is None or kept[0] != shard:
            self._kept = None  # before the next one is read: never two in memory
            images, labels = _read(shard, ("arr_0", "arr_1"))
            self._kept = kept = (shard, images.permute(0, 3, 1, 2), labels)
        return kept[1], kept[2]


def _read(shard: Shard, names: Sequence[str]) -> list[Tensor]:
    """Arrays of a shard, checked before they are read."""
    count = len(shard)

    def images(header: Header) -> str:
        right = header.dtype == np.uint8 and len(header.shape) == 4 and header.shape[3] in (1, 3)
        return "" if right and header.shape[0] == count else f"uint8 ({count}, H, W, C) with C = 1 or 3"

    def labels(header: Header) -> str:
        return "" if header.dtype.kind in "iu" and header.shape == (count,) else f"int64 ({count},)"

    checks = {"arr_0": images, "arr_1": labels}
    again = "damaged shard; remove it and rerun the same mgen sample"
    arrays = read_npz(shard.path, {name: checks[name] for name in names}, f"arr_0 and arr_1: {again}")
    if missing := [name for name in names if name not in arrays]:
        raise MgenError(f"{shard.path} lacks {missing[0]}: {again}")
    return [torch.from_numpy(arrays[name] if name == "arr_0" else arrays[name].astype(np.int64)) for name in names]


def write_npz(path: str | Path, images: Iterable[Tensor], *, labels: Sequence[int] | np.ndarray[Any, Any]) -> None:
    """Write arr_0 and arr_1 part by part, completely or not at all; memory does not grow with the number of images.

    Args:
        images: parts uint8 (n, C, H, W), as many images in all as there are labels.

    Raises:
        MgenError: images of different sizes, or the file can't be written.
    """
    parts = iter(images)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        first = next(parts)
        shape = (first.shape[2], first.shape[3], first.shape[1])
        written = 0
        with _member(archive, "arr_0") as file:
            _header(file, np.dtype(np.uint8), (len(labels), *shape))
            for part in chain([first], parts):
                block = part.cpu().permute(0, 2, 3, 1).contiguous().numpy()
                if block.shape[1:] != shape:
                    raise MgenError(
                        f"image {written} is {block.shape[1:]}, the first one {shape}: all must have the same size"
                    )
                file.write(block.data)
                written += len(block)
        assert written == len(labels), f"{written} images, {len(labels)} labels"
        with _member(archive, "arr_1") as file:
            _header(file, np.dtype(np.int64), (len(labels),))
            file.write(np.asarray(labels, np.int64).data)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    # The date is fixed, so that equal images make equal files.
    return archive.open(zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0)), "w", force_zip64=True)


def _header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
