"""How long a training takes and how much memory, by some real steps of it."""

import gc
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mgen.training.config import TrainConfig
from mgen.training.data import BatchOrder, batches
from mgen.training.estimate import needed_memory
from mgen.training.trainer import Trainer
from mgen.utils.devices import wait_for
from mgen.utils.errors import MgenError
from mgen.utils.limits import available_memory

SECONDS, MOST, LEAST = 5.0, 20, 5  # time for the timed steps, and how many there are
MARGIN = 0.8  # share of the free memory that a training may take
MOST_PIECES = 64


@dataclass(frozen=True, kw_only=True)
class Timed:
    """seconds: of a step. steps: of the training. memory: bytes of the process, or on the GPU. accumulate: pieces into which the batch
    had to be cut."""

    seconds: float
    steps: int
    memory: float
    accumulate: int


def time_training(config: TrainConfig) -> Timed:
    """Time some steps of a training, whose batch is cut into more pieces if it doesn't fit into memory. Writes nothing.

    Raises:
        MgenError: something is wrong with the settings, or one image at a time does not fit.
    """
    with tempfile.TemporaryDirectory(prefix="mgen-") as folder:
        pieces = config.accumulate
        while True:
            try:
                return _timed(replace(config, output=str(Path(folder) / "run"), accumulate=pieces))
            except _Full:
                pieces *= 2
                if pieces > min(MOST_PIECES, config.batch_size):
                    raise MgenError(
                        "a step of one image does not fit in memory: choose a smaller --image-size, or a machine with more memory"
                    ) from None
            finally:
                gc.collect()


class _Full(Exception):
    """The batch is too large for the memory."""


def _timed(config: TrainConfig) -> Timed:
    trainer = Trainer(config)
    free = available_memory(trainer.device)
    memory = needed_memory(trainer)
    if memory.step > MARGIN * free:
        raise _Full
    rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
    order = BatchOrder(config, data=trainer.task.train_data, rank=rank, world=world, start=0)
    loader = iter(batches(trainer.task.train_data, order, config.data.workers))
    trainer.objective.train()
    try:
        took: list[float] = []
        # The first steps are slower, and a step during which the machine did something else tells nothing: hence the median.
        while len(took) < min(MOST, config.steps) and (len(took) < LEAST or sum(took) < SECONDS):
            began = time.perf_counter()
            trainer.train_step(loader, order)
            wait_for(trainer.device)
            took.append(time.perf_counter() - began)
    except torch.OutOfMemoryError as error:
        raise _Full from error
    seconds = statistics.median(took)
    return Timed(seconds=seconds, steps=config.steps, memory=memory.total, accumulate=config.accumulate)
