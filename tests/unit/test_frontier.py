"""The table of small models: what a row holds, what is measured again, and errors before any work."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import mgen
from mgen.utils.folders import embedded
from tests.helpers import write_idx
from tools import frontier


def set_steps(model: Path, steps: int) -> None:
    mgen.load(model).sampler.override(steps=steps).save_pretrained(model / "sampler")


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """The embedded model with one and with two steps, the first as a run of mgen train left it."""
    run = tmp_path / "run"
    for folder, steps in ((run / "model", 1), (tmp_path / "other", 2)):
        shutil.copytree(embedded("fmnist-maskgit"), folder)
        set_steps(folder, steps)
    lines = [{"step": 1, "loss": 6.0, "images": 64}, {"step": 30, "loss": 5.0, "images": 1920}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [f"one={run}", f"two={tmp_path / 'other'}"]


def test_the_table_holds_every_model_and_goes_on(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--num-images", "4", "--batch-size", "2", "--out", str(tmp_path / "table")]
    common += ["--data-path", str(write_idx(tmp_path / "idx"))]
    assert frontier.main([*models, *common]) == 0
    found: dict[str, Any] = json.loads((tmp_path / "table.json").read_text())
    one, two = found["rows"]["one"], found["rows"]["two"]
    assert one["training_images"] == 1920 and two["training_images"] is None
    assert one["parameters"] == two["parameters"] and one["floor"] == two["floor"] and one["floor"]["psnr"] > 20
    assert one["passes"] == {"full": 2, "cached": 0} and two["tflops"] > 1.5 * one["tflops"] > 0
    assert min(one["cpu_seconds"], two["cpu_seconds"], one["distance"], two["distance"]) > 0
    lines = (tmp_path / "table.md").read_text().splitlines()
    order = sorted(found["rows"], key=lambda name: found["rows"][name]["distance"])
    assert [line.split(" | ")[0][2:] for line in lines[2:]] == order
    assert all(line.count("|") == lines[0].count("|") for line in lines)

    done: list[str] = []
    monkeypatch.setattr(frontier, "measured_row", lambda pipe, name, *rest: done.append(name) or dict(one))
    assert frontier.main([*models, *common]) == 0 and not done
    assert capsys.readouterr().out.count("measured before") == 2
    set_steps(tmp_path / "run" / "model", 3)
    assert frontier.main([models[0], *common]) == 0 and done == ["one"]
    assert frontier.main([*models, *common, "--redo"]) == 0 and done == ["one", "one", "two"]
    with pytest.raises(SystemExit):
        frontier.main([*models, *common, "--num-images", "7"])
    assert "was made with" in capsys.readouterr().err


def test_an_embedded_model_knows_its_training() -> None:
    pipe, facts = frontier.of_model(Path("fmnist-maskgit"))
    assert facts["training_images"] > 10**5 and facts["tokens"] == 64 and facts["sampler"] == pipe.sampler.settings


@pytest.mark.parametrize(("given", "words"), [("maskgit", "expected NAME=FOLDER"), ("a=nowhere", "nowhere")])
def test_errors_come_first(given: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        frontier.main(["whole=fmnist-maskgit", given, "--out", str(tmp_path / "table")])
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())
