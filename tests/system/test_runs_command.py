"""`mgen sample` as a run of many images: shards, the grid, one npz of all, options that exclude each other."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgen.cli import main
from mgen.pipelines.shards import ShardFolder
from tests.helpers import tiny_generator, tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    tiny_pipeline(steps=3).save_pretrained(folder)
    return folder


def test_command_writes_shards_grid_and_npz(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = ["sample", "--model", str(model), "--num-images", "7", "--labels", "sorted"]
    shards = ["--format", "npz", "--shard-size", "3", "--npz", str(tmp_path / "deep" / "all.npz")]
    assert main([*args, *shards, "--batch-size", "2", "--out", str(tmp_path / "a")]) == 0
    assert "7 images in" in capsys.readouterr().out
    assert main([*args, "--out", str(tmp_path / "b")]) == 0
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (run["labels"], run["format"], run["shard_size"], run["num_images"]) == ("sorted", "npz", 3, 7)
    grids = [(tmp_path / name / "grid.png").read_bytes() for name in "ab"]
    assert grids[0] == grids[1]
    with np.load(tmp_path / "deep" / "all.npz") as file:
        assert file["arr_1"].tolist() == [0, 0, 0, 1, 1, 2, 2]
        stored = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "b").glob("0*.png"))])
        assert np.array_equal(file["arr_0"], np.repeat(stored[..., None], 3, -1))
    (tmp_path / "deep" / ".all.npz.5.tmp.npz").write_bytes(b"half")
    assert main([*args, *shards, "--out", str(tmp_path / "a")]) == 0  # again: everything is there
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["all.npz"]


def test_impossible_options_are_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = ["sample", "--model", str(model), "--num-images", "2", "--out", str(tmp_path / "never")]
    (tmp_path / "x.npz").mkdir()
    (tmp_path / "file").write_text("")
    for options, word in {
        "--labels sortd": "did you mean 'sorted'",
        "--format npy": "did you mean 'npz'",
        "--format npz --shard-size 0": "at least 1",
        "--shard-size 5": "is for --format npz",
        "--image-size 0": "at least 1",
        "--quantization floor": "half-up, round, truncate",
        "--npz all.zip": "ending in .npz",
        "--npz images-000000-000009.npz": "not that of a shard",
        f"--npz {tmp_path / 'x.npz'}": "file name",
        f"--npz {tmp_path / 'file' / 'x' / 'all.npz'}": "cannot write",
    }.items():
        assert main([*args, *options.split()]) == 2, options
        err = capsys.readouterr().err.splitlines()
        assert len(err) == 1 and word in err[0], (options, err)
    assert not (tmp_path / "never").exists()


def test_unconditional_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from tests.unit.test_conversion import converted

    folder = converted("mage", tmp_path / "model")
    args = ["sample", "--model", str(folder), "--num-images", "5", "--steps", "2"]
    assert (
        main(
            [
                *args,
                "--format",
                "npz",
                "--shard-size",
                "2",
                "--out",
                str(tmp_path / "a"),
                "--npz",
                str(tmp_path / "a.npz"),
            ]
        )
        == 0
    )
    assert main([*args, "--batch-size", "2", "--out", str(tmp_path / "b")]) == 0  # the batches of the shards
    images, labels = ShardFolder(tmp_path / "a").read(0, 5)
    assert labels.tolist() == [-1] * 5 and images.shape[1] == 3
    stored = np.stack([np.asarray(Image.open(tmp_path / "b" / f"{i:06d}.png")) for i in range(5)])
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), stored)
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(file["arr_0"], stored) and file["arr_1"].tolist() == [-1] * 5
    assert main([*args, "--labels", "sorted", "--out", str(tmp_path / "c")]) == 2
    assert "unconditional" in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_a_run_with_a_guide_records_it(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, seed in (("early", 5), ("late", 6)):
        pipe = tiny_pipeline()
        pipe.transformer = tiny_generator(seed, dim=16, heads=1, classes={"null_class": False})
        pipe.save_pretrained(tmp_path / name)
    args = ["sample", "--model", str(model), "--num-images", "3", "--guidance", "3"]
    guide = ["--guide", str(tmp_path / "early")]
    assert main([*args, *guide, "--show-plan"]) == 0
    out = capsys.readouterr().out
    assert out.count("full + guide") == 3 and "null class" not in out
    assert main([*args, *guide, "--out", str(tmp_path / "a")]) == 0
    assert main([*args, "--out", str(tmp_path / "b")]) == 0
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    assert run["guide"] == guide[1] and len(run["guide_sha256"]) == 64
    assert "guide" not in json.loads((tmp_path / "b" / "run.json").read_text())
    assert (tmp_path / "a" / "grid.png").read_bytes() != (tmp_path / "b" / "grid.png").read_bytes()
    (tmp_path / "early").rename(tmp_path / "moved")  # the same weights at another path go on
    assert main([*args, "--guide", str(tmp_path / "moved"), "--out", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    for options, words in (
        (["--guide", str(tmp_path / "late"), "--out", str(tmp_path / "a")], "guide was"),
        (["--out", str(tmp_path / "a")], "guide_sha256 was"),
        (["--guide", str(tmp_path / "nowhere"), "--out", str(tmp_path / "c")], "no model"),
    ):
        assert main([*args, *options]) == 2
        err = capsys.readouterr().err.splitlines()
        assert words in err[-1], err


def test_evaluations_and_edits_take_a_guide(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pipe = tiny_pipeline()
    pipe.transformer = tiny_generator(5, dim=16, heads=1, classes={"null_class": False})
    pipe.save_pretrained(tmp_path / "early")
    guide = ["--guide", str(tmp_path / "early")]
    args = ["eval", str(model), "--num-images", "4", "--guidance", "3", "--bootstrap", "0"]
    args += ["--extractor", "fmnist-cnn", "--reference", "fmnist-test"]
    assert main([*args, *guide, "--out", str(tmp_path / "a")]) == 0
    assert main([*args, "--out", str(tmp_path / "b")]) == 0
    guided, by_class = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    assert guided["images"]["guide"] == guide[1] and len(guided["images"]["guide_sha256"]) == 64
    assert "guide" not in by_class["images"] and guided["metrics"] != by_class["metrics"]

    Image.fromarray(np.full((32, 32), 90, dtype=np.uint8)).save(tmp_path / "in.png")
    args = ["edit", str(tmp_path / "in.png"), "--model", str(model), "--box", "0,0,32,28", "--class", "1"]
    args += ["--guidance", "9", "--num-images", "4"]
    made = {}
    for name, options in {"c": guide, "d": [], "e": ["--guide", str(model)]}.items():
        assert main([*args, *options, "--out", str(tmp_path / name)]) == 0
        made[name] = [path.read_bytes() for path in sorted((tmp_path / name).glob("edit-*.png"))]
    assert main([*args, "--guidance", "1", "--out", str(tmp_path / "f")]) == 0
    plain = [path.read_bytes() for path in sorted((tmp_path / "f").glob("edit-*.png"))]
    assert made["c"] != made["d"] and made["e"] == plain  # the model itself as its guide changes nothing
    capsys.readouterr()
    for start in (["eval", str(model)], args):
        assert main([*start, "--guide", str(tmp_path / "nowhere"), "--out", str(tmp_path / "g")]) == 2
        assert "no model" in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "g").exists()
