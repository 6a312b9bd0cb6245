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


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """The embedded model with fewer steps, as a run of mgen train left it, and the same by its name."""
    run = tmp_path / "run"
    shutil.copytree(embedded("fmnist-maskgit"), run / "model")
    pipe = mgen.load("fmnist-maskgit")
    pipe.sampler.override(steps=2).save_pretrained(run / "model" / "sampler")
    lines = [{"step": 1, "loss": 6.0, "images": 64}, {"step": 30, "loss": 5.0, "images": 1920}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [f"short={run}", "whole=fmnist-maskgit"]


def test_the_table_holds_every_model_and_goes_on(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--num-images", "6", "--batch-size", "3", "--out", str(tmp_path / "table")]
    common += ["--data-path", str(write_idx(tmp_path / "idx"))]
    assert frontier.main([*models, *common]) == 0
    found: dict[str, Any] = json.loads((tmp_path / "table.json").read_text())
    short, whole = found["rows"]["short"], found["rows"]["whole"]
    assert short["training_images"] == 1920 and whole["training_images"] > 10**5
    assert short["parameters"] == whole["parameters"] and short["floor"] == whole["floor"]
    assert short["passes"] == {"full": 4, "cached": 0} and whole["tflops"] > 2 * short["tflops"] > 0
    assert 0 < short["cpu_seconds"] < whole["cpu_seconds"] and min(short["distance"], whole["distance"]) > 0
    assert 0 <= short["accuracy"] <= 1 and short["floor"]["psnr"] > 20
    lines = (tmp_path / "table.md").read_text().splitlines()
    order = sorted(found["rows"], key=lambda name: found["rows"][name]["distance"])
    assert [line.split(" | ")[0][2:] for line in lines[2:]] == order
    assert all(line.count("|") == lines[0].count("|") for line in lines)

    done = []
    monkeypatch.setattr(frontier, "measured_row", lambda pipe, name, *rest: done.append(name) or dict(short))
    assert frontier.main([*models, *common]) == 0 and not done
    assert capsys.readouterr().out.count("measured before") == 2
    pipe = mgen.load(tmp_path / "run" / "model")
    pipe.sampler.override(steps=3).save_pretrained(tmp_path / "run" / "model" / "sampler")
    assert frontier.main([models[0], *common]) == 0 and done == ["short"]
    assert frontier.main([*models, *common, "--redo"]) == 0 and done == ["short", "short", "whole"]
    with pytest.raises(SystemExit):
        frontier.main([*models, *common, "--num-images", "7"])
    assert "was made with" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "words"), [("maskgit", "expected NAME=FOLDER"), ("a=nowhere", "nowhere")])
def test_errors_come_first(given: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        frontier.main(["whole=fmnist-maskgit", given, "--out", str(tmp_path / "table")])
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())
