"""A researcher's own images: classifiers of them, the record of the data in what is trained on them, and measures that belong to them."""

import dataclasses
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
from mgen.evaluation.tokenizer_check import TokenizerCheck, check_tokenizer, with_verdict
from mgen.training.config import train_config
from mgen.training.from_data import StepRule, fill_from_data
from mgen.utils.config import read_config
from mgen.utils.errors import MgenError
from mgen.utils.folders import part
from tests.helpers import tiny_kl, tiny_tokenizer, write_idx

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


# -- the tokenizer check -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(colors: Path) -> Path:
    folder = colors.parent / "tokenizer"
    tiny_tokenizer(in_channels=3).save_pretrained(folder)
    return folder


def test_a_tokenizer_is_checked_on_own_images(
    tokenizer: Path, colors: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "check"
    argv = ["eval", str(colors), "--reconstruction", str(tokenizer), "--check", "--extractor", str(classifier)]
    assert main([*argv, "--out", str(out), "--device", "cpu"]) == 0
    printed, found = capsys.readouterr().out, json.loads((out / "check.json").read_text())
    assert printed.startswith("Not good enough: the reconstructions are ") and found["verdict"] == "not good enough"
    assert found["distance"] > 8 * found["floor"] * 36 / 2000 and found["count"] == 36 and found["advice"]
    (ids,) = found["ids"]
    assert ids["size"] == 64 and 1 <= ids["perplexity"] <= ids["used"] <= 64
    page = (out / "check.md").read_text()
    assert found["sentence"] in page and "reconstructions.png" in page and "used of 64" in page
    # The numbers are those of an evaluation of the same reconstructions.
    same = ["eval", str(colors), "--reconstruction", str(tokenizer), "--extractor", str(classifier), "--bootstrap", "0"]
    assert main([*same, "--out", str(tmp_path / "eval"), "--device", "cpu"]) == 0
    metrics = json.loads((tmp_path / "eval" / "result.json").read_text())["metrics"]
    assert found["psnr"] == pytest.approx(metrics["PSNR in dB, mean over images"], abs=1e-6)
    assert found["distance"] == pytest.approx(metrics[found["distance_name"]], rel=1e-4)
    with Image.open(out / "reconstructions.png") as shown, Image.open(out / "worst.png") as worst:
        assert shown.size > worst.size or shown.height > worst.height
    assert main([*argv, "--out", str(out), "--device", "cpu"]) == 0  # again, over its own files


def test_without_an_extractor_a_verdict_follows_from_psnr(tokenizer: Path, colors: Path, tmp_path: Path) -> None:
    found = check_tokenizer(tokenizer, str(colors), tmp_path, num_images=10, progress=False)
    assert found.count == 9 and found.distance is None and "PSNR is" in found.sentence
    assert any("mgen train --config classifier" in note for note in found.notes)
    (tmp_path / "check.json").write_text("{}")
    with pytest.raises(MgenError, match="did not write and does not replace"):
        check_tokenizer(tokenizer, str(colors), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("distance", "psnr", "verdict"),
    [(1.9, 5, "good enough"), (2.1, 40, "usable"), (8.1, 40, "not good enough"), (None, 27, "good enough")]
    + [(None, 21, "usable"), (None, 19, "not good enough")],
)
def test_verdicts_follow_from_stated_thresholds(distance: float | None, psnr: float, verdict: str) -> None:
    check = TokenizerCheck(
        tokenizer="t",
        tokenizer_sha256="",
        data="d",
        count=2000,
        image_size=32,
        tokens=64,
        psnr=psnr,
        distance=distance,
        floor=None if distance is None else 1.0,
    )
    found = with_verdict(check)
    assert found.verdict == verdict and bool(found.advice) == (verdict != "good enough")
    if distance is not None:  # a floor from halves of fewer images is higher
        assert with_verdict(dataclasses.replace(check, count=1000, floor=2.0)).verdict == verdict


def test_a_kl_tokenizer_tells_its_scale_and_the_channels_it_uses(tmp_path: Path) -> None:
    gray = color_images(tmp_path / "gray", count=3, mode="L")
    tokenizer = tiny_kl()
    tokenizer.save_pretrained(tmp_path / "kl")
    found = check_tokenizer(tmp_path / "kl", str(gray), tmp_path / "out", progress=False)
    assert found.scale == tokenizer.config.scale and found.channels == tokenizer.config.latent_channels
    assert found.active_channels is not None and 0 <= found.active_channels <= found.channels and not found.ids
