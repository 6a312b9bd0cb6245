"""The processes of a run: its Accelerator, which also works on CPUs, and a check that all processes were started."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mgen.utils.errors import MgenError

LAUNCH_LINE = "accelerate launch --multi_gpu --num_processes {n} -m mgen.train --config FILE"


def make_accelerator(*, precision: str = "fp32", expected: int | None = None, **kwargs: object) -> Accelerator:
    """The Accelerator of this run.

    Args:
        expected: number of processes that must take part; None: any. kwargs: of Accelerator.

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

    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent is not None else []
    except psutil.Error:
        return None
    if not any("accelerate" in word for word in words):
        return None
    count = _option(words, "--num_processes")
    return _integer(count) if count is not None else _configured_processes(_option(words, "--config_file"))


def _option(words: list[str], option: str) -> str | None:
    """Value of `option` among command-line words, written with _ or -, after = or as the next word."""
    for i, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.startswith("--") and name.replace("-", "_") == option.replace("-", "_"):
            return value or (words[i + 1] if i + 1 < len(words) else None)
    return None


def _configured_processes(file: str | None) -> int | None:
    """num_processes in accelerate's configuration file: the given one, or the user's default."""
    import yaml
    from accelerate.commands.config.config_args import default_json_config_file, default_yaml_config_file

    for path in (file,) if file else (default_yaml_config_file, default_json_config_file):
        try:
            data = yaml.safe_load(Path(path).read_text())  # JSON is YAML too
        except (OSError, yaml.YAMLError):
            continue
        if isinstance(data, dict) and isinstance(data.get("num_processes"), int):
            return data["num_processes"]
    return None
