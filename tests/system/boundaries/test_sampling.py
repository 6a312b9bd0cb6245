"""`mgen sample`: options, sizes, classes, and files of a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgen.cli import main
from mgen.pipelines.classes import read_classes
from mgen.pipelines.labels import LabelPlan
from mgen.pipelines.runs import Run, spans
from tests.system.boundaries.harness import Copied, Raises, Refused, row

SAMPLE = ["sample", "--model", "@pipeline", "--device", "cpu"]
HUGE = "1" + "0" * 12
OPTIONS = [
    row("num-images 0", ["--num-images", "0"], "--num-images", "at least 1"),
    row("num-images 10**39", ["--num-images", "1" + "0" * 39], "--num-images"),
    row("num-images 5000 digits", ["--num-images", "9" * 5000], "--num-images"),
    row("num-images 10**12", ["--num-images", HUGE], "1,000,000,000,000"),
    row("num-images 10**12 random", ["--num-images", HUGE, "--labels", "random"], "1,000,000,000,000"),
    row("num-images 10**12 sorted", ["--num-images", HUGE, "--labels", "sorted"], "1,000,000,000,000"),
    row("num-images 10**12 npz", ["--num-images", HUGE, "--format", "npz"], "GB of disk"),
    row("num-images and batch", ["--num-images", HUGE, "--batch-size", HUGE], "GB of memory"),
    row("one shard of all", ["--num-images", HUGE, "--format", "npz", "--shard-size", HUGE], "GB of disk"),
    row("steps 10**12", ["--steps", HUGE], "steps", "at most"),
    row("steps 0", ["--steps", "0"], "--steps", "at least 1"),
    row("steps per token", ["--steps", "99999"], "64 tokens"),
    row("batch-size 0", ["--batch-size", "0"], "--batch-size"),
    row("image-size 0", ["--image-size", "0"], "--image-size"),
    row("image-size 10**6", ["--image-size", "1000000"], "GB of memory"),
    row("image-size 10**9", ["--image-size", "1000000000"], "--image-size", "at most"),
    row("shard-size 0", ["--format", "npz", "--shard-size", "0"], "--shard-size"),
    row("shard-size of png", ["--shard-size", "5"], "--format npz"),
    row("device meta", ["--device", "meta"], "device", "cpu"),
    row("device cpu:7", ["--device", "cpu:7"], "cpu:0"),
    row("device cuda:99", ["--device", "cuda:99"], "cuda"),
    row("device empty", ["--device", ""], "empty"),
    row("dtype", ["--dtype", "fp8"], "dtype", "bf16"),
    row("temperature -1", ["--temperature", "-1"], "--temperature", "at least 0"),
    row("guidance nan", ["--guidance", "nan"], "--guidance", "finite"),
    row("guidance 1e300", ["--guidance", "1e300"], "10,000"),
    row("head-steps 0", ["--head-steps", "0"], "--head-steps"),
    row("order ²", ["--order", "²,1"], "order"),
    row("order short", ["--order", "1,0"], "2 positions"),
    row("seed ²", ["--seed", "²"], "--seed"),
    row("seed 10**30", ["--seed", "1" + "0" * 30], "--seed"),
    row("npz empty", ["--npz", ""], "empty"),
    row("npz of another kind", ["--npz", "a.zip"], ".npz"),
    row("animation empty", ["--animation", ""], "empty"),
    row("animation of another kind", ["--animation", "a.mp4"], ".gif, .png or .webp"),
    row("animation is the grid", ["--animation", "samples/grid.png"], "a file of the run"),
    row("animation is the grid by its name", ["--animation", "grid.png"], "a file of the run"),
    row("animation-images alone", ["--animation-images", "4"], "--animation"),
    row("animation-images 0", ["--animation", "--animation-images", "0"], "--animation-images", "at least 1"),
    row("animation-images 101", ["--animation", "--animation-images", "101"], "at most 100"),
    row("animation is an image", ["--animation", "./samples/../samples/000000_class-0000.png"], "a file of the run"),
    row("model empty", ["--model", ""], "empty"),
    row("model long", ["--model", "a" * 300], "too long"),
    row("model of the hub", ["--model", "owner/nothing"], "owner/nothing", "HF_HUB_OFFLINE"),
    row("recipe empty", ["--recipe", ""], "empty"),
    row("recipe missing", ["--recipe", "maskgit-imagnet256"], "recipe"),
    row("out empty", ["--out", ""], "empty"),
    row("out long", ["--out", "a" * 300], "too long"),
    row("out null character", ["--out", "x\0y"], "null character"),
    row("out 300 deep", ["--out", "/".join("a" * 300)], "200 folders"),
    row("out in /proc", ["--out", "/proc/mgen"], "/proc"),
    row("classes empty", ["--classes", ""], "empty"),
    row("classes ²", ["--classes", "²"], "²"),
    row("classes endless", ["--classes", "0-99999999999"], "0 … 2"),
    row("classes of 5000 digits", ["--classes", "9" * 5000], "0 … 2"),
    row("classes -1", ["--classes=-1"], "-1"),
    row("classes backwards", ["--classes", "2-0"], "empty"),
    row("classes trailing comma", ["--classes", "0,"], "class"),
    row("classes open quote", ["--classes", '"a'], "quotes"),
    row("classes too often", ["--classes", ",".join(["0-2"] * 400)], "more than"),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_options(refused: Refused, options: list[str], words: list[str]) -> None:
    refused([*SAMPLE, *options], *words)


NUMBERS = ["0", "1", "10", "11", *"23456789"]  # folder names in the order of text
NAMES = ["crane", "crane", "MixedCase", "mixedcase", "crane, bird", "1-2", "a:b", "Bag", 'q"x']
AMBIGUOUS = [
    row("a name that is another's id", (NUMBERS, "2"), "class 4", "'10'", "name:2", "id:2"),
    row("a range that could be names", (NUMBERS, "1-2"), "id:1-2"),
    row("twice", (NAMES, "crane"), "0 (crane), 1 (crane)", "give the id"),
    row("two in other case", (NAMES, "MIXEDCASE"), "2 (MixedCase), 3 (mixedcase)"),
]


@pytest.mark.parametrize(("given", "words"), AMBIGUOUS)
def test_ambiguous_classes(raises: Raises, given: tuple[list[str], str], words: list[str]) -> None:
    raises(lambda: read_classes(given[1], given[0], "--classes"), "--classes", *words)


def test_names_of_classes() -> None:
    def ids(text: str, names: list[str] = NAMES) -> list[int]:
        return read_classes(text, names, "--classes")

    assert ids("MixedCase") == [2] and ids("mixedcase") == [3] and ids("bag") == [7]
    assert ids("crane, bird") == [4] and ids('"crane, bird",2') == [4, 2] and ids('q"x') == [8]
    assert ids("1-2") == [5] and ids("id:1-2") == [1, 2] and ids("0, 3") == [0, 3] and ids("a:b") == [6]
    assert ids("name:2", NUMBERS) == [4] and ids("id:2", NUMBERS) == [2]
    assert ids("2", [str(i) for i in range(12)]) == [2] and ids("1-2", [str(i) for i in range(12)]) == [1, 2]


def test_runs_take_no_memory() -> None:
    run = Run(out=Path("x"), labels=LabelPlan("random", classes=range(10), count=10**15, seed=0))
    assert len(run.spans) == 10**15 and run.spans[-1] == (10**15 - 1, 10**15) and len(run.spans[7::8]) == 125 * 10**12
    for start, stop, size, rank, world in (
        (0, 10, 3, 0, 1),
        (0, 10, 3, 1, 2),
        (4, 5, 9, 0, 1),
        (0, 12, 4, 2, 3),
        (0, 3, 1, 5, 6),
    ):
        expected = [(a, min(a + size, stop)) for a in range(start, stop, size)][rank::world]
        found = spans(start, stop, size)[rank::world]
        assert list(found) == expected and found.total == sum(b - a for a, b in expected)


DAMAGES: list[Any] = [
    row("another size", lambda f: Image.fromarray(np.zeros((40, 36), np.uint8)).save(f), "000003"),
    row("empty", lambda f: f.write_bytes(b""), "000003"),
    row("text", lambda f: f.write_text("x"), "000003"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_images_of_a_run(damage: Any, words: list[str], copied: Copied, parts: Any, capsys: Any) -> None:
    folder = copied("run")
    damage(next(folder.glob("000003*")))
    capsys.readouterr()
    assert main([*map(parts.fill, SAMPLE), "--num-images", "6", "--out", "run"]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mgen: ")]
    assert len(error) == 1 and all(word in error[0] for word in words)


def test_home_is_expanded(parts: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    assert main([*map(parts.fill, SAMPLE), "--num-images", "1", "--out=~/x"]) == 0
    assert json.loads((here / "home" / "x" / "run.json").read_text())["num_images"] == 1 and not (here / "~").exists()


@pytest.mark.parametrize("name", ["KeyboardInterrupt", "Terminated"])
def test_the_message_of_an_interruption(name: str, parts: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import builtins

    from mgen.pipelines import generation
    from mgen.utils import errors

    kind = getattr(errors, name, None) or getattr(builtins, name)

    def stopped(*_: object, **__: object) -> None:
        raise kind("terminated") if name == "Terminated" else kind

    monkeypatch.setattr(generation, "complete_run", stopped)
    assert main([*map(parts.fill, SAMPLE), "--num-images", "1"]) == (143 if name == "Terminated" else 130)
    assert "the same command goes on where it stopped" in capsys.readouterr().err
