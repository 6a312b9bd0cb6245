"""--overwrite replaces what a command wrote, and nothing else; settings that differ from a folder's are named, all of them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from mgen.cli import main
from tests.system.boundaries.harness import EVAL, Parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


MODEL = ["--model", "@pipeline", "--device", "cpu"]
SAMPLE = ["sample", *MODEL, "--num-images", "2", "--steps", "2", "--out", "o"]
REFERENCES = ["--reference-search", "@statistics", "--reference-test", "@flat"]
# A command, options that make it another run, the words of the error, and a file that it leaves.
COMMANDS = {
    "sample": (
        SAMPLE,
        ["--seed", "1", "--set", "temperature=0.5"],
        ["seed was 0, now it is 1", "sampler.temperature was"],
        "run.json",
    ),
    "cache": (
        ["cache", "--data", "@images", "--tokenizer", "@pipeline", "--out", "o", "--device", "cpu"],
        ["--flips", "--shard-size", "5"],
        ["flips was False, now it is True", "shard_size was 16384, now it is 5"],
        "index.json",
    ),
    "tune": (
        ["tune", *MODEL, "--trials", "2", "--num-images", "4", "--test-images", "4", *REFERENCES, "--out", "o"],
        ["--knots", "1", "--seed", "5"],
        ["knots was 2, now it is 1", "search_seed was 0, now it is 5"],
        "run.json",
    ),
}


def run(parts: Parts, argv: Sequence[str], capsys: pytest.CaptureFixture) -> tuple[int, str]:
    capsys.readouterr()
    status = main([parts.fill(word) for word in argv])
    return status, capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_other_settings_are_named_and_overwrite_replaces(
    name: str, parts: Parts, here: Path, capsys: pytest.CaptureFixture
) -> None:
    argv, other, words, file = COMMANDS[name]
    assert run(parts, argv, capsys)[0] == 0
    before = (here / "o" / file).read_text()
    status, error = run(parts, [*argv, *other], capsys)
    assert status == 2 and all(word in error for word in words) and "--overwrite" in error, error
    assert (here / "o" / file).read_text() == before
    # Another file in the folder keeps it as it is.
    (here / "o" / "mine.txt").write_text("mine")
    status, error = run(parts, [*argv, *other, "--overwrite"], capsys)
    assert status == 2 and "mine.txt" in error and (here / "o" / file).read_text() == before, error
    (here / "o" / "mine.txt").unlink()
    assert run(parts, [*argv, *other, "--overwrite"], capsys)[0] == 0
    assert (here / "o" / file).read_text() != before
    assert [entry.name for entry in here.iterdir()] == ["o"], "the old folder is gone"
    assert run(parts, [*argv, *other], capsys)[0] == 0, "the new run can be resumed"


def test_what_fails_before_it_writes_leaves_the_old_run(
    parts: Parts, here: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(parts, SAMPLE, capsys)[0] == 0
    before = {file.name: file.read_bytes() for file in (here / "o").iterdir()}
    assert run(parts, [*SAMPLE, "--overwrite", "--classes", "nobody"], capsys)[0] == 2
    assert run(parts, [*SAMPLE, "--overwrite", "--batch-size", "1", "--num-images", "1000000000000"], capsys)[0] == 2
    assert {file.name: file.read_bytes() for file in (here / "o").iterdir()} == before
    assert os.listdir(here) == ["o"]


def test_an_animation_is_the_runs_own_and_a_file_that_is_called_as_one_elsewhere_is_not(
    parts: Parts, here: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(parts, SAMPLE, capsys)[0] == 0
    (here / "o" / "all.npz").write_text("mine")
    status, error = run(parts, [*SAMPLE, "--overwrite", "--npz", "all.npz"], capsys)
    assert status == 2 and "all.npz" in error and (here / "o" / "all.npz").read_text() == "mine"
    (here / "o" / "all.npz").unlink()
    (here / "o" / "animation.gif").write_bytes(b"GIF89a")  # of a run with --animation
    assert run(parts, [*SAMPLE, "--overwrite", "--seed", "1"], capsys)[0] == 0
    assert not (here / "o" / "animation.gif").exists()


def test_settings_in_the_sampler_are_named_by_their_own_keys(
    parts: Parts, here: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(parts, SAMPLE, capsys)[0] == 0
    error = run(parts, [*SAMPLE, "--steps", "3", "--guidance", "7"], capsys)[1]
    assert "sampler.steps was 2, now it is 3" in error and "sampler.guidance was" in error and "order" not in error
    assert "classes" not in error and len(error) < 400, error


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("empty", ""),
        ("image", "no run of mgen sample"),
        ("folder", "the folder 'sub'"),
        ("link", "'link.png'"),
        ("file", "no folder"),
    ],
)
def test_folders_that_are_no_run(what: str, word: str, parts: Parts, here: Path, capsys: pytest.CaptureFixture) -> None:
    out = here / "o"
    if what == "file":
        out.write_text("text")
    else:
        out.mkdir()
    if what == "image":
        (out / "000000.png").write_bytes(b"a picture of mine")
    if what in ("folder", "link"):
        assert run(parts, SAMPLE, capsys)[0] == 0
        (out / "sub").mkdir() if what == "folder" else (out / "link.png").symlink_to("/etc/hostname")
    status, error = run(parts, [*SAMPLE, "--overwrite"], capsys)
    assert status == (2 if word else 0) and word in error
    if what == "image":
        assert (out / "000000.png").read_bytes() == b"a picture of mine"


def test_the_working_folder_and_inputs_are_never_replaced(
    parts: Parts, here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(parts, SAMPLE, capsys)[0] == 0
    evaluation = [
        "eval",
        "o",
        "--reference",
        "@statistics",
        "--protocol",
        "fmnist-cnn",
        "--device",
        "cpu",
        "--bootstrap",
        "0",
    ]
    assert run(parts, [*evaluation, "--out", "o/result"], capsys)[0] == 0
    status, error = run(parts, [*evaluation, "--out", "o", "--overwrite"], capsys)
    assert status == 2 and (here / "o" / "run.json").is_file(), error
    monkeypatch.chdir(here / "o")
    status, error = run(parts, [*SAMPLE[:-1], ".", "--overwrite"], capsys)
    assert status == 2 and "working directory" in error and (here / "o" / "run.json").is_file()


def test_an_evaluation_of_other_settings_starts_anew(parts: Parts, here: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["eval", *EVAL, "--bootstrap", "0", "--keep-features", "--out", "o"]
    assert run(parts, argv, capsys)[0] == 0
    status, error = run(parts, [*argv, "--seed", "3", "--steps", "3"], capsys)
    assert status == 2 and "images.seed was 0, now it is 3" in error and "images.sampler.steps was" in error, error
    assert run(parts, [*argv, "--seed", "3", "--steps", "3", "--overwrite"], capsys)[0] == 0
    assert json.loads((here / "o" / "result.json").read_text())["images"]["seed"] == 3
