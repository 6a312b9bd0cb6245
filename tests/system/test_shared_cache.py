"""A cache that several processes write together: the same bytes as by one, after any interruption."""

import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mgen.cli import main
from mgen.data import ImageFolder, TokenCache, write_cache
from mgen.data.sharing import Writers
from mgen.utils.errors import MgenError
from tests.helpers import tiny_kl
from tests.processes import fork, together


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, 29 images of two classes, and their cache by one process."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_kl().save_pretrained(folder / "kl")
    rng = torch.Generator().manual_seed(0)
    for i in range(29):
        (folder / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (32, 32), generator=rng, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / "images" / "ab"[i % 2] / f"{i:02d}.png")
    assert main(command(folder, "one")) == 0
    return folder


def command(folder: Path, out: str) -> list[str]:
    options = ["--dtype", "fp16", "--flips", "--shuffle", "--shard-size", "4", "--batch-size", "3", "--device", "cpu"]
    return [
        "cache",
        "--data",
        str(folder / "images"),
        "--tokenizer",
        str(folder / "kl"),
        "--out",
        str(folder / out),
        *options,
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def dies_after_a_shard(argv: list[str]) -> None:
    """The command in a process; the second of a launch is killed when its first shard is written."""
    if os.environ["RANK"] == "1":
        module = sys.modules["mgen.data.write_cache"]  # mgen.data has a function of this name
        real = module.write_tensors

        def once(*args: object) -> None:
            real(*args)  # type: ignore[arg-type]
            os.kill(os.getpid(), 9)

        module.write_tensors = once  # type: ignore[attr-defined]
    sys.exit(main(argv))


def test_two_processes_write_what_one_does(parts: Path) -> None:
    """The second one is killed first; then the two complete the cache, with a bar that counts the images of both."""
    argv = command(parts, "two")
    codes, said = fork(dies_after_a_shard, argv, log=parts / "log")
    assert codes == [2, -9] and said.count("another process of this run has ended") == 1, said[-2000:]
    left = contents(parts / "two")
    assert {"index.json", "shard-00001.safetensors"} <= left.keys() and len(left) < 9
    said = together(*argv, "--workers", "2", log=parts / "log")
    assert "100%" in said and "29/29" in said and said.count(str(parts / "two") + "\n") == 1
    assert contents(parts / "two") == contents(parts / "one")


def test_parts_are_independent_and_can_be_completed_by_other_numbers_of_processes(
    parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(parts, "three")
    assert main([*argv, "--part", "2/3"]) == 0
    assert sorted(p.name for p in (parts / "three").glob("shard*")) == [f"shard-0000{i}.safetensors" for i in (1, 4, 7)]
    assert main([*argv, "--part", "1/2", "--workers", "1"]) == 0
    together(*argv, "--part", "2/2", log=parts / "log")
    assert contents(parts / "three") == contents(parts / "one")
    capsys.readouterr()
    assert main([*argv, "--part", "0/2"]) == 2 and main([*argv, "--part", "1/2", "--overwrite"]) == 2


def test_a_shuffled_cache_holds_the_same_images_in_another_order(parts: Path, tmp_path: Path) -> None:
    data = ImageFolder(root=parts / "images", image_size=32, channels=1)
    plain = TokenCache(
        write_cache(data, tiny_kl(), tmp_path / "plain", dtype="fp16", flips=True, batch_size=3, progress=False)
    )
    cache = TokenCache(parts / "one", full=True)
    assert cache.index.shuffled and cache.record == plain.record and cache.labels.tolist() != plain.labels.tolist()
    assert sorted(cache.labels.tolist()) == plain.labels.tolist()
    kept, moments = (c.__getitems__(range(29))["moments"].flatten(1) for c in (cache, plain))
    places = torch.cdist(kept.double(), moments.double()).argmin(1)
    assert sorted(places.tolist()) == list(range(29)) and torch.equal(cache.labels, plain.labels[places])


def test_nothing_is_written_if_one_process_finds_a_foreign_shard(parts: Path, tmp_path: Path) -> None:
    """The barrier before the first shard: whoever waits there does not go on when another has ended."""

    def others_have_ended() -> None:
        raise MgenError("another process has ended")

    data = ImageFolder(root=parts / "images", image_size=32, channels=1)
    with pytest.raises(MgenError, match="another process has ended"):
        write_cache(
            data, tiny_kl(), tmp_path / "x", writers=Writers(rank=1, world=2, wait=others_have_ended), progress=False
        )
    assert not (tmp_path / "x").exists()
