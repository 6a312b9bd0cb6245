"""Pictures and words by which one follows a training: previews as files and in TensorBoard, the summary, config.json."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mgen.cli import main
from mgen.data import FashionMNIST
from mgen.pipelines.pixels import to_uint8
from mgen.tokenizers import VQGAN
from mgen.training.config import train_config
from mgen.training.loop import run, train
from mgen.training.previews import class_samples, name_of, predictions, reconstructions
from mgen.training.trainer import Trainer
from mgen.utils.grids import MARGIN, sized
from mgen.utils.limits import in_time
from tests.helpers import TOKENIZER, tiny_config, tiny_pipeline, tiny_tokenizer, tiny_tokens, write_idx
from tests.system.boundaries.training import CNN

CPU = torch.device("cpu")
RED = (196, 35, 28)


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx(tmp_path_factory.mktemp("idx"))


def settings(idx: Path, output: Path, task: str = "tokenizer", **more: Any) -> dict[str, Any]:
    model = (
        {"class": "VQGAN", **TOKENIZER, "latent": 4, "vocab_size": 64}
        if task == "tokenizer"
        else CNN | {"num_classes": 10}
    )
    base = {
        "task": task,
        "output": str(output),
        "steps": 4,
        "batch_size": 12,
        "model": model,
        "data": {"kind": "fmnist", "path": str(idx)},
        "ema": {"decay": 0.9},
        "log": {"every": 1, "preview_every": 2, "evaluate_every": 2},
    }
    return base | more


def found(picture: Image.Image, tile: Image.Image) -> list[tuple[int, int]]:
    """Left and top of every place of a picture where exactly this tile is."""
    pixels, wanted = np.asarray(picture), np.asarray(tile)
    h, w = wanted.shape[:2]
    first = (pixels[: len(pixels) - h + 1, : pixels.shape[1] - w + 1] == wanted[0, 0]).all(-1)
    places = [(x, y) for y, x in zip(*np.nonzero(first)) if np.array_equal(pixels[y : y + h, x : x + w], wanted)]
    return [(int(x), int(y)) for x, y in places]


def tiles_of(images: torch.Tensor) -> list[Image.Image]:
    return [sized(Image.fromarray(image[0].numpy()).convert("RGB")) for image in to_uint8(images)]


def test_originals_stand_above_their_reconstructions_and_are_the_same_every_time(idx: Path, tmp_path: Path) -> None:
    train(train_config(settings(idx, tmp_path / "run")))
    names = sorted(p.name for p in (tmp_path / "run" / "previews").iterdir())
    assert names == ["0000002-ema.png", "0000002-raw.png", "0000004-ema.png", "0000004-raw.png"]
    data = FashionMNIST(root=idx, split="test")
    chosen = [i * len(data) // 16 for i in range(16)]
    originals = tiles_of(data.__getitems__(chosen)["image"])
    pictures = [Image.open(tmp_path / "run" / "previews" / name).convert("RGB") for name in names]
    places = [[found(picture, tile)[0] for tile in originals] for picture in pictures]
    assert places[0] == places[1] == places[2] == places[3]
    lefts, tops = zip(*places[0])
    assert lefts[:8] == lefts[8:] and len(set(tops[:8])) == 1 and len(set(tops)) == 2
    assert [b - a for a, b in zip(lefts, lefts[1:8])] == [64 + MARGIN] * 7
    model = VQGAN.from_pretrained(tmp_path / "run" / "model")
    with torch.inference_mode():
        made = tiles_of(model(data.__getitems__(chosen)["image"])[0].clamp(-1, 1))
    x, y = places[0][3]
    below = found(pictures[2], made[3])
    assert any(left == x and y + 64 < top < y + 64 + 30 for left, top in below), "a caption lies between"


def test_previews_are_in_tensorboard_too(idx: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(train_config(settings(idx, tmp_path / "run", "classifier")))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert sorted(events.Tags()["images"]) == ["preview/ema", "preview/raw"]
    shown = events.Images("preview/ema")
    assert [event.step for event in shown] == [2, 4]
    with Image.open(tmp_path / "run" / "previews" / "0000004-ema.png") as picture:
        assert (shown[1].width, shown[1].height) == picture.size
    assert {"loss", "val_loss", "val_loss_raw"} <= set(events.Tags()["scalars"])


def test_wrong_predictions_are_marked(idx: Path) -> None:
    data = FashionMNIST(root=idx, split="test")  # classes 0, 1, 2 in turn

    class Always(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return images, torch.tensor([[0.0, 5.0, 0.0]]).expand(len(images), -1)

    picture: Any = np.asarray(predictions(Always(), data, device=CPU, title="step 1"))  # type: ignore[arg-type]
    labels = data.__getitems__([i * len(data) // 24 for i in range(24)])["label"].tolist()
    top = next(y for y in range(40) if (picture[y] == RED).all(-1).sum() > 90)  # the upper edge of the first frames
    edges = [tuple(picture[top, MARGIN + i * (96 + MARGIN) + 48]) == RED for i in range(8)]
    assert edges == [label != 1 for label in labels[:8]] and any(edges) and not all(edges)


def test_a_row_for_each_class_or_for_some_of_many() -> None:
    pipe = tiny_pipeline(steps=2)
    with torch.no_grad():
        for parameter in pipe.tokenizer.parameters():  # so that images differ
            parameter.mul_(2.5)
    three = class_samples(pipe, seed=0, title="step 1")
    again = class_samples(pipe, seed=0, title="step 1")
    assert three.tobytes() == again.tobytes()
    images = pipe([0, 1, 2] * 2, seed=0, output_type="uint8", progress=False).images
    tiles = [Image.fromarray(image[0].numpy()).convert("RGB").resize((64, 64), 0) for image in images]
    places = [found(three, tile)[0] for tile in tiles]
    assert len({y for _, y in places[:3]}) == 3 and places[0][1] == places[3][1] and places[0][0] < places[3][0]
    many = tiny_pipeline(steps=1)
    many.transformer = type(pipe.transformer).from_config(
        tiny_config("uvit", tokens=tiny_tokens(side=8, vocab_size=64), classes={"count": 200})
    )
    picture = class_samples(many, seed=0, title="step 1")
    assert picture.height - three.height == 13 * (64 + MARGIN), "16 of 200 classes, and three of three"
    assert name_of(["a", ""], 0) == "a" and name_of(["a", ""], 1) == "class 1" and name_of([], 7) == "class 7"


def test_color_images_and_data_without_validation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    from mgen.data import ImageFolder

    data = ImageFolder(root=tmp_path / "data", image_size=32, channels=3)
    picture = reconstructions(tiny_tokenizer(in_channels=3), data, device=CPU, title="step 1")
    for place in ("a/0.png", "b/2.png"):
        assert len(found(picture, sized(Image.open(tmp_path / "data" / place)))) == 1


# -- words -------------------------------------------------------------------------------------------------------------


def test_a_finished_run_says_where_everything_is_and_what_to_type(
    idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my run"
    train(train_config(settings(idx, out)))
    said = capsys.readouterr().err
    lines = said[said.index("finished:") :].splitlines()
    assert lines[0] == f"finished: {out}/model"
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:]}
    assert len({re.match(r"  \S+ +", line).end() for line in lines[1:]}) == 1, "not aligned"  # type: ignore[union-attr]
    assert rows["steps"] == "4; 48 images, 0.5 times the 96 of the data"
    assert re.fullmatch(r"\d+ seconds?, [\d,.e+]+ images per second", rows["time"])
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    values = {name: [line[name] for line in logged if name in line] for name in ("loss", "val_loss", "val_loss_raw")}
    assert rows["loss"] == f"{values['loss'][-1]:.4g} at step 4" and len(values["val_loss_raw"]) == 1
    assert len(values["val_loss"]) == 2 and values["val_loss"][-1] != values["val_loss_raw"][-1]
    assert f"{values['val_loss'][-1]:.4g} at step 4 with EMA weights" in rows["validation"]
    assert f"{values['val_loss_raw'][-1]:.4g} with raw ones" in rows["validation"]
    assert rows["model"] == f"{out}/model, EMA weights; raw ones in {out}/model-raw"
    assert rows["previews"] == f"{out}/previews, the last: 0000004-ema.png, 0000004-raw.png"
    command = f"mgen cache --data fmnist --data-path {idx} --tokenizer '{out}/model' --out '{out}-cache'"
    assert rows["next"] == command
    import shlex

    assert main(shlex.split(command)[1:]) == 0, "the next command must work"


def test_the_best_validation_loss_is_told_if_it_is_not_the_last(idx: Path, tmp_path: Path) -> None:
    from mgen.training.summary import _validation

    lines: Any = [{"step": 2, "val_loss": 1.5}, {"step": 4, "val_loss": 2.5}, {"step": 4, "val_loss_raw": 3.0}]
    assert _validation(lines, ema=False) == "2.5 at step 4, 3 with raw ones; the best was 1.5 at step 2"
    assert _validation([{"step": 4.0, "val_loss": None}], ema=True) == ""
    assert [in_time(s) for s in (0.2, 4, 95, 7200, 3.1e5)] == [
        "1 second",
        "4 seconds",
        "2 minutes",
        "2.0 hours",
        "3.6 days",
    ]


def test_a_stopped_run_says_where_it_stands(idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(train_config(settings(idx, tmp_path / "run", log={"every": 1})))
    real = trainer.train_step

    def one(*args: Any) -> Any:
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    trainer.train_step = one  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 4"):
        run(trainer)
    said = capsys.readouterr().err
    assert f"stopped: {tmp_path}/run\n" in said and "3 of 4 (75 %); 36 images" in said and "left" in said
    assert f"{tmp_path}/run/checkpoint-0000003" in said and "rerun the same command" in said and "not exported" in said


def test_config_json_begins_with_what_is_trained_on_what(idx: Path, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    config = settings(idx, tmp_path / "run", "generator", steps=1, log={"every": 1})
    config |= {
        "model": tiny_config("uvit", tokens=tiny_tokens(side=8, vocab_size=64), classes={"count": 10}),
        "objective": {"tokenizer": str(tmp_path / "tokenizer"), "sampler": {"steps": 1}},
    }
    train(train_config(config))
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    about = saved["about"]
    assert next(iter(saved)) == "about" and saved["steps"] == 1
    assert about.pop("trained parameters") > 1000
    assert about == {
        "task": "generator",
        "model": "Generator",
        "training images": 96,
        "validation images": 48,
        "classes": 10,
        "image side, pixels": 32,
        "image channels": 1,
        "tokens per image": 64,
        "kind of tokens": "index",
        "vocabulary, ids": 64,
        "trunk": "uvit",
        "head": "categorical",
    }
