"""mgen cache: options that it cannot use, and images that change between two runs."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mgen.cli import main
from mgen.data import ImageFolder, TokenCache, write_cache
from tests.helpers import tiny_tokenizer
from tests.system.boundaries.harness import Copied, Parts, Raises, Refused, row

CACHE = ["cache", "--data", "@images", "--tokenizer", "@pipeline"]
OPTIONS = [
    row("image size 31", [*CACHE, "--out", "o", "--image-size", "31"], "31", "multiple of 4"),
    row("image size 0", [*CACHE, "--out", "o", "--image-size", "0"], "--image-size", "at least 1"),
    row("image size 10**6", [*CACHE, "--out", "o", "--image-size", "1000000"], "1000000", "too large"),
    row("image size 12000", [*CACHE, "--out", "o", "--image-size", "12000"], "12000", "too large"),
    row("image size 10**30", [*CACHE, "--out", "o", "--image-size", str(10**30)], "--image-size", "no whole number"),
    row("image size 2**64", [*CACHE, "--out", "o", "--image-size", str(2**64)], "--image-size", "at most"),
    row("image size superscript", [*CACHE, "--out", "o", "--image-size", "³²"], "no whole number"),
    row("batch size 0", [*CACHE, "--out", "o", "--batch-size", "0"], "--batch-size", "at least 1"),
    row("shard size -1", [*CACHE, "--out", "o", "--shard-size", "-1"], "--shard-size", "at least 1"),
    row("first stage as large", [*CACHE, "--out", "o", "--first-stage-size", "32"], "must be smaller"),
    row("first stage 10", [*CACHE, "--out", "o", "--first-stage-size", "10"], "multiple of 4"),
    row("dtype of ids", [*CACHE, "--out", "o", "--dtype", "fp16"], "fp16", "moments"),
    row("dtype unknown", [*CACHE, "--out", "o", "--dtype", "bf16"], "--dtype", "fp16"),
    row("no out", CACHE, "--out is missing"),
    row("out empty", [*CACHE, "--out", ""], "--out", "empty"),
    row("out of spaces", [*CACHE, "--out", "  "], "--out", "empty"),
    row("out too long", [*CACHE, "--out", "a" * 300], "--out", "too long"),
    row("out below a file", [*CACHE, "--out", "@config/x"], "is a file"),
    row("out a file", [*CACHE, "--out", "@config"], "is a file"),
    row("out a device", [*CACHE, "--out", "/dev/null"], "/dev/null"),
    row("no data", ["cache", "--out", "o"], "--data is missing"),
    row("data empty", ["cache", "--data", "", "--out", "o"], "--data", "empty"),
    row("data missing", ["cache", "--data", "nowhere", "--out", "o"], "no such folder: nowhere"),
    row("data a file", ["cache", "--data", "@config", "--out", "o"], "no such folder"),
    row("data flat", ["cache", "--data", "@flat", "--tokenizer", "@pipeline", "--out", "o"], "--classes none"),
    row("classes unknown", [*CACHE, "--out", "o", "--classes", "some"], "--classes", "none"),
    row("tokenizer empty", ["cache", "--data", "@images", "--tokenizer", "", "--out", "o"], "--tokenizer", "empty"),
    row("split of a folder", [*CACHE, "--out", "o", "--split", "test"], "--split", "no effect"),
    row("files of a folder", [*CACHE, "--out", "o", "--data-path", "@idx"], "--data-path", "no effect"),
    row("image size of fmnist", ["cache", "--data", "fmnist", "--image-size", "64", "--out", "o"], "no effect"),
    row("scale and out", [*CACHE, "--out", "o", "--measure-scale", "5"], "--out", "no effect"),
    row("scale and order", [*CACHE, "--measure-order", "5", "--measure-scale", "5"], "not allowed with"),
    row("scale 0", [*CACHE, "--measure-scale", "0"], "--measure-scale", "at least 1"),
    row("scale of ids", [*CACHE, "--measure-scale", "5"], "--measure-scale", "KL"),
]


@pytest.mark.parametrize(("argv", "words"), OPTIONS)
def test_options_of_mgen_cache(refused: Refused, argv: list[str], words: list[str]) -> None:
    refused([*argv, "--device", "cpu"], *words)


def test_disk_and_memory_are_estimated_first(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100))  # type: ignore[attr-defined]
        refused([*CACHE, "--out", "o", "--device", "cpu"], "a cache of 12 images", "disk")
    monkeypatch.setattr("mgen.utils.limits.available_memory", lambda device: 1000)
    refused([*CACHE, "--out", "o", "--device", "cpu"], "tokenizing 12 images of 32×32", "--batch-size")


# -- data that change ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache_of(parts: Parts) -> Callable[..., int]:
    def run(data: str, *more: str) -> int:
        argv = ["cache", "--data", data, "--tokenizer", str(parts["pipeline"]), "--shard-size", "8", "--device", "cpu"]
        return main([*argv, "--out", "out", *more])

    return run


def renamed(folder: Path) -> None:
    (folder / "coat" / "1.png").rename(folder / "coat" / "9.png")


def in_another_class(folder: Path) -> None:
    (folder / "dress" / "0.png").rename(folder / "coat" / "7.png")


def replaced(folder: Path) -> None:
    Image.new("L", (32, 32), 7).save(folder / "bag" / "2.png")


def touched(folder: Path) -> None:
    os.utime(folder / "bag" / "2.png", (1, 1))


def removed(folder: Path) -> None:
    (folder / "bag" / "2.png").unlink()


def added(folder: Path) -> None:
    shutil.copy(folder / "bag" / "2.png", folder / "bag" / "20.png")


def a_new_class(folder: Path) -> None:
    (folder / "ankle boot").mkdir()
    shutil.copy(folder / "bag" / "2.png", folder / "ankle boot" / "0.png")


@pytest.mark.parametrize("change", [renamed, in_another_class, replaced, touched, removed, added, a_new_class])
def test_a_cache_of_images_that_changed_is_refused(
    copied: Copied, cache_of: Callable[..., int], capsys: pytest.CaptureFixture[str], change: Callable[[Path], object]
) -> None:
    data = copied("images")
    assert cache_of("images") == 0
    before = {p: p.read_bytes() for p in Path("out").iterdir()}
    assert cache_of("images/") == 0 and cache_of("./images") == 0 and cache_of(str(data)) == 0  # one folder
    capsys.readouterr()
    change(data)
    assert cache_of("images") == 2
    line = capsys.readouterr().err.strip()
    assert "changed" in line or "other classes" in line, line
    assert {p: p.read_bytes() for p in Path("out").iterdir()} == before


def test_a_bad_file_is_named_and_after_its_removal_the_same_command_goes_on(
    copied: Copied, cache_of: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = copied("images")
    for bad, left in (("bag/0.png", []), ("dress/1.png", ["index.json", "shard-00000.safetensors"])):
        (data / bad).write_bytes((data / bad).read_bytes()[:100])
        assert cache_of("images") == 2
        assert bad in capsys.readouterr().err.splitlines()[-1]
        assert sorted(p.name for p in Path("out").glob("*")) == left
        (data / bad).unlink()
    stamp = Path("out/shard-00000.safetensors").stat().st_mtime_ns
    assert cache_of("images") == 0
    cache = TokenCache("out", full=True)
    assert len(cache) == 10 and cache.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert Path("out/shard-00000.safetensors").stat().st_mtime_ns == stamp


def test_a_lost_or_empty_index_is_written_again_and_takes_over_no_foreign_shard(
    copied: Copied, cache_of: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = copied("images")
    assert cache_of("images") == 0
    file = Path("out/index.json")
    whole = file.read_bytes()
    for lose in (file.unlink, lambda: file.write_text("")):
        lose()
        assert cache_of("images") == 0 and file.read_bytes() == whole
    file.unlink()
    for more in (["--flips"], ["--image-size", "64"], ["--classes", "none"], ["--shard-size", "6"]):
        assert cache_of("images", *more) == 2
        assert "shard-00000" in capsys.readouterr().err and not file.exists()
    replaced(data)
    assert cache_of("images") == 2 and "changed" in capsys.readouterr().err
    assert not file.exists()


def test_an_index_without_shards_blocks_nothing(copied: Copied, cache_of: Callable[..., int]) -> None:
    copied("images")
    assert cache_of("images", "--flips") == 0
    for path in Path("out").glob("shard-*"):
        path.unlink()
    assert cache_of("images") == 0 and len(TokenCache("out", full=True)) == 12


def test_images_that_are_added_behind_the_last_shard_extend_a_cache(
    copied: Copied, cache_of: Callable[..., int]
) -> None:
    data = copied("images")
    for i in range(4, 8):
        shutil.copy(data / "dress" / "0.png", data / "dress" / f"{i}.png")
    assert cache_of("images") == 0
    shutil.copy(data / "dress" / "0.png", data / "dress" / "8.png")
    assert cache_of("images") == 0
    assert len(TokenCache("out", full=True)) == 17


def test_shards_of_two_runs_are_the_same_bytes(copied: Copied, cache_of: Callable[..., int]) -> None:
    copied("images")
    assert cache_of("images") == 0
    before = {p: p.read_bytes() for p in Path("out").iterdir()}
    shutil.rmtree("out")
    assert cache_of("images") == 0
    assert {p: p.read_bytes() for p in Path("out").iterdir()} == before


def test_arguments_of_write_cache(parts: Parts, here: Path, raises: Raises) -> None:
    data = ImageFolder(root=parts["images"], image_size=32, channels=1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "8"}, "batch_size"),
        ({"shard_size": 0}, "shard_size"),
        ({"shard_size": 2.5}, "shard_size"),
        ({"flips": 1}, "flips"),
        ({"dtype": "fp64"}, "fp16"),
        ({"first_stage_size": -4}, "first_stage_size"),
        ({"source": 5}, "source"),
    ]
    for settings, word in wrong:
        raises(
            lambda settings=settings: write_cache(data, tiny_tokenizer(), here / "x", progress=False, **settings), word
        )
    raises(lambda: write_cache(None, tiny_tokenizer(), here / "x"), "dataset")  # type: ignore[arg-type]
    raises(lambda: write_cache(data, None, here / "x"), "tokenizer")  # type: ignore[arg-type]
    raises(lambda: write_cache(data, tiny_tokenizer(), None), "out")  # type: ignore[arg-type]
    raises(lambda: write_cache(data, tiny_tokenizer(), ""), "out")
    raises(lambda: TokenCache(here), "no token cache")
    raises(lambda: TokenCache(None), "path")  # type: ignore[arg-type]
    raises(lambda: TokenCache(5), "path")  # type: ignore[arg-type]


def test_folders_with_names_that_are_no_text(here: Path, cache_of: Callable[..., int], raises: Raises) -> None:
    odd = os.fsdecode(b"d\xff")
    (here / odd / "bag").mkdir(parents=True)
    Image.new("L", (32, 32)).save(here / odd / "bag" / os.fsdecode(b"\xfe.png"))
    assert cache_of(odd) == 0 and len(TokenCache("out", full=True)) == 1
    (here / odd / "bag").rename(here / odd / os.fsdecode(b"\xfd"))
    raises(lambda: ImageFolder(root=odd, image_size=32), "UTF-8", "rename")


def test_a_path_of_many_folders(refused: Refused, here: Path) -> None:
    refused([*CACHE, "--out", "/".join("a" * 2500), "--device", "cpu"], "too long")
    deep = "/".join("b" * 1500)
    assert main(["cache", "--verify", deep]) == 2
