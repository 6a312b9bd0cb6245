"""Where the indexes of tars are kept, of which tar they are, and what is read beside the tars."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mgen.data.tar_index import index_file, write_index
from mgen.utils.errors import MgenError
from mgen.utils.tar_paths import expand_braces
from tests.system.test_webdataset import Members, levels, opened, picture, samples, write_tar


def labeled(level: int, label: int) -> Members:
    return [("a.png", picture(level)), ("a.cls", str(label).encode())]


@pytest.fixture
def sides(tmp_path: Path) -> Path:
    """train/000.tar and val/000.tar of one size and time; the label of the first is 0, that of the second 1."""
    for label, side in enumerate(("train", "val")):
        (tmp_path / side).mkdir()
        write_tar(tmp_path / side / "000.tar", labeled(5, label))
        os.utime(tmp_path / side / "000.tar", (10, 10))
    return tmp_path


def test_tars_of_one_name_have_an_index_each(sides: Path) -> None:
    index = sides / "index"
    for _ in range(2):
        for label, side in enumerate(("train", "val")):
            assert opened(sides / side, "000.tar", index=index).labels.tolist() == [label]
    made = {path.name: path.stat().st_mtime_ns for path in index.iterdir()}
    assert len(made) == 2 and all(name.startswith("000.tar-") for name in made)
    (sides / "link").symlink_to(sides / "val")
    assert opened(sides / "link", "000.tar", index=index).labels.tolist() == [1]
    assert made == {path.name: path.stat().st_mtime_ns for path in index.iterdir()}


def test_an_index_of_an_earlier_version_is_not_taken_for_another_tar(sides: Path) -> None:
    write_index(sides / "index" / "000.tar.index", index_file(sides / "train" / "000.tar"))
    assert opened(sides / "val", "000.tar", index=sides / "index").labels.tolist() == [1]


def test_a_tar_with_a_long_name(tmp_path: Path) -> None:
    name = "x" * 247 + ".tar"
    write_tar(tmp_path / name, labeled(5, 3))
    for _ in range(2):
        assert opened(tmp_path, name, index=tmp_path / "index").labels.tolist() == [3]


@pytest.mark.parametrize("time", [-1000, 0, 8 * 10**9])
def test_tars_of_any_time(tmp_path: Path, time: int) -> None:
    write_tar(tmp_path / "a.tar", samples(range(3)))
    os.utime(tmp_path / "a.tar", (time, time))
    for _ in range(2):
        assert levels(opened(tmp_path, "a.tar"), range(3)) == [0, 1, 2]


def test_a_damaged_index_is_to_be_removed(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(range(3)))
    opened(tmp_path, "a.tar")
    index = tmp_path / "a.tar.index"
    for data in (b"", b"no index", index.read_bytes()[:-5]):
        index.write_bytes(data)
        with pytest.raises(MgenError, match=r"a\.tar\.index .*remove it"):
            opened(tmp_path, "a.tar")
    index.unlink()
    assert len(opened(tmp_path, "a.tar")) == 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "no regular file"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to("nowhere"), "broken link"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not text in UTF-8"),
    ],
)
def test_names_of_classes_that_can_not_be_read(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    write_tar(tmp_path / "a.tar", samples(range(3)))
    make(tmp_path / "classnames.txt")
    with pytest.raises(MgenError, match=rf"{words}.*classnames\.txt.*mend or remove it"):
        opened(tmp_path, "a.tar")
    assert opened(tmp_path, "a.tar", classes="none").class_names == ("images",)


def test_a_lone_zero_is_no_padding() -> None:
    assert expand_braces("{0..10}") == [str(i) for i in range(11)]
    assert expand_braces("{10..0}") == [str(i) for i in range(10, -1, -1)]
    assert expand_braces("{00..10}") == [f"{i:02d}" for i in range(11)]
    assert expand_braces("{0..010}") == [f"{i:03d}" for i in range(11)]
    assert expand_braces("{000..2}") == ["000", "001", "002"]
