"""mgen eval: what it cannot measure raises an error in words, and what is measured is what was meant."""

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mgen.cli import main
from mgen.data import FASHION_CLASSES
from mgen.evaluation.evaluate import result
from mgen.evaluation.fashion import knows_fashion
from mgen.evaluation.folder_source import from_folder
from mgen.evaluation.measure import measure
from mgen.evaluation.protocols import find_protocol
from mgen.evaluation.references import find_reference
from mgen.evaluation.request import EvalRequest
from mgen.evaluation.sources import open_source
from mgen.evaluation.statistics import Reference
from tests.evaluation import Plain, pictures, source_of
from tests.helpers import tiny_pipeline
from tests.system.boundaries.harness import Copied, Parts, Raises, Refused, fifo, row

REFERENCE = ["--reference", "@statistics", "--classifier", "none", "--device", "cpu"]
FOLDER = ["eval", "@images", "--bootstrap", "0", *REFERENCE]
GRAY = ["--protocol", "fmnist-cnn"]
CHECK = ["eval", "@images", "--reconstruction", "@pipeline", "--check", "--device", "cpu"]
MODEL = ["eval", "@pipeline", "--bootstrap", "0", "--num-images", "2", *REFERENCE]
EMPTY = (
    "extractor",
    "inception-weights",
    "reference",
    "classifier",
    "nearest",
    "out",
    "save-statistics",
    "split",
    "protocol",
)
EMPTY += (
    "device",
    "dtype",
    "labels",
    "quantization",
    "reconstruction",
    "posterior",
    "lpips-weights",
    "levels",
    "ranges",
)
EMPTY += ("recipe", "num-images", "bootstrap", "image-size", "seed", "batch-size", "vision-weights")


@pytest.mark.parametrize("value", ["", " "], ids=["empty", "blank"])
@pytest.mark.parametrize("option", EMPTY)
def test_empty_options(refused: Refused, option: str, value: str) -> None:
    refused([*FOLDER, f"--{option}={value}"], f"--{option}")


OPTIONS = [
    row("bootstrap 10**11", [*FOLDER, "--bootstrap", "100000000000"], "--bootstrap", "at most 100000"),
    row("bootstrap one", [*FOLDER, "--bootstrap", "1"], "one replicate"),
    row("bootstrap negative", [*FOLDER, "--bootstrap=-1"], "at least 0"),
    row("num images one", [*FOLDER, "--num-images", "1"], "at least 2"),
    row("num images ²", [*FOLDER, "--num-images", "²"], "no whole number"),
    row("num images Arabic", [*FOLDER, "--num-images", "٣"], "no whole number"),
    row("num images 10**30", [*MODEL, "--num-images", "1" + "0" * 30], "--num-images"),
    row("num images 10**12", [*MODEL, "--num-images", "1000000000000"], "disk"),
    row("batch size 0", [*FOLDER, "--batch-size", "0"], "at least 1"),
    row("device meta", [*FOLDER, "--device", "meta"], "meta"),
    row("device cpu:7", [*FOLDER, "--device", "cpu:7"], "cpu:7"),
    row("device unknown", [*FOLDER, "--device", "tpu"], "tpu"),
    row("model on meta", [*MODEL, "--device", "meta"], "meta"),
    row("model at 10**6 px", [*MODEL, "--image-size", "1000000"], "--image-size"),
    row("model at 30000 px", [*MODEL, "--image-size", "30000", "--num-images", "200"], "memory"),
    row("model at 0 px", [*MODEL, "--image-size", "0"], "at least 1"),
    row("seed 10**30", [*MODEL, "--seed", "1" + "0" * 30], "--seed"),
    row("labels unknown", [*MODEL, "--labels", "all"], "balanced"),
    row("protocol unknown", [*FOLDER, "--protocol", "fid"], "unknown --protocol"),
    row("protocol against extractor", [*FOLDER, "--protocol", "adm", "--extractor", "fmnist-cnn"], "leave one"),
    row("extractor unknown", [*FOLDER, "--extractor", "resnet"], "no extractor"),
    row("classifier unknown", [*FOLDER, "--classifier", "resnet"], "no extractor"),
    row("classifier a model", [*FOLDER, "--classifier", "@pipeline/transformer"], "config.json"),
    row("reference unknown", [*FOLDER, "--reference", "gone.npz"], "gone.npz"),
    row("reference an image folder without images", [*FOLDER, *GRAY, "--reference", "."], "no images"),
    row("nearest unknown", [*FOLDER, "--nearest", "gone"], "gone"),
    row("out too long", [*FOLDER, "--out", "a" * 300], "too long"),
    row("out a device", [*FOLDER, "--out", "/dev/null"], "/dev/null"),
    row("statistics as text", [*FOLDER, "--save-statistics", "s.txt"], "must end in"),
    row("statistics too long", [*FOLDER, "--save-statistics", "a" * 300 + ".npz"], "too long"),
    row("statistics nowhere", [*FOLDER, "--save-statistics", "/dev/null/s.npz"], "/dev/null"),
    row("levels letters", [*FOLDER, "--reconstruction", "@pipeline", "--levels", "a"], "--levels"),
    row("levels Arabic", [*FOLDER, "--reconstruction", "@pipeline", "--levels", "١٦"], "--levels"),
    row("levels 10**12", [*FOLDER, "--reconstruction", "@pipeline", "--levels", "1000000000000"], "--levels"),
    row("levels one", [*FOLDER, "--reconstruction", "@pipeline", "--levels", "1"], "--levels"),
    row("ranges nan", [*FOLDER, "--reconstruction", "@pipeline", "--levels", "16", "--ranges", "nan"], "--ranges"),
    row("ranges negative", [*FOLDER, "--reconstruction", "@pipeline", "--levels", "16", "--ranges=-1"], "--ranges"),
    row("check without tokenizer", [*FOLDER, "--check"], "--check", "--reconstruction"),
    row("check with a reference", [*FOLDER, "--reconstruction", "@pipeline", "--check"], "--reference", "--check"),
    row("check with a protocol", [*CHECK, "--protocol", "adm"], "--protocol", "--check"),
    row("check with levels", [*CHECK, "--levels", "16"], "--levels", "--check"),
    row("check with weights", [*CHECK, "--inception-weights", "x.pth"], "--extractor inception"),
    row("check of nothing", ["eval", "--reconstruction", "@pipeline", "--check"], "needs images"),
    row("check of a model", ["eval", "@pipeline", "--reconstruction", "@pipeline", "--check"], "no images"),
    row("check of sampled images", [*CHECK, "--steps", "3"], "for models only"),
    row("check by a generator", [*CHECK, "--extractor", "@pipeline/transformer"], "config.json"),
    # without effect
    row("weights without Inception", [*FOLDER, "--inception-weights", "x.pth"], "no effect", "fmnist-cnn"),
    row("weights with a model", [*MODEL, "--inception-weights", "x.pth"], "no effect"),
    row("recipe with a folder", [*FOLDER, "--recipe", "fmnist-maskgit"], "for models only"),
    row(
        "recipe and reconstruction", [*FOLDER, "--reconstruction", "@pipeline", "--recipe", "fmnist-maskgit"], "models"
    ),
    row("split of a folder", [*FOLDER, "--split", "test"], "no splits"),
    row("split of a model", [*MODEL, "--split", "test"], "no splits"),
    row("split unknown", ["eval", "fmnist", "--split", "val"], "--split"),
    row("seed of a folder", [*FOLDER, "--seed", "1"], "for models only"),
    row("seed of reconstructions", [*FOLDER, "--reconstruction", "@pipeline", "--seed", "1"], "--posterior sample"),
    row("image size of a folder", [*FOLDER, "--image-size", "64"], "for models only"),
    row("steps of a folder", [*FOLDER, "--steps", "3"], "for models only"),
    row("posterior without tokenizer", [*FOLDER, "--posterior", "mean"], "--reconstruction"),
    row("LPIPS without tokenizer", [*FOLDER, "--lpips-weights", "x"], "--reconstruction"),
    row("ranges without levels", [*FOLDER, "--reconstruction", "@pipeline", "--ranges", "3"], "--levels"),
    row("nearest with levels", [*FOLDER, "--reconstruction", "@pipeline", "--levels", "16"], "without effect"),
    row("nothing", ["eval"], "nothing to measure"),
    row("nothing of that name", ["eval", "nowhere"], "nowhere"),
    row("a name of 300 letters", ["eval", "a" * 300], "too long"),
    row("a null character", ["eval", "a\0b"], "null character"),
]


@pytest.mark.parametrize(("argv", "words"), OPTIONS)
def test_options(refused: Refused, argv: list[str], words: tuple[str]) -> None:
    refused(argv, *words)


REQUESTS: list[tuple[str, dict[str, Any], str]] = [
    ("bootstrap 10**11", {"bootstrap": 10**11}, "at most"),
    ("bootstrap a text", {"bootstrap": "5"}, "--bootstrap"),
    ("num images a fraction", {"num_images": 5.0}, "--num-images"),
    ("batch size true", {"batch_size": True}, "--batch-size"),
    ("batch size 10**30", {"batch_size": 10**30}, "at most"),
    ("split", {"path": "fmnist", "split": "all"}, "--split"),
    ("seed None is fine, 2**64 is not", {"path": "fmnist-maskgit", "seed": 2**64}, "--seed"),
]


@pytest.mark.parametrize(("given", "words"), [row(n, g, w) for n, g, w in REQUESTS])
def test_requests_in_python(raises: Raises, given: dict[str, Any], words: tuple[str]) -> None:
    raises(lambda: EvalRequest(**{"path": "x", **given}), *words)


# -- folders -----------------------------------------------------------------------------------------------------------------------


def png(path: Path, side: int = 32, color: bool = False, value: int = 90) -> None:
    Image.new("RGB" if color else "L", (side, side), (value, 0, 200) if color else value).save(path)


def bomb(path: Path, width: int = 60000, height: int = 60000) -> None:
    """A PNG that claims to be huge."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


FILES: list[tuple[str, Callable[[Path], object], tuple[str, ...]]] = [
    ("claims 60000×60000", lambda d: bomb(d / "000001.png"), ("000001.png", "megapixels")),
    ("claims 2**31-1", lambda d: bomb(d / "000001.png", 2**31 - 1, 2**31 - 1), ("000001.png",)),
    ("claims it with another name", lambda d: bomb(d / "huge.png"), ("huge.png",)),
    ("a broken link", lambda d: (d / "000001.png").symlink_to("gone"), ("000001.png", "broken link")),
    ("a pipe", lambda d: fifo(d / "000001.png"), ("000001.png", "regular file")),
    ("a device", lambda d: (d / "000001.png").symlink_to("/dev/zero"), ("000001.png", "regular file")),
    ("empty", lambda d: (d / "000001.png").write_bytes(b""), ("000001.png",)),
    ("text", lambda d: (d / "000001.png").write_text("hello"), ("000001.png",)),
    ("another size", lambda d: png(d / "000001.png", 40), ("000001.png", "differs in size", "--protocol clean")),
    ("class 10**30", lambda d: png(d / f"000001_class-1{'0' * 30}.png"), ("class", "2147483647")),
    ("class 2**63", lambda d: png(d / f"000001_class-{2**63}.png"), ("class", "2147483647")),
    ("class 2**31", lambda d: png(d / f"000001_class-{2**31}.png"), ("class", "2147483647")),
    ("run.json null", lambda d: (d / "run.json").write_text("null"), ("run.json",)),
    ("run.json deep", lambda d: (d / "run.json").write_text("[" * 10**5 + "]" * 10**5), ("run.json",)),
    ("run.json a list", lambda d: (d / "run.json").write_text("[]"), ("run.json",)),
    ("run.json empty", lambda d: (d / "run.json").write_text(""), ("run.json",)),
    ("run.json a pipe", lambda d: fifo(d / "run.json"), ("run.json",)),
    *(
        (
            f"run.json num_images {text}",
            lambda d, t=text: (d / "run.json").write_text(f'{{"num_images": {t}}}'),
            ("num_images",),
        )
        for text in ('"4"', "null", "[4]", "1.5", "-1", "1e400", "true", "1" + "0" * 30, "{}")
    ),
    ("an unfinished run", lambda d: (d / "run.json").write_text('{"num_images": 99}'), ("of the 99 images",)),
]


@pytest.mark.parametrize(("make", "words"), [row(n, m, *w) for n, m, w in FILES])
def test_folders(refused: Refused, here: Path, make: Callable[[Path], object], words: tuple[str]) -> None:
    (here / "d").mkdir()
    for i in (0, 2, 3):
        png(here / "d" / f"{i:06d}.png")
    make(here / "d")
    refused(["eval", "d", *REFERENCE, "--bootstrap", "0", "--out", "e"], *words)


@pytest.mark.parametrize(("make", "words"), [row(n, m, *w) for n, m, w in FILES if "run" in n])
def test_folders_of_shards(refused: Refused, here: Path, make: Callable[[Path], object], words: tuple[str]) -> None:
    (here / "d").mkdir()
    images = np.zeros((4, 32, 32, 1), np.uint8)
    np.savez(here / "d" / "images-000000-000003.npz", arr_0=images, arr_1=np.zeros(4, np.int64))
    make(here / "d")
    refused(["eval", "d", *REFERENCE, "--bootstrap", "0", "--out", "e"], *words)


def test_a_long_image(refused: Refused, here: Path) -> None:
    """A pixel wide: resized so that its short side has 256, it would have billions."""
    for i in range(2):
        Image.new("L", (1, 65000)).save(here / f"{i}.png")
    refused(
        ["stats", ".", *GRAY, "--image-size", "256", "--out", "/tmp/never.npz", "--device", "cpu"],
        "0.png",
        "megapixels",
    )


NPZ: list[tuple[str, dict[str, Any], str]] = [
    ("no pixels", {"arr_0": np.zeros((4, 0, 0, 3), np.uint8)}, "pixels"),
    ("floats", {"arr_0": np.zeros((4, 8, 8, 3))}, "uint8"),
    ("no images", {"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, "no images"),
    ("labels", {"arr_0": np.zeros((4, 8, 8, 3), np.uint8), "arr_1": np.zeros(3, np.int64)}, "arr_1"),
    ("another name", {"x": np.zeros((4, 8, 8, 3), np.uint8)}, "no arr_0"),
    ("objects", {"arr_0": np.array([None, 1], object)}, "x.npz"),
]


@pytest.mark.parametrize(("arrays", "words"), [row(n, a, w) for n, a, w in NPZ])
def test_npz(refused: Refused, here: Path, arrays: dict[str, Any], words: tuple[str]) -> None:
    np.savez(here / "x.npz", **arrays)
    refused(["eval", "x.npz", *REFERENCE, "--out", "e"], *words)
    refused([*FOLDER, "--reference", "x.npz", "--out", "e"], "x.npz")


def test_npy_batches_are_read(refused: Refused, here: Path) -> None:
    """uint8 (N, H, W, C), as clean-fid takes them; others raise an error."""
    images = pictures(8).permute(0, 2, 3, 1).numpy()
    np.save(here / "x.npy", images)
    assert torch.equal(
        open_source("x.npy", channels=1).read(2, 5).stacked().permute(0, 2, 3, 1), torch.from_numpy(images[2:5])
    )
    found = find_reference("x.npy", Plain(), images=True)
    assert found is not None and found.count == 8
    for bad in (images[..., 0], images.astype(np.float32), images.transpose(0, 3, 1, 2)):
        np.save(here / "y.npy", bad)
        refused(["eval", "y.npy", *REFERENCE, "--out", "e"], "y.npy", "uint8 (N, H, W, C)")


# -- kept features -------------------------------------------------------------------------------------------------------------------

RECORDS = ["null", "3", "[]", "{}", '"x"', "[" * 10**5 + "]" * 10**5, "", '{"images": 3}', '{"count": "x"}', "NaN"]


@pytest.mark.parametrize("text", RECORDS, ids=lambda text: text[:20] or "empty")
def test_features_json(refused: Refused, here: Path, text: str) -> None:
    (here / "e" / "features").mkdir(parents=True)
    (here / "e" / "features" / "features.json").write_text(text)
    refused([*FOLDER, "--out", "e"], "features.json", "choose another --out")


DAMAGES: list[tuple[str, Callable[[dict[str, torch.Tensor]], object], bool]] = [
    ("fewer rows", lambda kept: kept.update({k: v[:5] for k, v in kept.items()}), True),
    ("fewer features", lambda kept: kept.update(features=kept["features"][:5]), True),
    ("no labels", lambda kept: kept.pop("labels"), True),
    ("no logits", lambda kept: kept.pop("logits"), True),
    ("no examples", lambda kept: [kept.pop(k) for k in ("examples", "example_labels")], True),
    ("another width", lambda kept: kept.update(features=torch.zeros(12, 3)), True),
    ("NaN", lambda kept: kept["features"].fill_(torch.nan), True),
    ("labels of floats", lambda kept: kept.update(labels=kept["labels"].float()), True),
    ("labels below -1", lambda kept: kept["labels"].fill_(-7), True),
    ("nothing said of what it holds", lambda kept: None, False),
]


@pytest.mark.parametrize(("damage", "said"), [pytest.param(d, s, id=n) for n, d, s in DAMAGES])
def test_kept_features_that_are_damaged_are_measured_again(
    parts: Parts, here: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Any], object], said: bool
) -> None:
    line = [parts.fill(word) for word in [*FOLDER, "--out", "e", "--keep-features"]]
    assert main(line) == 0
    shard, before = here / "e" / "features" / "part-00000000.safetensors", json.loads(Path("e/result.json").read_text())
    whole = load_file(shard)
    kept = {name: value.clone() for name, value in whole.items()}
    damage(kept)
    save_file(
        {k: v.contiguous() for k, v in kept.items()}, shard, {"arrays": " ".join(sorted(whole))} if said else None
    )
    capsys.readouterr()
    assert main(line) == 0 and "part-00000000.safetensors is damaged" in capsys.readouterr().err
    assert json.loads(Path("e/result.json").read_text())["metrics"] == before["metrics"]
    assert all(torch.equal(load_file(shard)[name], whole[name]) for name in whole)


# -- nothing silent ------------------------------------------------------------------------------------------------------------------


def test_own_data_is_not_compared_with_fashion_mnist(refused: Refused, here: Path, copied: Copied) -> None:
    """Neither images nor a model of other classes, unless a reference is named; the model of a run tells where there is one."""
    cpu = ["--device", "cpu", "--out", "e"]
    for given in ("@images", "@flat", "@run"):
        for protocol in ([], ["--protocol", "fmnist-cnn"], ["--extractor", "fmnist-cnn"]):
            refused(["eval", given, *protocol, *cpu], "Fashion-MNIST", "--reference")
    refused(["eval", "@pipeline", "--num-images", "4", *cpu], "3 classes", "--reference")
    refused(["tune", "--model", "@pipeline", "--steps", "2", *cpu], "Fashion-MNIST", "--reference-search")
    (here / "s.yaml").write_text("{base: a, steps: [2], methods: {a: {}}}")
    sweep = ["bench", "--sweep", "s.yaml", "--model", "@pipeline", "--num-images", "2"]
    refused([*sweep, *cpu], "Fashion-MNIST", "--reference")
    for name in ("color", "large", "eleven"):
        (here / name).mkdir()
        for i in range(3):
            png(
                here / name / f"{i:06d}_class-00{11 if name == 'eleven' else '01'}.png",
                40 if name == "large" else 32,
                name == "color",
            )
        refused(["eval", name, *cpu], "Fashion-MNIST", "--reference")
    np.savez(here / "x.npz", arr_0=np.zeros((4, 32, 32, 3), np.uint8))
    refused(["eval", "x.npz", *cpu], "Fashion-MNIST", "--reference")


def test_samples_of_fashion_mnist_are_compared_with_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgen.evaluation.evaluate.precision_recall", lambda *_, **__: (1.0, 1.0))  # of 10,000 images
    pipe = tiny_pipeline(steps=2)
    assert not knows_fashion(pipe)
    for i in range(4):
        png(here / f"{i:06d}_class-000{i}.png", value=40 * i)
    assert from_folder(here, channels=1).fashion
    assert main(["eval", ".", "--bootstrap", "0", "--device", "cpu", "--out", "e"]) == 0
    found = json.loads((here / "e" / "result.json").read_text())
    assert found["reference"]["name"] == "fmnist train" and "class accuracy (fmnist-classifier)" in found["metrics"]
    assert found["class_names"] == list(FASHION_CLASSES) and "as samples of a model of it" in found["note"]
    (here / "run.json").write_text('{"num_images": 4, "model": "fmnist-mar"}')
    assert from_folder(here, channels=1).fashion
    (here / "run.json").write_text('{"num_images": 4, "model": "gone"}')
    assert not from_folder(here, channels=1).fashion


def test_classes_that_the_classifier_does_not_know(parts: Parts, here: Path) -> None:
    line = [
        *FOLDER[:-4],
        "--reference",
        "@statistics",
        "--classifier",
        "fmnist-classifier",
        "--device",
        "cpu",
        "--out",
        "e",
    ]
    assert main([parts.fill(word) for word in line]) == 0
    found = json.loads((here / "e" / "result.json").read_text())
    assert "not those of Fashion-MNIST" in found["missing"]["class accuracy (fmnist-classifier)"]
    assert found["class_names"] == ["bag", "coat", "dress"] and found["by_class"]["images"] == {"0": 4, "1": 4, "2": 4}


def test_images_without_a_class_have_no_accuracy(parts: Parts, here: Path) -> None:
    for i in range(4):
        png(here / f"{i:06d}.png", value=40 * i)
    line = ["eval", ".", "--reference", "@statistics", "--bootstrap", "0", "--device", "cpu", "--out", "e"]
    assert main([parts.fill(word) for word in line]) == 0
    found = json.loads((here / "e" / "result.json").read_text())
    assert found["missing"]["class accuracy (fmnist-classifier)"] == "the images' classes are unknown"


def test_nearest_images_keep_colors_and_names(parts: Parts, here: Path) -> None:
    for i, name in enumerate(("red", "blue", "red", "green")):
        (here / "d" / name).mkdir(parents=True, exist_ok=True)
        png(here / "d" / name / f"{i}.png", color=True, value=60 * i)
    line = ["eval", "d", *REFERENCE, "--nearest", "d", "--bootstrap", "0", "--out", "e"]
    assert main([parts.fill(word) for word in line]) == 0
    rows = json.loads((here / "e" / "result.json").read_text())["nearest"]["rows"]
    assert [row["neighbors"][0]["name"] for row in rows] == ["blue", "green", "red", "red"]
    import base64

    shown = Image.open(io.BytesIO(base64.b64decode(rows[0]["image"].split(",")[1])))
    assert shown.mode == "RGB" and shown.getpixel((0, 0)) == (60, 0, 200)
    assert (
        "<strong>0" in (here / "e" / "report.html").read_text() and "(green)" in (here / "e" / "report.md").read_text()
    )


def test_the_same_images_on_both_sides_get_a_note(here: Path) -> None:
    images, extractor = pictures(40), Plain()
    measured = measure(source_of(images), extractor, progress=False)
    mean, cov = measured.sums().finish()
    other = measure(source_of(pictures(40, seed=3)), extractor, progress=False).sums().finish()
    for (m, c), told in (((mean, cov), True), (other, False)):
        reference = Reference(mean=m, cov=c, name="r", count=40)
        note = result(measured, source_of(images), extractor, protocol=find_protocol(None), reference=reference)["note"]
        assert ("probably the same images" in note) == told


@pytest.mark.parametrize(("rows", "kept"), [(40, False), (39, True), (50, True)])
def test_a_kernel_distance_over_one_subset_has_no_deviation(rows: int, kept: bool) -> None:
    images, extractor = pictures(40), Plain()
    measured = measure(source_of(images), extractor, progress=False)
    features = torch.randn(rows, 12, generator=torch.Generator().manual_seed(1))
    mean, cov = measured.sums().finish()
    reference = Reference(mean=mean, cov=cov, name="r", count=rows, features=features)
    found = result(measured, source_of(images), extractor, protocol=find_protocol(None), reference=reference)
    assert "kernel distance (plain)" in found["metrics"]
    assert ("kernel distance (plain)" in found["deviations"]) == kept


def test_what_was_passed_over_is_said(parts: Parts, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(parts["images"], here / "d")
    Image.new("L", (32, 32)).save(here / "d" / "bag" / "x.gif")
    (here / "d" / "bag" / "x.psd").write_bytes(b"8BPS")
    assert main([parts.fill(word) for word in ["eval", "d", *REFERENCE, "--bootstrap", "0", "--out", "e"]]) == 0
    assert "passed over 1 .psd" in capsys.readouterr().err
    assert json.loads((here / "e" / "result.json").read_text())["count"] == 13


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_of_another_encoding(parts: Parts, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert main([parts.fill(word) for word in [*FOLDER, "--out", "e"]]) == 0
    out.flush()
    assert b"chet distance (fmnist-cnn)" in out.buffer.getvalue()  # type: ignore[attr-defined]
    with pytest.raises(SystemExit):
        main(["eval", "--help"])


# -- outputs ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report.md", "report.html", "grid.png", "result.json"])
def test_files_of_the_user_are_not_replaced(refused: Refused, here: Path, name: str) -> None:
    (here / "e").mkdir()
    (here / "e" / name).write_text("mine")
    refused([*FOLDER, "--out", "e"], name, "choose another --out")
    (here / "e" / name).unlink()
    (here / "e" / name).mkdir()
    refused([*FOLDER, "--out", "e"], name, "a folder")


def test_an_evaluation_replaces_its_own(parts: Parts, here: Path) -> None:
    line = [parts.fill(word) for word in [*FOLDER, "--out", "e"]]
    assert main(line) == 0 and main(line) == 0
    assert re.fullmatch(r"[^�]+", (here / "e" / "report.md").read_text())
    assert sorted(os.listdir(here / "e")) == ["grid.png", "report.html", "report.md", "result.json"]


def test_one_image_has_no_covariance(refused: Refused, here: Path) -> None:
    png(here / "000000.png")
    for line in (["eval", ".", *REFERENCE], ["stats", ".", "--out", "s.npz"], [*FOLDER, *GRAY, "--reference", "."]):
        refused(line, "at least 2 images")
    refused([*FOLDER, "--nearest", "."], "at least 2 images")
