"""A folder that a command writes to, within the images that it reads: it would be a class of them the next time."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from mgen.cli import main
from mgen.project.stages import run_project
from mgen.project.start import InitRequest, init
from mgen.utils.errors import MgenError
from mgen.utils.paths import lies_in
from tests.helpers import tiny_tokenizer
from tests.system.test_own_data import color_images

FAST = ["batch_size=8", "optim.warmup=0", "log.tensorboard=false", "model.widths=[4,8]", "data.held_out=0"]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    color_images(tmp_path / "d", count=4)
    return Path("d")


def test_what_a_search_finds(tmp_path: Path) -> None:
    (tmp_path / "d" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "d")
    (tmp_path / "d" / "out").symlink_to(tmp_path)
    inside = ["d", "d/a", "d/a/b/c", "link/x", "d/./a/../b", "d/out/x"]
    outside = ["", "e", "data", "d/../e", "d/.runs/x", "d2/a"]
    for folder in ("d", "link"):
        assert all(lies_in(tmp_path / name, tmp_path / folder) for name in inside if folder == "d" or "out" not in name)
        assert not any(lies_in(tmp_path / name, tmp_path / folder) for name in outside)


@pytest.mark.parametrize("output", ["d/run", "d", "d/red", "val/run"])
def test_a_run_within_its_images(images: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(images, "val")
    before = sorted(Path().rglob("*"))
    argv = ["train", "--config", "classifier", "data.path=d", f"output={output}", "steps=2", *FAST, "data.val_path=val"]
    assert main(argv) == 2
    name = "data.val_path" if output.startswith("val") else "data.path"
    assert f"output '{output}' lies in {name}" in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


def test_a_run_that_lies_there_already_goes_on_elsewhere(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "--config", "classifier", "data.path=d", *FAST, "log.checkpoint_every=1"]
    assert main([*argv, "output=run", "steps=2"]) == 0
    shutil.move("run", images / "run")
    assert main([*argv, "output=d/run", "steps=3"]) == 2
    assert "output 'd/run' lies in data.path 'd'" in capsys.readouterr().err
    shutil.move(images / "run", "run")
    assert main([*argv, "output=run", "steps=3"]) == 0


def test_a_hidden_folder_is_no_class(images: Path) -> None:
    for steps in (1, 2):
        assert main(["train", "--config", "classifier", "data.path=d", "output=d/.run", f"steps={steps}", *FAST]) == 0


def test_a_cache_within_its_images(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_tokenizer(in_channels=3).save_pretrained("tokenizer")
    argv = ["cache", "--data", "d", "--tokenizer", "tokenizer", "--device", "cpu", "--out"]
    assert main([*argv, "d/c"]) == 2
    assert "--out 'd/c' lies in --data 'd'" in capsys.readouterr().err and not (images / "c").exists()
    assert main([*argv, "c"]) == 0


def test_a_project_within_its_images(images: Path) -> None:
    shutil.copytree(images, "val")
    for out in ("d/p", "val/p"):
        name = "--data" if out.startswith("d") else "--val"
        with pytest.raises(MgenError, match=f"--out '{out}' lies in {name}"):
            init(InitRequest(data="d", val="val", out=out, image_size=32, timed=False))
        assert not Path(out).exists()
    init(InitRequest(data="d", out="p", image_size=32, timed=False))
    shutil.move("p", images / "p")
    with pytest.raises(MgenError, match="the project .* lies in data.path"):
        run_project(images / "p", ["classifier"])


@pytest.mark.parametrize("given", [{"data": "a\0b"}, {"out": "a\0b"}, {"data": 5}, {"val": "a\0b"}, {"data": "fmnist"}])
def test_what_can_be_no_folder_of_images(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(MgenError, match=r"--data|--val|--out"):
        init(InitRequest(**{"data": str(tmp_path), "out": "made", **given}))
