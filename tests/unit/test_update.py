"""What a step does with its gradient, how fast a run says it is, and runs that were begun before either changed."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mgen.training import speed
from mgen.training.config import EMAConfig, OptimConfig, TrainConfig, train_config
from mgen.training.flops import Peak, listed
from mgen.training.loop import run, train
from mgen.training.speed import Meter
from mgen.training.tensors import Diverged
from mgen.training.trainer import Trainer, make_schedule
from mgen.training.update import MOST_SKIPPED_IN_A_ROW, AdamW, Average, Numerics, Skips
from mgen.utils.devices import wait_for
from mgen.utils.errors import MgenError
from tests.helpers import write_idx

CPU = torch.device("cpu")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx(tmp_path_factory.mktemp("idx"))


def config(idx: Path, output: Path, **settings: Any) -> TrainConfig:
    base = {
        "task": "classifier",
        "output": str(output),
        "steps": 6,
        "batch_size": 12,
        "model": {"class": "ImageClassifier", "widths": [8]},
        "data": {"kind": "fmnist", "path": str(idx), "shift": 1},
        "optim": {"lr": 3e-3, "weight_decay": 0.02, "clip": 0.5},
        "ema": {"decay": 0.9},
        "log": {"every": 1, "checkpoint_every": 3, "trackers": []},
    }
    return train_config(base | settings)


def steps(version: Numerics, bad: tuple[int, ...] = ()) -> tuple[list[Tensor], list[Tensor], int]:
    """Weights and averages after eight steps, of which the gradients of `bad` are not finite, and how many were skipped."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(100))]
    adamw, skips = AdamW([{"params": weights, "weight_decay": 0.02}], OptimConfig(lr=0.01), CPU), Skips(CPU)
    average = Average(weights, EMAConfig(decay=0.5))
    adamw.use_numerics(version)
    average.numerics = version
    for i in range(8):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        if i in bad:
            assert weights[0].grad is not None
            weights[0].grad[1, 2] = float("nan")
        finite = torch.tensor(i not in bad)
        if adamw.fused:
            adamw.skip_unless(finite)
        if adamw.fused or finite:
            adamw.step()
            average.step(weights)
        skips.add(finite)
    return [w.detach() for w in weights], average.shadow_params, skips.read()


def test_both_forms_of_the_update_agree_and_skip_the_same_steps() -> None:
    for bad in ((), (0, 3, 4)):
        one, two = steps(1, bad), steps(2, bad)
        assert one[2] == two[2] == len(bad)
        for a, b in zip(one[0], two[0]):
            assert torch.allclose(a, b, atol=1e-6) and b.isfinite().all()
    # With a skipped step the average comes nearer to weights that stay.
    assert not torch.equal(steps(2)[0][0], steps(2, (3,))[0][0])
    for a, b in zip(steps(1)[1], steps(2)[1]):
        assert torch.allclose(a, b, atol=1e-6)


def test_too_many_skipped_steps_in_a_row_end_the_run() -> None:
    skips = Skips(CPU)
    for i in range(2 * MOST_SKIPPED_IN_A_ROW):
        skips.add(torch.tensor(i % MOST_SKIPPED_IN_A_ROW == 0))
    assert skips.read() == 2 * (MOST_SKIPPED_IN_A_ROW - 1)
    for _ in range(2):
        skips.add(torch.tensor(False))
    skips.add(torch.tensor(True))  # seen when values are logged, if later steps were finite too
    with pytest.raises(Diverged, match="in a row"):
        skips.read()


def test_a_run_of_an_earlier_version_resumes_exactly(idx: Path, tmp_path: Path) -> None:
    def losses(name: str) -> list[float]:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines if "lr" in line]

    for name in ("whole", "cut"):
        trainer = Trainer(config(idx, tmp_path / name, steps=6 if name == "whole" else 3))
        trainer.use_numerics(1)
        run(trainer)
    file = tmp_path / "cut" / "checkpoint-0000003" / "state.json"
    state = json.loads(file.read_text())
    assert state.pop("numerics") == 1  # earlier versions wrote no such key
    file.write_text(json.dumps(state))
    train(config(idx, tmp_path / "cut"))
    assert losses("cut") == losses("whole")
    train(config(idx, tmp_path / "new"))
    assert losses("new") == pytest.approx(losses("whole"), rel=1e-4)
    assert json.loads((tmp_path / "new" / "checkpoint-0000006" / "state.json").read_text())["numerics"] == 2


def test_cards_are_told_apart_by_whole_words() -> None:
    for name, teraflops in (
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
    ):
        assert listed(name) == teraflops * 1e12
    others = "L40", "RTX A1000", "RTX A4000", "A100-SXM4-40GB MIG 1g.5gb", "GB200", "GeForce RTX 3090 Ti"
    for name in (*others, "GeForce RTX 4090 Laptop GPU", "GeForce RTX 4090 D"):
        assert listed(f"NVIDIA {name}") is None  # measured


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_clocks_wait_for_every_kind_of_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    for name in ("cuda", "mps", "xpu"):
        monkeypatch.setattr(getattr(torch, name), "synchronize", lambda *device, name=name: waited.append(name))
    wait_for(torch.device(kind))
    assert waited == [kind]


def test_the_log_says_how_fast_a_run_is(idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "matmul_peak", lambda device, precision: Peak(flops=1e9, source="measured"))
    clock = [100.0]  # s
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    trainer = Trainer(config(idx, tmp_path / "run"))

    def slow() -> Iterator[dict[str, Tensor]]:
        while True:
            clock[0] += 0.5
            yield {}

    meter = Meter(slow(), trainer)
    # One convolution and one linear layer at least: 3×3×8 products for each of 32×32 pixels, 2 FLOPs each.
    assert 2 * 9 * 8 * 32 * 32 <= meter.flops < 1e8
    for _ in range(3):
        next(meter)
        trainer.step += 1
    clock[0] += 0.5
    values = meter.values({"loss": torch.tensor(1.0)})
    assert values["data_wait"] == pytest.approx(0.75) and values["images_per_second"] == pytest.approx(36 / 2)
    assert values["mfu"] == pytest.approx(3 * meter.flops * values["images_per_second"] / 1e9)
    assert values["images"] == 36 and values["loss"] == 1.0
    clock[0] += 0.5
    assert meter.values({"loss": torch.tensor(1.0)})["data_wait"] == 0.0


# -- the learning rate -------------------------------------------------------------------------------------------------------


def rates(steps: int, **settings: Any) -> list[float]:
    """The learning rate of each step, and behind the last one."""
    optim = OptimConfig(**settings)
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=optim.lr)
    schedule = make_schedule(optim, sgd, steps)
    found = [schedule.get_last_lr()[0]]
    for _ in range(steps):
        sgd.step()
        schedule.step()
        found.append(schedule.get_last_lr()[0])
    return found


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_to_the_end_or_beyond_it(schedule: str) -> None:
    rising = [0.5] * 4 if schedule == "constant" else [0.0, 0.125, 0.25, 0.375]
    assert rates(4, lr=0.5, schedule=schedule, warmup=4)[:4] == pytest.approx(rising)
    rising = [0.5] * 4 if schedule == "constant" else [0.0, 0.05, 0.1, 0.15]
    assert rates(4, lr=0.5, schedule=schedule, warmup=10)[:4] == pytest.approx(rising)


@pytest.mark.parametrize("schedule", SCHEDULES[2:])
@pytest.mark.parametrize("warmup", [0, 2])
def test_a_learning_rate_that_is_held_to_the_end_does_not_fall(schedule: str, warmup: int) -> None:
    expected = [0.0, 0.25][:warmup] + [0.5] * (4 - warmup)
    assert rates(4, lr=0.5, schedule=schedule, warmup=warmup, hold=1.0, least_lr=0.1)[:4] == pytest.approx(expected)
    assert rates(4, lr=0.5, schedule=schedule, warmup=warmup, hold=1.0)[:4] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_learning_rate_of_nearly_nothing(schedule: str) -> None:
    if schedule == "polynomial":
        for lr in (0.0, 1e-8, 1e-7):
            with pytest.raises(
                MgenError, match=r"^OptimConfig: lr is .*, but the schedule polynomial falls to 1e-07: .*linear"
            ):
                OptimConfig(lr=lr, schedule=schedule)
    else:
        assert rates(3, lr=0.0, schedule=schedule, warmup=1) == [0.0] * 4
        assert max(rates(3, lr=1e-8, schedule=schedule, warmup=1)) == pytest.approx(1e-8)
