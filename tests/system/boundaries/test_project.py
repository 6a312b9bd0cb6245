"""`mgen init` and `mgen train --project` on bad data, options and settings."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgen.cli import main
from mgen.project.start import InitRequest, init
from mgen.utils.files import _HOST
from tests.system.boundaries.harness import Copied, Parts, Refused, fifo, row

INIT = ["init", "--out", "made", "--no-timing"]
OPTIONS = [
    row("no data", [*INIT, "--data", "nowhere"], "no such folder: nowhere"),
    row("fmnist", [*INIT, "--data", "fmnist"], "fmnist-vqgan"),
    row("generator", [*INIT, "--data", "@images", "--generator", "marr"], "marr", "did you mean 'mar'"),
    row("cascade", [*INIT, "--data", "@images", "--generator", "himar-b"], "himar-b", "two stages"),
    row("channels", [*INIT, "--data", "@images", "--generator", "tokenbridge-b"], "multi-index"),
    row("tokens", [*INIT, "--data", "@images", "--generator", "mar", "--tokenizer", "@pipeline"], "vector", "index"),
    row("image size", [*INIT, "--data", "@images", "--image-size", "61"], "61", "multiple of 8", "56 or 64"),
    row(
        "size of tokenizer",
        [*INIT, "--data", "@images", "--image-size", "64", "--tokenizer", "@pipeline"],
        "64",
        "32 px",
    ),
    row("hours untimed", [*INIT, "--data", "@images", "--hours", "1"], "--hours", "--no-timing"),
    row("validation", [*INIT, "--data", "@images", "--val", "nowhere"], "nowhere"),
    row("flat as folders", [*INIT, "--data", "@flat", "--classes", "folders"], "outside of class folders"),
    row("no project", ["train", "--project", "@images"], "project.yaml", "mgen init"),
    row("neither", ["train"], "--config", "--project"),
    row("both", ["train", "--project", "@images", "--config", "@config"], "--config has no effect"),
    row("override", ["train", "--project", "@images", "steps=3"], "steps=3", "settings files"),
    row("stage of a file", ["train", "--config", "@config", "--stage", "cache"], "--stage", "--project"),
]


@pytest.mark.parametrize(("argv", "words"), OPTIONS)
def test_options(refused: Refused, argv: list[str], words: list[str]) -> None:
    refused(argv, *words)


@pytest.mark.parametrize("out", ["new", "there"])
def test_a_full_disk_leaves_no_half_of_a_project(
    refused: Refused, parts: Parts, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """Whichever file it is that has no room, the same command works once there is."""
    Path("there").mkdir()
    command = ["init", "--no-timing", "--data", str(parts["images"]), "--out", out]
    real, names = Path.write_text, ("project.yaml", "tokenizer.yaml", "generator.yaml", "stages.json")
    full = ""

    def write(path: Path, *args: Any, **kwargs: Any) -> int:
        if full in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write)
        for full in names:
            line = refused(command, f"/{out}/{full}", "No space left on device", "free space")
            assert ".tmp" not in line, line
    assert not Path("new").exists() and os.listdir("there") == []
    left = Path("there", f".scratch.{_HOST}-4194304.x.tmp")  # of a process that was killed
    left.mkdir()
    assert main(command) == 0
    assert (Path(out) / "project.yaml").is_file() and (Path(out) / "stages.json").is_file()
    assert not [name for name in os.listdir(out) if name.startswith(".s")]


@pytest.fixture
def data(here: Path, copied: Copied) -> Path:
    """Twelve images in three class folders, to be spoiled."""
    return copied("images")


def save(file: Path, side: int = 32) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), 100, np.uint8)).save(file)


def test_folders_without_enough_images(refused: Refused, here: Path) -> None:
    (here / "empty").mkdir()
    refused([*INIT, "--data", "empty"], "no images below empty")
    save(here / "one" / "0.png")
    refused([*INIT, "--data", "one"], "1 image", "at least")
    (here / "text").mkdir()
    (here / "text" / "a.txt").write_text("a")
    refused([*INIT, "--data", "text"], "no images below text")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_damaged_images(refused: Refused, data: Path, content: bytes) -> None:
    for name in ("x.png", "y.png"):
        (data / "bag" / name).write_bytes(content)
    refused([*INIT, "--data", data.name], "x.png", "1 more", "y.png")


def test_what_is_no_image_file(refused: Refused, data: Path) -> None:
    os.symlink("nobody", data / "bag" / "broken.png")
    refused([*INIT, "--data", data.name], "broken.png", "broken link")
    (data / "bag" / "broken.png").unlink()
    fifo(data / "bag" / "pipe.png")
    refused([*INIT, "--data", data.name], "pipe.png")


def test_images_beside_class_folders(refused: Refused, data: Path) -> None:
    save(data / "0.png")
    refused([*INIT, "--data", data.name], "outside of class folders", "0.png")


def test_validation_classes_that_the_data_lack(refused: Refused, data: Path, here: Path) -> None:
    save(here / "val" / "hat" / "0.png")
    refused([*INIT, "--data", data.name, "--val", "val"], "'hat'", "lacks")


def test_a_folder_that_is_not_empty(refused: Refused, data: Path, here: Path) -> None:
    (here / "made").mkdir()
    (here / "made" / "notes.txt").write_text("mine")
    refused([*INIT, "--data", data.name], "made", "other files")


def test_odd_names_and_sizes_are_no_problem(data: Path, here: Path) -> None:
    for name in ("a, b: c", "#grün", "- 'x\"", "{y}", "null"):
        save(data / name / "0.png", side=9)
        save(data / name / "1.png", side=200)
    init(InitRequest(data=str(data), out="made", timed=False))
    shutil.rmtree("made")


# -- settings of a project ---------------------------------------------------------------------------------------------------

SETTINGS = [
    ("project.yaml", "image_size: 32", "image_size: -1", "data.image_size"),
    ("project.yaml", "image_size: 32", "image_sizes: 32", "image_size"),
    ("project.yaml", "  path: ", "  # path: ", "path"),
    ("project.yaml", "\ndata:", "\n[", "project.yaml"),
    ("project.yaml", "report:", "reports:", "report"),
    ("classifier.yaml", "extends: classifier", "extends: clasifier", "did you mean 'classifier'"),
    ("classifier.yaml", "data: {", "steps: many\ndata: {", "classifier.yaml", "steps"),
]


@pytest.mark.parametrize(("name", "old", "new", "words"), [(n, o, w, rest) for n, o, w, *rest in SETTINGS])
def test_settings(refused: Refused, data: Path, here: Path, name: str, old: str, new: str, words: list[str]) -> None:
    init(InitRequest(data=str(data), out="project", timed=False))
    file = here / "project" / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    refused(["train", "--project", "project"], *words)


@pytest.mark.parametrize("stage", ["nobody", "cache", "check,generator", ""])
def test_stages(refused: Refused, data: Path, here: Path, stage: str) -> None:
    init(InitRequest(data=str(data), out="project", timed=False))
    refused(["train", "--project", "project", "--stage", stage])


def test_redo_needs_a_stage(refused: Refused, data: Path) -> None:
    init(InitRequest(data=str(data), out="project", timed=False))
    refused(["train", "--project", "project", "--redo"], "--redo needs --stage")


def test_a_project_that_is_not_trained_is_no_model(refused: Refused, data: Path) -> None:
    init(InitRequest(data=str(data), out="project", timed=False))
    refused(["sample", "--model", "project"], "not trained yet")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stages": 3}', '{"stages": {"check": {}}}'])
def test_damaged_records(refused: Refused, data: Path, here: Path, text: str) -> None:
    init(InitRequest(data=str(data), out="project", timed=False))
    (here / "project" / "stages.json").write_text(text)
    refused(["train", "--project", "project"], "stages.json")


def test_data_that_are_gone(refused: Refused, data: Path) -> None:
    init(InitRequest(data=str(data), out="project", timed=False))
    shutil.rmtree(data)
    refused(["train", "--project", "project"], "no such folder")
