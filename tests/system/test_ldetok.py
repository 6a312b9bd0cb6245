"""Training of l-DeTok's tokenizer on one process and on two, in one piece and in several."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mgen.training.config import train_config
from mgen.training.loop import train
from tests.helpers import LDETOK, write_idx
from tests.system.test_training import launch, losses


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model" / "diffusion_pytorch_model.safetensors")


def test_two_processes_corrupt_and_train_like_one(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "task": "tokenizer",
        "output": str(tmp_path / "one"),
        "steps": 4,
        "batch_size": 48,
        "model": {"class": "LDeTok", **LDETOK, "latents_mean": None, "latents_std": None},
        "data": {"kind": "fmnist", "path": str(write_idx(tmp_path / "idx")), "flip": True},
        "objective": {"kl": 1e-3, "corruption": {"noise": 2.0, "mask": 0.7}},
        "optim": {"lr": 1e-3},
        "ema": {"decay": 0.9},
        "log": {"every": 1, "tensorboard": False},
    }
    train(train_config(config))
    train(train_config({**config, "output": str(tmp_path / "pieces"), "accumulate": 3}))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "output": str(tmp_path / "two")}))
    done = launch(
        ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"], tmp_path / "c.yaml", "processes=2"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one = weights(tmp_path / "one")
    for other in ("pieces", "two"):
        assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / other), rel=1e-4)
        made = weights(tmp_path / other)
        assert all(torch.allclose(one[name], made[name], atol=2e-4) for name in one)
