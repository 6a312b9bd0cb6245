"""How fast a run is: images per second, the share of the devices' peak, and the share of the time that steps wait for their batches."""

import time
from collections.abc import Iterator

import torch

from mgen.training.flops import Peak, forward_flops, matmul_peak
from mgen.training.objective import Logs
from mgen.training.token_source import Batch
from mgen.training.trainer import Trainer

BACKWARD = 3  # a step over its forward pass: the backward pass takes two of them


class Meter(Iterator[Batch]):
    """The batches of a loader, with the time that passes until they are there, and the values of a line of the log.

    Attributes:
        began: when the run began, had it never been interrupted. waited: seconds for batches since the last line.
        flops: of the forward pass of an image. peak: of one device.
    """

    def __init__(self, loader: Iterator[Batch], trainer: Trainer) -> None:
        self.loader, self.trainer, self.waited = loader, trainer, 0.0
        self.flops: float = forward_flops(trainer)
        self.peak: Peak = matmul_peak(trainer.device, trainer.config.precision)
        now = time.perf_counter()
        self.began, self.logged = now - trainer.seconds, (now, trainer.step)

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            return next(self.loader)
        finally:
            self.waited += time.perf_counter() - start

    def mfu(self, images_per_second: float) -> float:
        """Model FLOPs utilization at so many images per second of all processes, see mgen.training.flops."""
        return BACKWARD * self.flops * images_per_second / (self.peak.flops * self.trainer.accelerator.num_processes)

    def values(self, logs: Logs) -> dict[str, float]:
        """The logged values of a step, as means over the processes, with learning rate and speed since the last line."""
        trainer, (then, step) = self.trainer, self.logged
        size, names = trainer.config.batch_size, sorted(logs)
        waited = torch.tensor(self.waited, dtype=torch.float32, device=trainer.device)
        stacked = torch.stack([*(logs[name].to(trainer.device) for name in names), waited])
        *means, waits = trainer.accelerator.reduce(stacked, "mean").tolist()  # waits for the device
        now = time.perf_counter()
        self.logged, self.waited, trainer.seconds = (now, trainer.step), 0.0, now - self.began
        rate = (trainer.step - step) / (now - then) * size
        return dict(zip(names, means)) | {
            "lr": trainer.optimizer.param_groups[0]["lr"],
            "images_per_second": rate,
            "mfu": self.mfu(rate),
            "data_wait": min(1.0, waits / (now - then)),
            "seconds": trainer.seconds,
            "images": trainer.step * size,
            "skipped": trainer.skipped,
        }
