"""The setting `draws`: where the noise of each image is drawn in training. What a GPU draws: tests/gpu/test_training.py."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mgen.training.config import GeneratorObjectiveConfig, train_config
from mgen.training.data import BatchOrder
from mgen.training.generator_objective import GeneratorObjective
from mgen.training.noise import Augmentation
from mgen.training.trainer import Trainer
from mgen.utils.errors import MgenError
from tests.helpers import tiny_net, tiny_tokens
from tests.training_steps import small_training


@pytest.mark.parametrize("head", ["diffusion", "flow"])
def test_noise_is_drawn_where_the_generator_is(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draw names the device of its generator: on a GPU torch would raise an error for one that does not."""
    net = tiny_net("mae", tokens=tiny_tokens("vector"), head={"type": head, "width": 32, "depth": 2})
    made = GeneratorObjective(net, GeneratorObjectiveConfig())
    devices = []
    for name in ("randn", "randint"):
        real = getattr(torch, name)

        def draw(*args: Any, real: Any = real, **options: Any) -> torch.Tensor:
            devices.append((options["generator"].device, options["device"]))
            return real(*args, **options)

        monkeypatch.setattr(torch, name, draw)
    plain = made.make_noise(2, torch.Generator().manual_seed(0), augmentation=Augmentation())
    devices.clear()
    made.add_row_noise(plain, slice(0, 2), 0, device="cpu")
    assert len(devices) == 4 and all(a == b for a, b in devices)


def test_a_step_draws_on_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**small_training(tmp_path), "output": str(tmp_path / "run")}
    for given in ("host", "device"):
        trainer, seen = Trainer(train_config({**settings, "draws": given})), []
        real = trainer.objective.add_row_noise

        def add(*args: Any, real: Any = real, seen: list[Any] = seen, **options: Any) -> Any:
            seen.append(options["device"])
            return real(*args, **options)

        monkeypatch.setattr(trainer.objective, "add_row_noise", add)
        order = BatchOrder(trainer.config, data=trainer.task.train_data, rank=0, world=1, start=0)
        trainer.train_step(iter([trainer.task.train_data.__getitems__(list(range(6)))]), order)
        assert seen == [trainer.device if given == "device" else "cpu"]


def test_settings() -> None:
    other = {"task": "classifier", "output": "x", "steps": 1, "model": {"class": "ImageClassifier"}}
    with pytest.raises(MgenError, match="draws=device is for task generator"):
        train_config({**other, "draws": "device"})
    with pytest.raises(MgenError, match="draws.*host"):
        train_config({**other, "draws": "gpu"})
