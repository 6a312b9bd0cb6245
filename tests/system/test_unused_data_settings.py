"""Settings of the data that their kind has no use for: told, unless they are at their defaults or come from a shipped file."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from mgen.cli import main
from mgen.cli.train import with_data, with_overrides
from mgen.data import ImageFolder, write_cache
from mgen.training.checkpoints import list_checkpoints
from mgen.training.config import DataConfig, train_config
from mgen.training.loop import train
from mgen.utils.config import read_config
from mgen.utils.errors import MgenError
from mgen.utils.files import write_json
from mgen.utils.folders import shipped
from mgen.utils.reading import read_json
from tests.helpers import tiny_tokenizer
from tests.system.test_own_data import color_images
from tests.system.test_training import generator_run

UNUSED: dict[str, tuple[Any, str]] = {
    "shift": (2, "set shift=0"),
    "image_size": (32, "set image_size=256"),
    "channels": (1, "set channels=3"),
    "classes": ("none", "set classes=folders"),
    "keep": (True, "set keep=false"),
}


@pytest.mark.parametrize("name", UNUSED)
def test_settings_of_images_with_a_cache(name: str) -> None:
    value, words = UNUSED[name]
    with pytest.raises(MgenError, match=f"{name} is .*, but it is for kind=.*folder.*{words}"):
        DataConfig(kind="cache", path="x", **{name: value})
    DataConfig(kind="folder", path="x", **{name: value})


def test_defaults_are_taken() -> None:
    DataConfig(kind="cache", path="x", shift=0, image_size=256, channels=3, classes="folders", keep=False, held_out=0.0)


def test_two_kinds_of_validation_images() -> None:
    with pytest.raises(MgenError, match="held_out is 0.1, but val_path has .*set held_out=0"):
        DataConfig(kind="folder", path="x", val_path="y", held_out=0.1)
    DataConfig(kind="folder", path="x", val_path="y", held_out=0.0)


@pytest.mark.parametrize("name", sorted(shipped("train")))
def test_shipped_files_have_none(name: str) -> None:
    settings = read_config(shipped("train")[name])
    DataConfig(**settings.get("data", {}))


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    color_images(tmp_path / "d", count=4)
    color_images(tmp_path / "val", count=2, seed=1)
    return tmp_path


def test_other_validation_images_than_a_shipped_file_holds_out(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "train",
        "--config",
        "classifier",
        "--data",
        "d",
        "--out",
        "run",
        "steps=1",
        "batch_size=8",
        "model.widths=[4]",
    ]
    argv += ["optim.warmup=0", "log.tensorboard=false", "data.val_path=val"]
    assert main([*argv, "data.held_out=0.2"]) == 2
    assert "held_out is 0.2" in capsys.readouterr().err
    assert main(argv) == 0
    data = read_json("run/config.json")["data"]
    assert (data["val_path"], data["held_out"]) == ("val", 0.0)


@pytest.mark.parametrize(
    ("override", "share"),
    [
        ("data.val_path=~", 0.1),
        ("data.val_path=null", 0.1),
        ("data={val_path: val}", None),
        ("data.val_path=val", None),
    ],
)
def test_what_an_override_says_of_validation(override: str, share: float | None) -> None:
    settings = {"data": {"kind": "folder", "held_out": 0.1}}
    assert with_overrides(settings, [override])["data"].get("held_out") == share
    assert with_overrides({"data": {"val_path": "x", "held_out": 0}}, [override])["data"]["held_out"] == 0


def test_fashion_mnist_holds_nothing_out() -> None:
    with pytest.raises(MgenError, match="held_out is 0.3, but Fashion-MNIST has a test split"):
        DataConfig(kind="fmnist", held_out=0.3)
    made = with_data({"data": {"kind": "folder", "held_out": 0.1, "flip": True}}, "fmnist", "classifier")["data"]
    assert made == {"kind": "fmnist", "path": None, "flip": True}


def test_a_cache_in_place_of_the_images_of_a_file(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer(in_channels=3)
    tokenizer.save_pretrained("tokenizer")
    data = ImageFolder(root="d", image_size=tokenizer.config.image_size)
    write_cache(data, tokenizer, "c", progress=False)
    assert main(["train", "--config", "classifier", "--data", "c", "--out", "run"]) == 2
    assert "holds tokens, but this task trains on images" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_goes_on(images: Path) -> None:
    """Its checkpoint holds settings that had no effect; they are left out now."""
    tokenizer = tiny_tokenizer(in_channels=3)
    tokenizer.save_pretrained("tokenizer")
    write_cache(ImageFolder(root="d", image_size=tokenizer.config.image_size), tokenizer, "c", progress=False)
    settings = generator_run(
        images,
        images / "tokenizer",
        images / "run",
        **{"data.kind": "cache", "data.path": "c", "data.val_path": "c", "data.shift": 0, "model.classes.count": 3},
    )
    settings |= {"steps": 2, "batch_size": 4, "accumulate": 1}
    train(train_config(settings))
    for checkpoint in list_checkpoints(images / "run"):
        state = read_json(checkpoint / "state.json")
        state["settings"]["data"] |= {"shift": 2, "held_out": 0.1, "keep": True}
        write_json(checkpoint / "state.json", state)
    shutil.rmtree(images / "run" / "model")
    train(train_config({**settings, "steps": 3}))
    assert read_json("run/config.json")["data"]["shift"] == 0


def test_tars_in_place_of_the_images_of_a_file(tmp_path: Path) -> None:
    """A share held out is of folders: the shipped classifier, which has one, trains on tars too."""
    (tmp_path / "a.tar").write_bytes(b"")
    settings = {"data": {"kind": "folder", "held_out": 0.1, "image_size": 32}}
    made = with_data(settings, str(tmp_path / "a.tar"), "classifier")["data"]
    assert made == {"kind": "webdataset", "path": str(tmp_path / "a.tar"), "image_size": 32}
