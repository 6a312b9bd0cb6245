"""A process of tools/training_speed.py: it has a trainer and makes steps when it is told to.

It runs with the package of any checkout (PYTHONPATH), so it uses only what trainers have had for long. Its argument is the settings of
the training as JSON. A line N on stdin means N steps; the answer is a line of JSON on stdout.
"""

import contextlib
import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch


class Waiting:
    """An iterator that sums up the seconds one waits for it."""

    def __init__(self, inner: Iterator[Any]) -> None:
        self.inner, self.seconds = inner, 0.0

    def __iter__(self) -> "Waiting":
        return self

    def __next__(self) -> Any:
        start = time.perf_counter()
        try:
            return next(self.inner)
        finally:
            self.seconds += time.perf_counter() - start


def make_trainer(settings: dict[str, Any], *, compiled: str = "off") -> Any:
    """The trainer; `compiled` is the setting `compile`, which earlier checkouts don't have: there "full" is what it was."""
    from mgen.training.config import TrainConfig, train_config
    from mgen.training.trainer import Trainer

    has_setting = "compile" in {field.name for field in dataclasses.fields(TrainConfig)}
    trainer = Trainer(train_config({**settings, **({"compile": compiled} if has_setting else {})}))
    if compiled == "full" and not has_setting:
        trainer.objective.model.compile()
    return trainer


def facts(trainer: Any, precision: str) -> dict[str, Any]:
    """What this package knows of its own work: FLOPs of a forward pass, and the peak of the device."""
    found: dict[str, Any] = {"device": str(trainer.device), "parameters": sum(p.numel() for p in trainer.parameters)}
    with contextlib.suppress(ImportError):  # an earlier one
        from mgen.training.flops import forward_flops, matmul_peak

        clock = time.process_time if trainer.device.type == "cpu" else time.perf_counter
        found["forward_flops"] = forward_flops(trainer)
        found["peak"] = dataclasses.asdict(matmul_peak(trainer.device, precision, clock=clock))
    return found


def main() -> None:
    order = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not stand between the answers
    torch.set_num_threads(order["threads"])
    with contextlib.suppress(ImportError):  # an earlier one. As `mgen train` does; some earlier ones could but did not
        from mgen.utils.memory import keep_freed_memory

        keep_freed_memory()
    from mgen.training.data import BatchOrder, batches

    settings = order["settings"]
    trainer = make_trainer(settings, compiled=order["compile"])
    about = facts(trainer, settings.get("precision", "fp32"))
    data, accelerator = trainer.task.train_data, trainer.accelerator
    ranks = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    try:
        plan = BatchOrder(trainer.config, data=data, start=0, **ranks)
    except TypeError:  # as it was called before
        plan = BatchOrder(trainer.config, count=len(data), start=0, **ranks)  # type: ignore[call-arg]
    loader = Waiting(iter(batches(data, plan, trainer.config.data.workers)))
    trainer.objective.train()
    print(json.dumps(about), file=answers, flush=True)
    cuda = trainer.device.type == "cuda"
    for line in sys.stdin:
        loader.seconds, losses = 0.0, []
        if cuda:
            torch.cuda.synchronize()
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(int(line)):
            losses.append(trainer.train_step(loader, plan)["loss"])
            trainer.step += 1
        if cuda:
            torch.cuda.synchronize()
        answer = {
            "cpu": time.process_time() - cpu,
            "wall": time.perf_counter() - wall,
            "wait": loader.seconds,
            "losses": [float(loss) for loss in losses],
            "memory": torch.cuda.max_memory_allocated()
            if cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
