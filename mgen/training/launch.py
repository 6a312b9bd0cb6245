"""Processes of a run: one Accelerator, made the way that works on CPUs too, and a check that the launch was honoured."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mgen.utils.errors import MgenError

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
    check_processes(accelerator.num_processes, expected)
    return accelerator


def check_processes(took_part: int, expected: int | None = None) -> None:
    """Raise MgenError unless as many processes take part as were asked for."""
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
                + " (the flag serves CPUs too)"
            )


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _launcher_processes() -> int | None:
    """The process count of the command line or the configuration of `accelerate launch`, if that started us alone."""
    if "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return None
    import psutil

    try:
        words = psutil.Process().parent().cmdline()  # type: ignore[union-attr]
    except (psutil.Error, AttributeError):
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
    """num_processes of accelerate's configuration file: the one given, or the user's default."""
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
