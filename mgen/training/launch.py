"""Processes of a run: one Accelerator, made the way that works on CPUs too, and a check that the launch was honoured."""

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mgen.errors import MgenError

LAUNCH_LINE = "accelerate launch --multi_gpu --num_processes {n} -m mgen.train --config FILE"


def make_accelerator(*, precision: str = "fp32", expected: int | None = None, **kwargs: object) -> Accelerator:
    """The Accelerator of this run.

    Raises:
        MgenError: fewer processes take part than were asked for, by the environment, the launcher's command line or
            `expected`. `accelerate launch --cpu --num_processes 2`, for one, silently starts a single process.
    """
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if precision == "fp16" and on_cpu:
        raise MgenError("precision fp16 needs a GPU (on a CPU it would silently compute in fp32): use fp32 or bf16")
    if "WORLD_SIZE" not in os.environ:
        AcceleratorState._reset_state()  # a former run in this process may have had another precision
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision, **kwargs)
    counts = {
        "the environment's WORLD_SIZE": _integer(os.environ.get("WORLD_SIZE")),
        "the launcher's --num_processes": _launcher_processes(),
        "the setting 'processes'": expected,
    }
    for source, count in counts.items():
        if count is not None and count != accelerator.num_processes:
            raise MgenError(
                f"{source} asks for {count} processes but {accelerator.num_processes} took part: launch with "
                + LAUNCH_LINE.format(n=count)
                + " (the flag serves CPUs too)"
            )
    return accelerator


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _launcher_processes() -> int | None:
    """What `--num_processes` said, if the parent process is `accelerate launch` and started us as its only child."""
    if "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return None
    import psutil

    try:
        words = psutil.Process().parent().cmdline()  # type: ignore[union-attr]
    except (psutil.Error, AttributeError):
        return None
    for i, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            return _integer(value or (words[i + 1] if i + 1 < len(words) else None))
    return None
