"""Images in npz files: written as a stream, read from a folder of shards, and told when damaged."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgen.pipelines import shards
from mgen.pipelines.shards import ShardFolder, find_shards, shard_name, write_npz
from mgen.utils.errors import MgenError


def test_reading_shards_opens_only_those_that_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in range(0, 12, 4):
        images = torch.full((4, 3, 5, 6), first, dtype=torch.uint8) + torch.arange(4, dtype=torch.uint8).view(
            4, 1, 1, 1
        )
        write_npz(tmp_path / shard_name(first, first + 4), images.split(3), labels=[-1] * 4)
    opened: list[str] = []
    real = shards.read_npz

    def noting(path: Path, *args: Any) -> Any:
        opened.append(path.name)
        return real(path, *args)

    monkeypatch.setattr(shards, "read_npz", noting)
    folder = ShardFolder(tmp_path)
    assert len(folder) == 12 and not opened
    assert folder.read(4, 6)[0][:, 0, 0, 0].tolist() == [4, 5] and folder.read(6, 8)[0].shape == (2, 3, 5, 6)
    assert opened == ["images-000004-000007.npz"]
    read = folder.read(7, 9)[0]
    assert read[:, 2, 4, 5].tolist() == [7, 8] and opened[1:] == ["images-000008-000011.npz"]
    read.zero_()
    assert folder.read(8, 9)[0].min() == 8, "what is read is a copy"


def test_memory_of_one_npz_does_not_grow_with_the_images(tmp_path: Path) -> None:
    import tracemalloc

    part = torch.zeros(10, 3, 64, 64, dtype=torch.uint8)
    tracemalloc.start()
    write_npz(tmp_path / "a.npz", (part for _ in range(60)), labels=[0] * 600)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "a.npz").stat().st_size > 7_000_000 > 10 * peak


def test_broken_folders_of_shards(tmp_path: Path) -> None:
    def folder(name: str, counts: tuple[int, ...] = (2, 2, 1)) -> Path:
        first = 0
        for count in counts:
            images = torch.zeros(count, 1, 4, 4, dtype=torch.uint8)
            write_npz(tmp_path / name / shard_name(first, first + count), [images], labels=[0] * count)
            first += count
        return tmp_path / name

    assert find_shards(tmp_path / "nowhere") == [] and len(find_shards(folder("good"))) == 3
    with pytest.raises(MgenError, match="holds no shards"):
        ShardFolder(tmp_path)
    with pytest.raises(MgenError, match="images 4 … 5 of .*: it holds 0 … 4"):
        ShardFolder(tmp_path / "good").read(4, 6)
    (folder("gap") / shard_name(2, 4)).unlink()
    with pytest.raises(MgenError, match="images 2 … 3 are missing"):
        ShardFolder(tmp_path / "gap")
    (folder("short") / "run.json").write_text('{"num_images": 9}')
    with pytest.raises(MgenError, match="5 of the 9 images"):
        ShardFolder(tmp_path / "short")
    (folder("overlap") / shard_name(2, 4)).rename(tmp_path / "overlap" / shard_name(1, 4))
    with pytest.raises(MgenError, match="shards of two runs"):
        ShardFolder(tmp_path / "overlap")
    write_npz(folder("sizes") / shard_name(2, 4), [torch.zeros(2, 1, 4, 5, dtype=torch.uint8)], labels=[0, 0])
    with pytest.raises(MgenError, match="another size"):
        ShardFolder(tmp_path / "sizes").read(0, 4)
    images, ids = np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int64)
    for name, arrays, message in (
        ("floats", dict(arr_0=images / 255, arr_1=ids), "arr_0 has shape .* of float64, expected uint8"),
        ("flat", dict(arr_0=images[..., 0], arr_1=ids), r"arr_0 has shape \(2, 4, 4\) of uint8"),
        ("few", dict(arr_0=images[:1], arr_1=ids), r"arr_0 has shape \(1, 4, 4, 1\) of uint8, expected uint8 \(2,"),
        ("names", dict(arr_0=images, arr_1=np.array(["a", "b"])), "arr_1 has shape .* of <U1"),
        ("alone", dict(arr_0=images), "damaged shard"),
        ("objects", dict(arr_0=images, arr_1=np.array([None, {}], object)), "damaged shard"),
    ):
        np.savez(folder(name) / shard_name(0, 2), **arrays)
        with pytest.raises(MgenError, match=message):
            ShardFolder(tmp_path / name).read(0, 1)
    with zipfile.ZipFile(folder("huge") / shard_name(0, 2), "w") as file, file.open("arr_0.npy", "w") as stream:
        claimed = {"descr": "|u1", "fortran_order": False, "shape": (2, 10**7, 10**7, 3)}
        np.lib.format.write_array_header_1_0(stream, claimed)
    with pytest.raises(MgenError, match="of memory"):
        ShardFolder(tmp_path / "huge").read(0, 1)
    whole = (folder("cut") / shard_name(0, 2)).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut" / shard_name(0, 2)).write_bytes(whole[:length])
        with pytest.raises(MgenError, match="damaged shard"):
            ShardFolder(tmp_path / "cut").read(0, 1)
        with pytest.raises(MgenError, match="damaged shard"):
            ShardFolder(tmp_path / "cut").labels()


def test_parts_of_different_sizes_make_no_file(tmp_path: Path) -> None:
    parts = [torch.zeros(1, 1, 4, width, dtype=torch.uint8) for width in (4, 5)]
    with pytest.raises(MgenError, match="image 1 is .4, 5, 1., the first one .4, 4, 1."):
        write_npz(tmp_path / "x.npz", parts, labels=[0, 0])
    assert not list(tmp_path.iterdir())
