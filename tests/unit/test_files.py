"""Files: written whole or not at all, links followed, leftovers of the dead swept; read only where they are files."""

import errno
import json
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from mgen.utils import files
from mgen.utils.errors import MgenError
from mgen.utils.files import (
    atomic_folder,
    atomic_path,
    check_writable,
    filled_folder,
    make_folders,
    sweep,
    write_json,
    write_tensors,
    write_text,
)
from mgen.utils.reading import check_file, read_json, read_tensors, read_text

DEAD = 999_999_999  # larger than any process id


def leftover(folder: Path, name: str, pid: int, end: str = "tmp") -> Path:
    return folder / f".{name}.{files._HOST}-{pid}.{end}"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def replace_folder(path: Path, text: str = "new") -> None:
    with atomic_folder(path) as made:
        (made / "sub").mkdir()
        (made / "sub" / "file").write_text(text)


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    for target in (tmp_path / "a.txt", tmp_path / "new" / "deep" / "b.txt"):
        with pytest.raises(KeyboardInterrupt), atomic_path(target) as made:
            made.write_text("half")
            raise KeyboardInterrupt
    replace_folder(tmp_path / "folder", "old")
    for target in (tmp_path / "folder", tmp_path / "new" / "folder"):
        with pytest.raises(RuntimeError), atomic_folder(target) as made:
            (made / "file").write_text("half")
            raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old" and (tmp_path / "folder" / "sub" / "file").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "folder"]


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to("there/target")
    (tmp_path / "folder").symlink_to("there/targets")
    for text in ("1", "2"):
        write_text(tmp_path / "file", text)
        replace_folder(tmp_path / "folder", text)
        assert (tmp_path / "there" / "target").read_text() == text and (tmp_path / "file").is_symlink()
        assert (tmp_path / "there" / "targets" / "sub" / "file").read_text() == text
    assert sorted(os.listdir(tmp_path / "there")) == ["target", "targets"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_get_the_modes_of_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_json(tmp_path / "a.json", 1)
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)})
        with atomic_folder(tmp_path / "folder") as made:
            (made / "sub").mkdir()
            write_tensors(made / "sub/a.safetensors", {"a": torch.zeros(2)})
            (made / "link").symlink_to("/etc/passwd")
    finally:
        os.umask(before)
    modes = {mode(p) for p in (tmp_path / "a.json", tmp_path / "a.safetensors", tmp_path / "folder/sub/a.safetensors")}
    assert modes == {0o666 & ~mask}
    assert mode(tmp_path / "folder") == mode(tmp_path / "folder" / "sub") == 0o777 & ~mask
    assert mode(Path("/etc/passwd")) == 0o644


def test_leftovers_of_dead_processes_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    dead = [
        leftover(tmp_path, "a.json", DEAD, "tmp.json"),
        leftover(tmp_path, "b", DEAD),
        leftover(tmp_path, "c", DEAD, "old"),
    ]
    dead.append(tmp_path / f".folder.{files._HOST}-{DEAD}.ab_1.tmp")
    kept = [
        leftover(tmp_path, "a.json", os.getppid(), "tmp.json"),
        tmp_path / ".hidden.tmp",
        tmp_path / f".x.abcdef-{DEAD}.tmp",
    ]
    kept += [tmp_path / "a.json", tmp_path / "c"]
    for file in (dead[0], dead[1], dead[2], *kept):
        file.write_text("x")
    (dead[3] / "sub").mkdir(parents=True)
    (dead[3] / "sub" / "x").write_text("x")
    write_json(tmp_path / "new.json", {})
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "new.json"])


def test_a_folder_whose_replacement_was_begun_is_put_back(tmp_path: Path) -> None:
    old = leftover(tmp_path, "model", DEAD, "old")
    old.mkdir()
    (old / "weights").write_text("precious")
    sweep(tmp_path)
    assert (tmp_path / "model" / "weights").read_text() == "precious" and os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_with_and_without_the_exchange_of_linux(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *a, **k: object())
    for text in ("1", "2", "3"):
        replace_folder(tmp_path / "folder", text)
        assert (tmp_path / "folder" / "sub" / "file").read_text() == text and os.listdir(tmp_path) == ["folder"]


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_kill_between_the_renames_loses_nothing(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the exchange: whatever rename was the last, the next process finds the old folder or the new one."""
    replace_folder(tmp_path / "folder", "old")
    real, done = os.replace, []

    def replace(source: Any, to: Any) -> None:
        if len(done) == after:
            raise Killed
        done.append(source)
        real(source, to)

    with monkeypatch.context() as patch:
        patch.setattr(files.ctypes, "CDLL", lambda *a, **k: object())
        patch.setattr(files.os, "replace", replace)
        patch.setattr(files.os, "getpid", lambda: DEAD)
        patch.setattr(files.shutil, "rmtree", lambda path, **k: None)  # a killed process cleans nothing up
        if after < 2:
            with pytest.raises(Killed):
                replace_folder(tmp_path / "folder", "new")
        else:
            replace_folder(tmp_path / "folder", "new")
    assert len(os.listdir(tmp_path)) == 2
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "sub" / "file").read_text() == ("new" if after == 2 else "old")


def test_long_and_deep_names(tmp_path: Path) -> None:
    for name in ("a" * 250 + ".json", "é" * 120, "a." + "b" * 250, "🙂" * 60 + ".json"):
        write_json(tmp_path / name, {})
        (tmp_path / name).unlink()
        replace_folder(tmp_path / name)
        replace_folder(tmp_path / name, "again")
    assert len(os.listdir(tmp_path)) == 4
    deep = tmp_path.joinpath(*["d"] * 400)
    write_text(deep / "file", "x")
    assert check_file(deep / "file")
    # shutil.rmtree, with which pytest removes it, would recurse.
    for folder in (deep, *[p for p in deep.parents if tmp_path in p.parents]):
        (folder / "file").unlink(missing_ok=True)
        folder.rmdir()
    with pytest.raises(MgenError, match="too long"):
        write_text(tmp_path / ("a" * 256), "x")
    assert make_folders(tmp_path / "x" / "y") == [tmp_path / "x" / "y", tmp_path / "x"]
    assert make_folders(tmp_path / "x" / "y") == []


def test_only_files_are_replaced_by_files_and_only_folders_by_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    for name, words in (("folder", "it is a folder"), ("pipe", "a pipe"), ("device", "a device"), ("loop", "symbolic")):
        with pytest.raises(MgenError, match=words):
            write_text(tmp_path / name, "x")
    for name, words in (
        ("file", "it is a file"),
        ("pipe", "a pipe"),
        ("device", "a device"),
        ("file/below", "irectory"),
    ):
        with pytest.raises(MgenError, match=words):
            replace_folder(tmp_path / name)
    for path in (tmp_path / "a\0b", tmp_path / "file" / "below"):
        with pytest.raises(MgenError, match="cannot write"):
            write_text(path, "x")
    assert sorted(tmp_path.rglob("*")) == before and stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_json(tmp_path / "old.json", 1)
    monkeypatch.setattr(Path, "write_text", full)
    for path in (tmp_path / "old.json", tmp_path / "new" / "a.json"):
        with pytest.raises(MgenError, match="No space left on device.*free space"):
            write_json(path, {})
    assert sorted(os.listdir(tmp_path)) == ["old.json"] and read_json(tmp_path / "old.json") == 1


def test_a_folder_is_filled_in_place_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def second(source: Path, target: Path) -> None:
        if Path(target).name == "b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    def fill(path: Path) -> None:
        with filled_folder(path) as folder:
            (folder / "a" / "deep").mkdir(parents=True)
            (folder / "b").write_text("b")

    (tmp_path / "there").mkdir()
    number = (tmp_path / "there").stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", second)
        for name in ("there", "new"):
            with pytest.raises(MgenError, match="No space left on device"):
                fill(tmp_path / name)
    assert os.listdir(tmp_path) == ["there"] and os.listdir(tmp_path / "there") == []
    for name in ("there", "new"):
        fill(tmp_path / name)
        assert sorted(os.listdir(tmp_path / name)) == ["a", "b"]
    assert (tmp_path / "there").stat().st_ino == number  # a mount point stays one


def test_a_file_that_may_not_grow_is_told(tmp_path: Path) -> None:
    """As on a full disk, in safetensors' own code."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, usual[1]))
    try:
        with pytest.raises(MgenError, match="cannot write .*free space"):
            write_tensors(tmp_path / "new" / "a.safetensors", {"a": torch.zeros(5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert os.listdir(tmp_path) == []


def test_results_hold_no_bare_nan_and_no_bytes_that_are_no_text(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), (1, -float("inf"))], "c": "x\udcff"})
    assert json.loads((tmp_path / "a.json").read_bytes().decode()) == {"a": None, "b": [None, [1, None]], "c": "x?"}


@pytest.mark.parametrize("reader", [check_file, read_json, read_tensors, lambda path: read_text(path, most=10)])
def test_what_is_no_file_is_not_opened(reader: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nobody")
    cases = {
        "": "a folder",
        "pipe": "no regular file",
        "device": "no regular file",
        "loop": "symbolic",
        "broken": "a broken link",
        "nobody": "no such file",
        "file/below": "Not a directory",
        "a" * 300: "too long",
        "a\0b": "null",
    }
    for name, words in cases.items():
        with pytest.raises(MgenError, match=words):
            reader(tmp_path / name)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**40)  # a terabyte of zeros that takes no space
    with pytest.raises(MgenError, match="larger than 64 MiB"):
        read_json(tmp_path / "large.json")


def test_damaged_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"a": torch.zeros(100)}, {"key": "value"})
    assert read_tensors(file)[1] == {"key": "value"}
    whole = file.read_bytes()
    for data in (
        b"",
        whole[:20],
        whole[:-1],
        whole + b"x",
        b"\xff" * 100,
    ):
        file.write_bytes(data)
        with pytest.raises(MgenError, match="not a readable safetensors file"):
            read_tensors(file)


def test_check_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken").symlink_to("nobody")
    (tmp_path / "loop").symlink_to("loop")
    check_writable(tmp_path / "new" / "deep")
    for name, words in (
        ("file", "a file"),
        ("file/x", "a file"),
        ("broken/x", "broken link"),
        ("a" * 300, "too long"),
        ("a\0", "null"),
    ):
        with pytest.raises(MgenError, match=words):
            check_writable(tmp_path / name)
    with pytest.raises(MgenError):
        check_writable(tmp_path / "loop")
    assert sorted(os.listdir(tmp_path)) == ["broken", "file", "loop"]
