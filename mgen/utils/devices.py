"""Devices to compute on, by name."""

import functools
import re
from typing import TYPE_CHECKING

from mgen.utils.errors import MgenError, first_line, shown

if TYPE_CHECKING:
    import torch

KINDS = ("cpu", "cuda", "mps", "xpu")


def check_device(name: object) -> str:
    """The name of a usable device; "auto" takes a GPU if there is one.

    Args:
        name: "auto", "cpu", "cuda", "cuda:1", "mps", "xpu", or a torch.device.

    Raises:
        MgenError: anything else, such as "meta", which holds no numbers, or "cuda:7" on a machine with fewer GPUs.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, index = check_kind(str(name) if isinstance(name, torch.device) else name)
    text = str(name)
    count = _count(kind)
    if index >= count:
        there = f"this machine has {kind}:0 … {kind}:{count - 1}" if count > 1 else f"this machine has only {kind}:0"
        raise MgenError(
            f"device {text!r} is not here: {there if count else f'this machine has no {kind}'}; choose another, or auto"
        )
    try:
        torch.zeros(1, device=text).add_(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise MgenError(f"device {text!r} cannot be used ({first_line(error, 100)}): try cpu or auto") from error
    return kind if kind in ("cpu", "mps") else text


def check_kind(name: object) -> tuple[str, int]:
    """Kind and number of a device such as "cuda:1", which need not be here; MgenError for other names, such as "meta"."""
    match = re.fullmatch(rf"({'|'.join(KINDS)})(:[0-9]{{1,3}})?", name) if isinstance(name, str) else None
    if not match:
        raise MgenError(f"device {shown(name)} cannot be used: choose auto, cpu, cuda, cuda:1, mps or xpu")
    return match[1], int((match[2] or ":0")[1:])


def _count(kind: str) -> int:
    """Number of devices of a kind."""
    import torch

    if kind in ("cpu", "mps"):
        return int(kind == "cpu" or torch.backends.mps.is_available())
    return int((torch.cuda if kind == "cuda" else torch.xpu).device_count())


def wait_for(device: "torch.device") -> None:
    """Until the device has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "xpu":
        torch.xpu.synchronize(device)
    elif device.type == "mps":  # there is one alone
        torch.mps.synchronize()


@functools.cache
def cpu_bf16_units() -> str:
    """What the CPU multiplies bf16 with: "AMX" or "AVX512_BF16" of x86, "BF16" of Arm, "none"."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        flags = torch.cpu.get_capabilities()
        found = {"AMX": "amx_bf16", "AVX512_BF16": "avx512_bf16", "BF16": "bf16"}
        return next((name for name, flag in found.items() if flags.get(flag)), "none")
    checks = {
        "AMX": "_is_amx_tile_supported",
        "AVX512_BF16": "_is_avx512_bf16_supported",
    }  # of earlier versions of torch
    return next((name for name, check in checks.items() if getattr(torch.cpu, check)()), "none")


@functools.cache
def cpu_name() -> str:
    """The name of the CPU, such as "AMD EPYC"; empty where torch doesn't know it."""
    import torch

    return str(torch.cpu.get_capabilities().get("cpu_name", "")) if hasattr(torch.cpu, "get_capabilities") else ""


def cpu_vectors() -> str:
    """The widest vector instructions that torch uses: "AVX512", "AVX2", …"""
    import torch

    return str(torch.backends.cpu.get_cpu_capability())
