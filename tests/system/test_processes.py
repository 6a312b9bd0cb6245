"""Training by several processes: the launcher, signals, and a loss that needs the whole batch."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from mgen.training.config import train_config
from mgen.training.loop import train
from tests.helpers import tiny_tokenizer, write_idx
from tests.processes import LAUNCH, launch, launch_environment, together
from tests.system.test_training import generator_run, losses


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx(tmp_path_factory.mktemp("idx"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_two_processes_balance_an_adversarial_term_like_one(idx: Path, tmp_path: Path) -> None:
    """The adaptive weight is that of the whole batch, though each process has two pieces of it."""
    size = {"image_size": 32, "in_channels": 1, "channels": [8, 8, 8], "layers": 1, "norm_groups": 4}
    adversarial = {
        "adversarial": 0.5,
        "adversarial_adaptive": True,
        "adversarial_start": 1,
        "adversarial_loss": "hinge",
    }
    config = {
        "task": "tokenizer",
        "output": str(tmp_path / "one"),
        "steps": 3,
        "batch_size": 8,
        "model": {"class": "LlamaGenVQ", **size, "z_channels": 8, "latent": 4, "vocab_size": 16},
        "data": {"kind": "fmnist", "path": str(idx)},
        "objective": {"l2": 4.0, **adversarial, "discriminator_channels": 8, "discriminator_layers": 2},
        "optim": {"lr": 1e-3, "clip": 1.0},
        "log": {"every": 1, "tensorboard": False},
    }
    train(train_config(config))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "output": str(tmp_path / "two"), "accumulate": 2}))
    together("train", "--config", str(tmp_path / "c.yaml"), "processes=2", log=tmp_path / "log")
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for name in ("loss", "adversarial_factor", "discriminator", "grad_norm"):
        assert [line.get(name, 0.0) for line in one] == pytest.approx(
            [line.get(name, 0.0) for line in two], rel=1e-3
        ), name
    assert ["adversarial_factor" in line for line in one] == [False, True, True, False]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_processes_stop_after_the_same_step(number: int, idx: Path, tokenizer: Path, tmp_path: Path) -> None:
    """SIGTERM reaches the launcher, Ctrl-C all processes of a terminal; the launcher passes both on."""
    config = generator_run(idx, tokenizer, tmp_path / "run", **{"steps": 10**6, "log.checkpoint_every": 0})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    arguments = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "mgen.train"]
    arguments += ["--config", str(tmp_path / "c.yaml")]
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(arguments, stderr=log, stdout=log, env=launch_environment(), start_new_session=True)
        try:
            deadline, lines = time.monotonic() + 200, tmp_path / "run" / "metrics.jsonl"
            while not (lines.exists() and lines.read_text().count("\n") > 2) and time.monotonic() < deadline:
                time.sleep(0.1)
            (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)
            run.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    said = (tmp_path / "log").read_text()
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    step = int(checkpoint.name[-7:])
    assert said.count(f"stopped after step {step} of 1000000") == 2, said[-3000:]
    assert max(losses(tmp_path / "run")) == step and not (tmp_path / "run" / ".lock").exists()
    train(train_config({**config, "steps": step + 1}))
    assert max(losses(tmp_path / "run")) == step + 1


def test_a_launch_with_too_few_processes_is_an_error(idx: Path, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(generator_run(idx, tokenizer, tmp_path / "run")))
    done = launch(
        ["--cpu", "--num_processes", "2"], "--config", str(tmp_path / "c.yaml")
    )  # accelerate silently starts one process
    assert done.returncode != 0
    assert "asks for 2 processes but 1 took part" in done.stderr and "--multi_gpu" in done.stderr
    assert not (tmp_path / "run").exists()
