"""The processes of a run: its Accelerator, which also works on CPUs, and a check that all processes were started."""

import argparse
import contextlib
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.launched import check_launch

MEETING, LONGEST_WAIT = timedelta(minutes=10), timedelta(days=7)
ENDED = "another process of this run has ended before its part was done: run the command again to complete it"
# What accelerate's launcher can ask for, and what mgen has in its place.
INSTEAD = {  # variable → the one value of it that asks for nothing, what another one asks for, and the setting for that
    "ACCELERATE_DYNAMO_BACKEND": ("no", "torch.compile", "compile=regional or full"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "pieces of a batch", "accumulate"),
}
ENGINES = {
    "FSDP": "set parallel=fsdp or parallel=hsdp",
    "DEEPSPEED": "parallel=fsdp spreads weights, gradients and moments as its stage 3 does",
    "MEGATRON_LM": "set parallel=fsdp",
}
APART = re.compile(
    r"MASTER_(ADDR|PORT)|[Rr]endezvous|[Cc]onnect|[Tt]imed out|Gloo|NCCL"
)  # in errors of processes that meet
LAUNCH_LINE = "accelerate launch --multi_gpu --num_processes {n} -m mgen.train --config FILE"


def make_accelerator(*, precision: str = "fp32", expected: int | None = None, **kwargs: object) -> Accelerator:
    """The Accelerator of this run, with `kwargs` of its constructor, by `expected` processes; None: any number.

    Raises:
        MgenError: the environment, the launcher's command line or `expected` asks for another number of processes than take
            part (`accelerate launch --cpu --num_processes 2`, for example, silently starts a single one), the processes don't find
            each other, or a variable of the environment has a value that can't be.
    """
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if precision == "fp16" and on_cpu:
        raise MgenError("precision fp16 needs a GPU (a CPU would silently compute in fp32): use fp32 or bf16")
    check_environment()
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        if os.environ.get(name) == "":  # it numbers nothing, and accelerate would fail on it
            del os.environ[name]
    if "WORLD_SIZE" not in os.environ:
        AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    with _finding():
        accelerator = Accelerator(cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision, **kwargs)
    check_processes(accelerator.num_processes, expected)
    return accelerator


def check_environment() -> None:
    """Raise MgenError if a variable numbers processes in another way than launchers do, or asks for what a setting is for."""
    check_launch()
    for engine, instead in ENGINES.items():
        if os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true":
            raise MgenError(
                f"accelerate launch asks for {engine}: leave that out of its options and configuration; {instead}"
            )
    for name, (nothing, what, instead) in INSTEAD.items():
        if (value := os.environ.get(name, nothing)).lower() != nothing:
            raise MgenError(
                f"accelerate launch asks for {what} ({name} is {shown(value)}, only {nothing!r} is allowed): leave that out of its "
                f"options and configuration, and set {instead}"
            )


@contextlib.contextmanager
def _finding() -> Iterator[None]:
    """Turn errors of accelerate and torch, while the processes find each other, into an MgenError."""
    known = PartialState._shared_state != {}
    try:
        yield
    except (RuntimeError, ValueError) as error:  # torch.distributed's errors are RuntimeErrors
        if not known:
            PartialState._reset_state()  # accelerate would take what is half made for whole
        if isinstance(error, torch.distributed.DistError) or APART.search(str(error)):
            raise MgenError(
                f"the processes of this run do not find each other ({first_line(error)}): launch them again"
            ) from error
        raise MgenError(
            f"accelerate can't begin ({first_line(error)}): check the environment's variables named ACCELERATE_… and the setting precision"
        ) from error


def meet(device: str) -> tuple[int, int, str, Callable[[], None]]:
    """Rank, number of processes, device and a barrier: the launcher's processes if there is one, else one process.

    The processes must find each other within minutes. The barrier is for the end of long work: who comes first waits for days if it must,
    but not for a process that has ended.

    Raises:
        MgenError: another number of processes takes part than was asked for, they don't find each other, or a variable that numbers them
            holds no number.
    """
    check_launch()
    if (_integer(os.environ.get("WORLD_SIZE")) or 1) == 1:
        check_processes(1)
        return 0, 1, device, lambda: None
    cpu = device == "cpu" or not torch.cuda.is_available()
    with _finding():
        state = PartialState(cpu=cpu, timeout=MEETING)
        # NCCL has no barrier that notices the dead.
        group = torch.distributed.new_group(backend="gloo", timeout=MEETING)
    check_processes(state.num_processes)

    def wait() -> None:
        try:
            torch.distributed.monitored_barrier(group, timeout=LONGEST_WAIT)  # type: ignore[arg-type]  # None is for others
        except RuntimeError as error:
            raise MgenError(ENDED) from error

    return state.process_index, state.num_processes, str(state.device), wait


def agree(flags: list[bool]) -> list[bool]:
    """The flags that the first process of a launch has, in all of them; of a single process its own.

    Raises:
        MgenError: another process has ended.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return flags
    shared = torch.tensor(flags, dtype=torch.uint8)
    try:
        group = torch.distributed.new_group(backend="gloo", timeout=MEETING)
        torch.distributed.broadcast(shared, 0, group=group)  # type: ignore[arg-type]  # None is for others
    except RuntimeError as error:
        raise MgenError(ENDED) from error
    return [bool(flag) for flag in shared.tolist()]


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
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else None


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
