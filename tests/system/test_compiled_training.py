"""A run that is trained with `compile`: the same names in every file, losses that agree, and a resumed run may switch it."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from safetensors import safe_open
from torch._dynamo.utils import counters

import mgen
from mgen.training.config import train_config
from mgen.training.loop import train
from mgen.utils.compiling import compile_network
from mgen.utils.errors import MgenError
from tests.compiled import graphs
from tests.helpers import TOKENIZER
from tests.training_steps import logged_losses, small_training


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_training(tmp_path_factory.mktemp("compiled"))


def names(output: Path) -> dict[str, list[str]]:
    """Tensors of every file of a run."""
    found = {}
    for file in sorted(output.rglob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found[str(file.relative_to(output))] = sorted(tensors.keys())
    return found


def test_files_have_the_same_names_and_a_run_may_switch(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled for two steps, then plain, then compiled as a whole: as a run that was never compiled."""
    monkeypatch.setattr("mgen.training.trainer.compile_network", partial(compile_network, backend="aot_eager"))
    torch._dynamo.reset()
    train(train_config({**settings, "steps": 4, "output": str(tmp_path / "plain")}))
    counters.clear()
    for steps, mode in ((2, "regional"), (3, "off"), (4, "full")):
        made = graphs()
        train(train_config({**settings, "steps": steps, "compile": mode, "output": str(tmp_path / "own")}))
        assert (graphs() > made) == (mode != "off")
    plain, own = tmp_path / "plain", tmp_path / "own"
    assert names(own) == names(plain) and len(names(own)) > 4
    assert logged_losses(own) == pytest.approx(logged_losses(plain), rel=1e-5)
    images = [mgen.load(run / "model")([0], seed=0, output_type="raw", progress=False).images for run in (own, plain)]
    assert torch.allclose(*images, atol=1e-3)


def test_yaml_says_off_and_on(settings: dict[str, Any]) -> None:
    for given, meant in ((False, "off"), (True, "regional"), ("full", "full")):
        assert train_config({**settings, "output": "x", "compile": given}).compile == meant
    with pytest.raises(MgenError, match="compile.*regional"):
        train_config({**settings, "output": "x", "compile": "fast"})
    with pytest.raises(MgenError, match="compile is for task generator"):
        model = {"class": "VQGAN", **TOKENIZER}
        train_config({"task": "tokenizer", "steps": 1, "model": model, "output": "x", "compile": "regional"})


def test_the_launcher_does_not_compile_a_copy(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(MgenError, match="compile=regional"):
        train(train_config({**settings, "output": str(tmp_path / "own")}))
