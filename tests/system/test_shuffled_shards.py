"""Training on a cache whose shards are read in sequence: two processes, with whole and with sharded weights, learn what one does."""

from pathlib import Path
from typing import Any

import pytest

from mgen.data import FashionMNIST, write_cache
from mgen.training.config import train_config
from mgen.training.trainer import Trainer
from mgen.utils.files import write_json
from mgen.utils.reading import read_json
from tests.helpers import tiny_tokenizer, write_idx
from tests.processes import fork
from tests.system.test_sharded import mean_losses
from tests.system.test_training import generator_run

STEPS = 8


def settings(folder: Path, streams: int, parallel: str = "ddp") -> dict[str, Any]:
    cache = {"data.kind": "cache", "data.path": str(folder / "cache"), "data.shift": 0, "data.shuffle": "shards"}
    sizes = {"model.trunk.dropout": 0.0, "steps": STEPS, "batch_size": 24, "accumulate": 2, "data.buffer": 32}
    output = folder / f"{parallel}-{streams}"
    own = {"data.streams": streams, "parallel": parallel}
    return generator_run(folder, folder / "tokenizer", output, **cache, **sizes, **own)


def train(folder: Path, kinds: list[tuple[int, str]], name: str) -> None:
    """Write the losses of trainings with so many streams and such a `parallel`."""
    found = []
    for streams, parallel in kinds:
        trainer = Trainer(train_config(settings(folder, streams, parallel)))
        found.append(mean_losses(trainer, STEPS))
    if trainer.accelerator.is_main_process:
        write_json(folder / name, found)


def test_two_processes_read_the_shards_of_one(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    images = FashionMNIST(root=write_idx(tmp_path / "idx"), split="train")
    write_cache(images, tiny_tokenizer().eval(), tmp_path / "cache", shard_size=16, shuffle=True, progress=False)
    # With two streams each process reads its own shards; with one both read all.
    kinds = [(1, "ddp"), (2, "ddp"), (2, "fsdp")]
    codes, said = fork(train, tmp_path, kinds, "two.json", log=tmp_path / "log")
    assert codes == [0, 0], said[-4000:]
    train(tmp_path, kinds[:2], "one.json")
    one, two = read_json(tmp_path / "one.json"), read_json(tmp_path / "two.json")
    assert two[0] == pytest.approx(one[0], abs=1e-5)
    assert two[1] == pytest.approx(one[1], abs=1e-5) and two[2] == pytest.approx(one[1], abs=1e-5)
    assert one[0] != pytest.approx(one[1], abs=1e-3)  # other batches
