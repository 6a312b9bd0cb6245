"""The processes of a run: its Accelerator, which also works on CPUs, and a check that all processes were started."""

import argparse
import os

import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mgen.utils.errors import MgenError

LAUNCH_LINE = "accelerate launch --multi_gpu --num_processes {n} -m mgen.train --config FILE"


def make_accelerator(*, precision: str = "fp32", expected: int | None = None, **kwargs: object) -> Accelerator:
    """The Accelerator of this run, with `kwargs` of its constructor, by `expected` processes; None: any number.

    Raises:
        MgenError: the environment, the launcher's command line or `expected` asks for another number of processes than take
            part. `accelerate launch --cpu --num_processes 2`, for example, silently starts a single one.
    """
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if precision == "fp16" and on_cpu:
        raise MgenError("precision fp16 needs a GPU (a CPU would silently compute in fp32): use fp32 or bf16")
    if "WORLD_SIZE" not in os.environ:
        AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision, **kwargs)
    check_processes(accelerator.num_processes, expected)
    return accelerator


def check_processes(took_part: int, expected: int | None = None) -> None:
    """Raise MgenError unless the number of processes that take part is the one asked for."""
    counts = {
        "the environment's WORLD_SIZE": _integer(os.environ.get("WORLD_SIZE")),
        "accelerate launch": _launcher_processes(),
        "the setting 'processes'": expected,
    }
    for source, count in counts.items():
        if count is not None and count != took_part:
            raise MgenError(
                f"{source} asks for {count} processes but {took_part} took part: launch with "
                + LAUNCH_LINE.format(n=count)
                + " (the flag also works on CPUs)"
            )


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _launcher_processes() -> int | None:
    """The process count on the command line or in the configuration of `accelerate launch`, if it started only this process."""
    if "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return None
    import psutil
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent is not None else []
    except psutil.Error:
        return None
    if not any("accelerate" in word for word in words):
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes")
    parser.add_argument("--config_file", "--config-file")
    options = parser.parse_known_args(words)[0]
    if options.num_processes is not None:
        return _integer(options.num_processes)
    try:
        count = getattr(
            load_config_from_file(options.config_file), "num_processes", None
        )  # None: the user's default file
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return count if count and count > 0 else None
