"""A researcher's own images: classifiers of them, the record of the data in what is trained on them, and measures that belong to them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgen.cli import main
from mgen.data import FashionMNIST, ImageFolder
from mgen.data.look import look_at
from mgen.data.record import folder_name, read_trained_on
from mgen.training.config import train_config
from mgen.training.from_data import StepRule, fill_from_data
from mgen.utils.config import read_config
from mgen.utils.errors import MgenError
from mgen.utils.folders import part
from tests.helpers import write_idx

COLORS = {"blue": (30, 60, 220), "green": (20, 200, 60), "red": (230, 40, 30)}


def color_images(root: Path, *, count: int = 12, side: int = 20, seed: int = 0, mode: str = "RGB") -> Path:
    """A folder of noisy images of one color for each class."""
    rng = np.random.default_rng(seed)
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.normal(0, 40, (side + i % 3, side, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return color_images(tmp_path_factory.mktemp("own") / "colors")


@pytest.fixture(scope="module")
def classifier(colors: Path) -> Path:
    """A classifier of `colors`, trained by the command."""
    out = colors.parent / "classifier"
    fast = ["steps=30", "batch_size=16", "optim.warmup=0", "log.tensorboard=false", "model.widths=[8,16]"]
    assert main(["train", "--config", "classifier", "--data", str(colors), "--out", str(out), *fast]) == 0
    return out / "model"


# -- what follows from the data --------------------------------------------------------------------------------------------


def shipped(data: Path, **model: Any) -> dict[str, Any]:
    """The shipped settings of a classifier, for a folder."""
    settings = read_config(part("configs") / "train" / "classifier.yaml")
    settings["model"] |= model
    settings["data"]["path"] = str(data)
    return settings


def test_settings_that_are_left_out_follow_from_the_images(colors: Path, tmp_path: Path) -> None:
    filled = fill_from_data(shipped(colors))
    assert filled["model"] | {"class": ""} == {
        "class": "",
        "features": 64,
        "image_size": 32,
        "in_channels": 3,
        "num_classes": 3,
        "widths": [24, 48, 96],
    }
    assert (filled["data"]["image_size"], filled["data"]["channels"], filled["steps"]) == (32, 3, 400)
    assert fill_from_data(filled) == filled and train_config(filled).steps == 400
    given = fill_from_data(shipped(colors, image_size=16, widths=[4]))
    assert (given["model"]["image_size"], given["data"]["image_size"], given["model"]["widths"]) == (16, 16, [4])
    large = fill_from_data(shipped(color_images(tmp_path / "large", count=2, side=90, mode="L")))
    assert (large["model"]["image_size"], large["model"]["in_channels"], large["data"]["channels"]) == (64, 1, 1)
    assert large["model"]["widths"] == [16, 32, 64, 128]


def test_steps_are_passes_over_the_images_between_bounds(colors: Path) -> None:
    rule = StepRule(passes=20, least=400, most=3000)
    assert [rule.steps(n, 64) for n in (10, 3200, 10**6)] == [400, 1000, 3000]
    # Of 36 images, 3 are held out.
    assert fill_from_data(shipped(colors) | {"steps": {"passes": 64}, "batch_size": 33})["steps"] == 64
    with pytest.raises(MgenError, match="least must not be above most"):
        fill_from_data(shipped(colors) | {"steps": {"passes": 1, "least": 9, "most": 3}})
    with pytest.raises(MgenError, match="unknown key 'steps.pases'"):
        fill_from_data(shipped(colors) | {"steps": {"pases": 1}})


def test_a_look_at_files_tells_gray_from_color(colors: Path, tmp_path: Path) -> None:
    assert look_at(sorted(colors.rglob("*.png"))).channels == 3
    gray = look_at(sorted(color_images(tmp_path / "gray", count=3, side=50, mode="L").rglob("*.png")))
    assert (gray.channels, gray.side) == (1, 50)


def test_a_share_of_every_class_is_held_out(colors: Path) -> None:
    whole = ImageFolder(root=colors, image_size=8)
    train, held = (ImageFolder(root=colors, image_size=8, held_out=0.25, part=part) for part in ("train", "held out"))
    assert (len(train), len(held)) == (27, 9) and held.labels.bincount().tolist() == [3, 3, 3]
    assert sorted([*train.files, *held.files]) == whole.files and train.class_names == held.class_names
    assert train.record == held.record == whole.record
    assert (train.labels == ImageFolder(root=colors, image_size=8, held_out=0.25).labels).all()


def test_images_that_are_kept_in_memory_are_the_same(colors: Path) -> None:
    kept, read = (ImageFolder(root=colors, image_size=8, keep=keep) for keep in (True, False))
    for _ in range(2):
        assert (kept.__getitems__([3, 1])["image"] == read.__getitems__([3, 1])["image"]).all()


# -- the record ------------------------------------------------------------------------------------------------------------


def test_a_record_is_of_the_listing_wherever_it_lies(colors: Path, tmp_path: Path) -> None:
    record = ImageFolder(root=colors, image_size=8).record
    assert (record.name, record.images, record.class_names) == ("colors", 36, ("blue", "green", "red"))
    assert record.same(ImageFolder(root=color_images(tmp_path / "copy"), image_size=16, channels=1).record)
    other = ImageFolder(root=color_images(tmp_path / "other", seed=1), image_size=8).record
    assert not record.same(other) and not record.same(None)
    assert ImageFolder(root=colors, image_size=8, classes="none").record.class_names == ()
    assert [folder_name(Path(p)) for p in ("/a/photos/train", "/a/photos", "/")] == ["photos/train", "photos", "images"]
    idx = FashionMNIST(root=write_idx(tmp_path / "idx")).record
    assert (idx.name, idx.images, idx.image_size, idx.channels) == ("fmnist", 96, 32, 1)


def test_a_classifier_knows_its_data_and_its_accuracy_on_images_held_out(classifier: Path, colors: Path) -> None:
    about = read_trained_on(classifier)
    assert about is not None and about.data == ImageFolder(root=colors, image_size=32).record
    assert (about.images, about.held_out) == (33, 3) and about.accuracy is not None
    logged = [json.loads(line) for line in (classifier.parent / "metrics.jsonl").read_text().splitlines()]
    assert about.accuracy == pytest.approx(logged[-1]["val_accuracy"], rel=1e-6)


def test_a_run_of_a_classifier_resumes_with_its_accuracy(classifier: Path, colors: Path) -> None:
    before = read_trained_on(classifier)
    fast = ["steps=30", "batch_size=16", "optim.warmup=0", "log.tensorboard=false", "model.widths=[8,16]"]
    out = ["--out", str(classifier.parent)]
    assert main(["train", "--config", "classifier", "--data", str(colors), *out, *fast]) == 0
    assert read_trained_on(classifier) == before


def test_data_and_out_of_the_command_replace_those_of_the_file(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["steps=1", "batch_size=4", "model.channels=8", "log.tensorboard=false", "model.in_channels=3"]
    assert main(["train", "--config", "fmnist-vqgan", "--data", str(colors), *tiny]) == 0
    out = Path("runs/fmnist-vqgan-colors")
    assert capsys.readouterr().out == f"{out / 'model'}\n"
    data = json.loads((out / "config.json").read_text())["data"]
    assert (data["kind"], data["path"], data["image_size"], data["channels"]) == ("folder", str(colors), 32, 3)
    about = read_trained_on(out / "model")
    assert about is not None and about.data.name == "colors" and about.accuracy is None
