"""Tables say what they show, and in which units."""

from pathlib import Path

import pytest

from mgen.bench.sweep_report import markdown
from mgen.cli import main
from tests.system.boundaries.harness import EVAL, Parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("parts"))


MODEL = ["--model", "@pipeline", "--device", "cpu"]
PRINTED = {
    "zoo": (["zoo"], ["Models: parameters (M: millions)", "TFLOPs per image", "accuracy, %"]),
    "classes": (["zoo", "fmnist-mar", "--classes"], ["Classes of fmnist-mar", "id  names"]),
    "plan": (["sample", *MODEL, "--show-plan"], ["What every step does to one image", "unknown"]),
    "bench": (["bench", *MODEL], ["Where the time of a batch of 4 goes", "s/batch", "TFLOPs/image", "M parameters"]),
    "eval": (
        ["eval", *EVAL, "--out", "o"],
        ["Metrics of 4 images, protocol fmnist-cnn, compared with", "± standard deviation"],
    ),
}


@pytest.mark.parametrize("name", PRINTED)
def test_printed_tables(
    name: str, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    argv, words = PRINTED[name]
    assert main([parts.fill(word) for word in argv]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in words), out


def test_tables_of_a_sweep() -> None:
    row = {"method": "a", "steps": 4, "full": 4, "cached": 0, "tflops": 1.0, "seconds": 0.5, "distance": 3.0}
    about = {"command": "c", "model": "m", "batch_size": 1, "threads": 1, "dtype": "fp32", "distance": "d"}
    text = markdown([row], "a", about)  # type: ignore[list-item]
    assert "| steps | method | full + cached passes | TFLOPs/image | s/image |" in text
    assert all(f"**At equal {what}**" in text for what in ("steps", "distance", "time"))
