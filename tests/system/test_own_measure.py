"""Measures that belong to the data: what a model says about its data, and that others than Fashion-MNIST are never compared with it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mgen
from mgen import MaskedPipeline
from mgen.cli import main
from mgen.data import FASHION_CLASSES, DataRecord, ImageFolder, TokenCache
from mgen.data.record import TrainedOn, read_trained_on, write_trained_on
from mgen.evaluation.cnn import ImageClassifier
from mgen.evaluation.extractors import make_extractor
from mgen.evaluation.fashion import DIGESTS, knows_fashion, of_run, record_of_run
from mgen.pipelines.run_file import RunFile
from mgen.pipelines.saved import find_record
from mgen.samplers import ParallelSampler
from mgen.training.config import train_config
from mgen.training.loop import train
from mgen.utils.errors import MgenError
from tests.helpers import tiny_config, tiny_generator, tiny_pipeline, tiny_tokenizer, tiny_tokens
from tests.system.test_own_data import color_images

RECORD = DataRecord(
    name="colors", images=36, class_names=("blue", "green", "red"), image_size=32, channels=3, digest="0" * 64
)
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return color_images(tmp_path_factory.mktemp("measure") / "colors")


@pytest.fixture(scope="module")
def classifier(colors: Path) -> Path:
    """An untrained classifier of `colors`."""
    return classifier_of(ImageFolder(root=colors, image_size=32).record, colors.parent / "classifier")


def classifier_of(record: DataRecord, folder: Path) -> Path:
    net = ImageClassifier(image_size=32, in_channels=3, widths=[8, 8], features=6, num_classes=len(record.class_names))
    net.save_pretrained(folder)
    write_trained_on(folder, TrainedOn(data=record, images=33, held_out=3, accuracy=2 / 3))
    return folder


def color_pipeline(folder: Path, record: DataRecord | None) -> Path:
    """A saved pipeline that samples color images of three classes."""
    pipe = MaskedPipeline(
        tokenizer=tiny_tokenizer(in_channels=3),
        transformer=tiny_generator(),
        sampler=ParallelSampler(steps=2, guidance=2.0),
        class_names=["blue", "green", "red"],
        data=record,
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(colors: Path) -> Path:
    return color_pipeline(colors.parent / "model", ImageFolder(root=colors, image_size=32).record)


def measured(argv: Sequence[object], out: Path) -> dict[str, Any]:
    assert main(["eval", *map(str, argv), "--bootstrap", "0", "--out", str(out), *CPU]) == 0
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def refused(argv: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main([*map(str, argv), *CPU]) == 2
    return capsys.readouterr().err


# -- records -----------------------------------------------------------------------------------------------------------------


def test_a_pipeline_keeps_the_record_of_its_data(tmp_path: Path) -> None:
    saved = mgen.load(color_pipeline(tmp_path / "model", RECORD))
    assert saved.data == RECORD == find_record(tmp_path / "model") == find_record(tmp_path / "model" / "transformer")
    assert mgen.load(color_pipeline(tmp_path / "older", None)).data is None
    pipe = tiny_pipeline()
    given = dataclasses.asdict(RECORD) | {"a later key": 1}
    again = MaskedPipeline(pipe.tokenizer, pipe.transformer, pipe.sampler, data=given)
    assert again.data == RECORD
    for wrong, words in [(5, "data is 5"), ({"name": "x"}, "data.images"), (given | {"digest": "x"}, "data.digest")]:
        with pytest.raises(MgenError, match=words):
            MaskedPipeline(pipe.tokenizer, pipe.transformer, pipe.sampler, data=wrong)  # type: ignore[arg-type]
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"data": {"name": ""}}))
    with pytest.raises(MgenError, match="model_index.json: .*data"):
        mgen.load(tmp_path / "model")


def generator_settings(data: dict[str, Any], output: Path, tokenizer: Path | None) -> dict[str, Any]:
    return {
        "task": "generator",
        "output": str(output),
        "steps": 1,
        "batch_size": 4,
        "model": tiny_config("uvit", tokens=tiny_tokens(side=8, vocab_size=64)),
        "data": data,
        "objective": {} if tokenizer is None else {"tokenizer": str(tokenizer)},
        "log": {"tensorboard": False},
    }


def test_training_fills_the_record_from_folders_and_caches(colors: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tiny_tokenizer(in_channels=3).save_pretrained(tokenizer)
    record = ImageFolder(root=colors, image_size=32).record
    folder = {"kind": "folder", "path": str(colors), "image_size": 32, "channels": 3}
    pipe = mgen.load(train(train_config(generator_settings(folder, tmp_path / "a", tokenizer))))
    assert pipe.data == record
    cache = tmp_path / "cache"
    assert main(["cache", "--data", str(colors), "--tokenizer", str(tokenizer), "--out", str(cache), *CPU]) == 0
    assert TokenCache(cache).record == record
    cached = {"kind": "cache", "path": str(cache)}
    assert mgen.load(train(train_config(generator_settings(cached, tmp_path / "b", tokenizer)))).data == record
    # Without a tokenizer the generator alone is saved, and says so beside its weights; joined, the pipeline does.
    alone = train(train_config(generator_settings(cached, tmp_path / "c", None)))
    about = read_trained_on(alone)
    assert about is not None and about.data == record and find_record(alone) == record
    joined = tmp_path / "joined"
    argv = ["convert", "pipeline", str(alone), "--tokenizer", str(tokenizer), "--out", str(joined)]
    assert main(argv) == 0 and main(argv) == 0
    pipe = mgen.load(joined)
    assert pipe.data == record and tuple(pipe.class_names) == record.class_names


def test_a_cache_of_an_earlier_version_lacks_the_record_and_gets_it_when_it_is_completed(
    colors: Path, tmp_path: Path
) -> None:
    tokenizer, cache = tmp_path / "tokenizer", tmp_path / "cache"
    tiny_tokenizer(in_channels=3).save_pretrained(tokenizer)
    argv = ["cache", "--data", str(colors), "--tokenizer", str(tokenizer), "--out", str(cache), *CPU]
    assert main(argv) == 0
    shard, file = (cache / "shard-00000.safetensors").read_bytes(), cache / "index.json"
    index = json.loads(file.read_text())
    assert index.pop("data")["name"] == "colors"
    file.write_text(json.dumps(index))
    assert TokenCache(cache, full=True).record is None
    assert main(argv) == 0 and TokenCache(cache, full=True).record is not None
    assert (cache / "shard-00000.safetensors").read_bytes() == shard


def test_the_record_decides_what_is_fashion_mnist() -> None:
    embedded = mgen.load("fmnist-maskgit")
    assert embedded.data is not None and embedded.data.digest == DIGESTS[0] and knows_fashion(embedded)
    parts = embedded.tokenizer, embedded.transformer, embedded.sampler
    own = MaskedPipeline(*parts, class_names=FASHION_CLASSES, data=RECORD)  # own gray images in classes of these names
    older = MaskedPipeline(*parts, class_names=FASHION_CLASSES)
    assert not knows_fashion(own) and knows_fashion(older) and not knows_fashion(MaskedPipeline(*parts))


# -- mgen eval ---------------------------------------------------------------------------------------------------------------


def test_own_images_are_never_measured_as_fashion_mnist_by_default(
    model: Path, colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = tmp_path / "same"
    same.mkdir()
    for i in range(4):
        Image.fromarray(np.full((32, 32, 3), 50 * i, np.uint8)).save(same / f"{i:06d}_class-000{i % 3}.png")
    tokenizer, out = model / "tokenizer", ["--out", tmp_path / "out"]
    for argv in (
        ["eval", model, *out],
        ["eval", model, "--reference", colors, *out],
        ["eval", same, *out],
        ["eval", same, "--reference", same, *out],
        ["eval", colors, "--reconstruction", tokenizer, *out],
        ["stats", same, "--out", tmp_path / "s.safetensors"],
    ):
        line = refused(argv, capsys)
        assert "mgen train --config classifier --data" in line and "--extractor" in line, line
    for argv in (["tune", "--model", model, *out], ["tune", "--model", model, *two(colors, same), *out]):
        assert "mgen train --config classifier --data" in refused(argv, capsys)
    sweep = ["bench", "--sweep", "fmnist-maskgit", "--model", model, "--num-images", "4", *out]
    assert "mgen train --config classifier --data" in refused(sweep, capsys)
    assert not (tmp_path / "out").exists() and not (tmp_path / "s.safetensors").exists()


def two(a: Path, b: Path) -> list[Any]:
    return ["--reference-search", a, "--reference-test", b]


def test_a_classifier_of_the_models_data_measures_it_under_its_name(
    model: Path, classifier: Path, colors: Path, tmp_path: Path
) -> None:
    found = measured([model, "--num-images", 12, "--extractor", classifier, "--reference", colors], tmp_path / "eval")
    sha = found["extractor"]["sha256"][:8]
    assert found["extractor"]["name"] == f"classifier of colors, sha {sha}"
    assert found["extractor"]["trained_on"]["data"]["digest"] == ImageFolder(root=colors, image_size=8).record.digest
    assert found["metrics"][f"Fréchet distance (classifier of colors, sha {sha})"] > 0
    # The reference's images have several sizes, and are cropped to the model's.
    assert found["reference"]["prepared"] == "center crop of 32 px (ADM's)" and found["reference"]["count"] == 36
    note = found["note"]
    assert (
        "WARNING" not in note and "Fashion" not in note and "33 images of 3 classes, right on 67% of 3 others" in note
    )
    assert "not an FID" in note and "same extractor, reference and number of images" in note


def test_a_classifier_of_other_data_is_told_apart(model: Path, tmp_path: Path) -> None:
    same_classes = classifier_of(RECORD, tmp_path / "same")
    names = dataclasses.replace(RECORD, name="shapes", class_names=("disc", "ring"))
    other = classifier_of(names, tmp_path / "other")
    line = [model, "--num-images", 6, "--reference", "none", "--extractor"]
    note = measured([*line, same_classes], tmp_path / "a")["note"]
    assert note.startswith("WARNING, the extractor was trained on other images of the same classes (colors (data 000")
    note = measured([*line, other], tmp_path / "b")["note"]
    assert note.startswith("WARNING, the extractor was trained on other data (shapes (data 000")
    # Without a record of the model, the names of the classes tell.
    unknown = color_pipeline(tmp_path / "unknown", None)
    line[0] = unknown
    assert "WARNING" not in measured([*line, same_classes], tmp_path / "c")["note"]
    assert "its classes are not those of the images" in measured([*line, other], tmp_path / "d")["note"]
    nothing = tmp_path / "nothing"
    ImageClassifier(image_size=32, in_channels=3, widths=[8], features=6, num_classes=3).save_pretrained(nothing)
    found = measured([*line, nothing], tmp_path / "e")
    assert found["extractor"]["name"].startswith("cnn:nothing, sha ") and "does not say" in found["note"]


def test_samples_of_a_run_are_measured_as_their_model(model: Path, classifier: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["sample", "--model", str(model), "--num-images", "6", "--out", str(run), *CPU]) == 0
    line = [run, "--reference", "none", "--extractor"]
    assert "WARNING" not in measured([*line, classifier], tmp_path / "a")["note"]
    other = classifier_of(dataclasses.replace(RECORD, name="shapes"), tmp_path / "other")
    assert "WARNING, the extractor was trained on other" in measured([*line, other], tmp_path / "b")["note"]


def test_fashion_mnists_features_of_color_images_come_with_a_warning(model: Path, colors: Path, tmp_path: Path) -> None:
    line = [model, "--num-images", 6, "--reference", "none", "--protocol", "fmnist-cnn"]
    found = measured(line, tmp_path / "a")
    assert found["note"].startswith("WARNING, fmnist-cnn was trained on gray images") and found["classifier"] is None
    assert "nothing says that these images are like it" in found["note"]


def test_a_classifier_of_other_classes_gives_no_accuracy(model: Path, classifier: Path, tmp_path: Path) -> None:
    line = [model, "--num-images", 6, "--reference", "none", "--extractor", classifier, "--classifier"]
    found = measured([*line, classifier], tmp_path / "a")
    (name,) = (name for name in found["metrics"] if name.startswith("class accuracy"))
    assert "classifier of colors" in name
    renamed = dataclasses.replace(RECORD, class_names=("red", "green", "blue"))
    missing = measured([*line, classifier_of(renamed, tmp_path / "renamed")], tmp_path / "b")["missing"]
    assert any("classes are not those of classifier of colors" in reason for reason in missing.values())


def test_the_folder_of_a_run_serves_as_extractor(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")  # the settings of the run
    classifier_of(RECORD, tmp_path / "run" / "model")
    assert make_extractor(str(tmp_path / "run")).name.startswith("classifier of colors, sha ")
    (tmp_path / "run" / "model" / "trained_on.json").write_text("{}")
    with pytest.raises(MgenError, match="trained_on.json: .*data"):
        make_extractor(str(tmp_path / "run"))


def test_statistics_of_own_images_know_their_extractor(
    model: Path, classifier: Path, colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.safetensors"
    made = ["stats", str(colors), "--image-size", "32", "--extractor", str(classifier), "--out", str(file), *CPU]
    assert main(made) == 0
    line = [model, "--num-images", 6, "--extractor", classifier, "--reference", file]
    assert measured(line, tmp_path / "a")["reference"]["count"] == 36
    assert "does not say that it is of features of fmnist-cnn" in refused(["eval", model, "--reference", file], capsys)
    assert (
        main(["stats", str(colors), "--image-size", "32", *made[4:6], "--protocol", "fmnist-cnn", "--out", "x.npz"])
        == 2
    )
    capsys.readouterr()
    explicit = [
        "stats",
        str(colors),
        "--image-size",
        "32",
        "--protocol",
        "fmnist-cnn",
        "--out",
        str(tmp_path / "x.npz"),
    ]
    assert main([*explicit, *CPU]) == 0 and "WARNING, fmnist-cnn" in capsys.readouterr().err


# -- mgen tune ---------------------------------------------------------------------------------------------------------------


def test_a_search_measures_with_a_classifier_of_own_data(
    model: Path, classifier: Path, colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = color_images(tmp_path / "other", seed=5)
    line = ["tune", "--model", model, "--trials", 2, "--num-images", 6, "--test-images", 6, "--extractor", classifier]
    assert main([*map(str, [*line, *two(colors, other), "--out", tmp_path / "tune"]), *CPU]) == 0
    report = (tmp_path / "tune" / "report.md").read_text()
    assert (
        "Fréchet distance (classifier of colors, sha " in report and "small classifier trained on 33 images" in report
    )
    assert "WARNING" not in capsys.readouterr().err
    line[line.index(classifier)] = classifier_of(dataclasses.replace(RECORD, name="shapes"), tmp_path / "shapes")
    assert main([*map(str, [*line, *two(colors, other), "--out", tmp_path / "b"]), *CPU]) == 0
    assert "WARNING, the extractor was trained on other" in capsys.readouterr().err
    assert "WARNING" in (tmp_path / "b" / "report.md").read_text()
    assert "give --reference-search and --reference-test" in refused(line, capsys)


def test_the_model_that_a_run_names_is_looked_for_on_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    asked: list[str] = []
    monkeypatch.setattr(HfApi, "model_info", lambda self, repo, **options: asked.append(repo))
    monkeypatch.chdir(tmp_path)  # where the run's folder of models isn't
    run = RunFile(num_images=1, model="models/mine")
    assert record_of_run(run) is None and not of_run(run) and asked == []
