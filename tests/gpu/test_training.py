"""Training on a GPU: exact resume, losses as on the CPU, precisions, and what it needs in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

import mgen
from mgen.training.config import GeneratorObjectiveConfig, train_config
from mgen.training.estimate import check_step
from mgen.training.generator_objective import GeneratorObjective
from mgen.training.loop import run, train
from mgen.training.noise import Augmentation
from mgen.training.trainer import Trainer
from mgen.utils.compiling import compile_network, uncompiled
from tests.helpers import tiny_net, tiny_tokens
from tests.training_steps import logged_losses, small_training, training_step

STEPS = 20


@pytest.fixture
def settings(tmp_path: Path, device: torch.device) -> dict[str, Any]:
    made = small_training(tmp_path)
    return {**made, "steps": STEPS, "log": {**made["log"], "checkpoint_every": STEPS // 2}}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_repeats_the_losses(
    precision: str, settings: dict[str, Any], tmp_path: Path, device: torch.device
) -> None:
    if device.type == "cpu" and precision == "fp16":
        pytest.skip("fp16 needs a GPU")
    settings["precision"] = precision
    train(train_config({**settings, "output": str(tmp_path / "whole")}))
    for steps in (STEPS // 2, STEPS):
        train(train_config({**settings, "steps": steps, "output": str(tmp_path / "cut")}))
    whole, cut = (logged_losses(tmp_path / name) for name in ("whole", "cut"))
    assert len(whole) == STEPS and cut == pytest.approx(whole, rel=1e-6)
    pipe = mgen.load(tmp_path / "whole" / "model", device=device)
    assert torch.isfinite(pipe([0, 1], output_type="pt", progress=False).images).all()


@pytest.mark.parametrize(
    "head", [{"type": "diffusion", "width": 32, "depth": 2}, {"type": "flow", "width": 32, "depth": 2}]
)
def test_noise_drawn_on_the_device_does_not_depend_on_the_cut(head: dict[str, Any], device: torch.device) -> None:
    made = GeneratorObjective(tiny_net("mae", tokens=tiny_tokens("vector"), head=head), GeneratorObjectiveConfig())
    plain = made.make_noise(6, torch.Generator().manual_seed(0), augmentation=Augmentation())
    whole = made.add_row_noise(plain, slice(0, 6), 0, "rows", device=device)
    parts = [made.add_row_noise(plain.rows(cut), cut, 0, "rows", device=device) for cut in (slice(0, 2), slice(2, 6))]
    for name in ("t", "noise"):
        found = getattr(whole.head, name)
        assert found.device.type == device.type and found.unique().numel() > 6
        assert torch.equal(found, torch.cat([getattr(part.head, name) for part in parts]))


def test_losses_are_those_of_the_cpu(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks, noise and order of the images don't depend on the device. The first steps, before rounding adds up; no dropout."""
    settings["steps"] = 5
    train(train_config({**settings, "output": str(tmp_path / "device")}))
    with monkeypatch.context() as without:
        without.setattr(torch.cuda, "is_available", lambda: False)
        AcceleratorState._reset_state(True)  # which would keep the device of the first run
        try:
            trainer = Trainer(train_config({**settings, "output": str(tmp_path / "cpu")}))
            assert trainer.device.type == "cpu"
            run(trainer)
        finally:
            AcceleratorState._reset_state(True)
    found, expected = (logged_losses(tmp_path / name) for name in ("device", "cpu"))
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_compiler_gives_the_same_numbers(device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("tests/unit/test_compile_setting.py does this on a CPU")
    for mode in ("regional", "full"):
        torch._dynamo.reset()
        net = tiny_net("mae", tokens=tiny_tokens("vector")).to(device).train()
        compile_network(net, mode)
        for masked in (10, 7, 12):
            compiled = training_step(net, masked=masked)
            with uncompiled():
                plain = training_step(net, masked=masked)
            assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(compiled, plain))


def test_a_compiled_run_trains(settings: dict[str, Any], tmp_path: Path, device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("tests/system/test_compiled_training.py does this on a CPU")
    settings["steps"] = 4
    for mode in ("off", "regional"):
        train(train_config({**settings, "compile": mode, "output": str(tmp_path / mode)}))
    assert logged_losses(tmp_path / "regional") == pytest.approx(logged_losses(tmp_path / "off"), rel=1e-3)


def test_memory_is_as_estimated(settings: dict[str, Any], tmp_path: Path, device: torch.device) -> None:
    """The estimate, which is checked before the first step, is neither half nor twice the peak of a run."""
    if device.type != "cuda":
        pytest.skip("the peak is known of GPUs only")
    settings |= {"batch_size": 96, "steps": 2, "output": str(tmp_path / "own")}
    trainer = Trainer(train_config(settings))
    estimated = check_step(trainer).total
    del trainer
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    train(train_config(settings))
    assert estimated / 2 <= torch.cuda.max_memory_allocated(device) <= 2 * estimated


def test_sampling_leaves_no_memory_behind(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("memory is counted on GPUs only")
    pipe = mgen.load("fmnist-mar", device=device)
    pipe([0, 1], progress=False)
    before = torch.cuda.memory_allocated(device)
    peaks = []
    for batch in (2, 8):
        torch.cuda.reset_peak_memory_stats(device)
        pipe([0] * 8, batch_size=batch, progress=False)
        peaks.append(torch.cuda.max_memory_allocated(device))
    assert torch.cuda.memory_allocated(device) <= before + 2**20
    assert peaks[0] < peaks[1]
