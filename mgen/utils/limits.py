"""Estimates before work: memory, disk and time that a command needs, against what the machine has.

An estimate counts what certainly has to exist at once, such as the weights of a model or one batch of images. It is compared with all that
is free, so that nothing that could have worked raises an error.
"""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from mgen.utils.errors import MgenError

if TYPE_CHECKING:
    import torch

GB = 10**9
LONGEST = 366 * 24 * 3600.0  # seconds that a command may be estimated to take
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_memory(device: "torch.device | str" = "cpu") -> int:
    """Bytes that this process can still allocate on a device.

    Of the machine's memory: what is free or holds cached files, swap, and no more than control groups (containers) and `ulimit -v` leave.
    """
    if str(device).startswith("cuda"):
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    machine = psutil.virtual_memory().available + psutil.swap_memory().free
    return max(0, min(machine, *_left_by_groups(), _left_by_ulimit()))


def check_memory(need: float, what: str, hint: str, device: "torch.device | str" = "cpu") -> None:
    """Raise MgenError if `what` needs more bytes than are free: "WHAT: this needs 800 GB of memory, 21 GB are free; HINT".

    Args:
        need: bytes that must be there at once, as little as it can be. Data read by mmap doesn't count.
        what: with the sizes that decide, such as "a batch of 1000000 images of 32×32". hint: what to change.
    """
    if need > (free := available_memory(device)):
        where = "memory" if str(device) == "cpu" else f"memory on {device}"
        raise MgenError(f"{what}: this needs {in_gb(need)} of {where}, {in_gb(free)} are free; {hint}")


def check_disk(path: str | Path, need: float, what: str, hint: str = "free some, or choose another folder") -> None:
    """Raise MgenError if `need` bytes don't fit on the disk that `path`, which need not exist yet, is on."""
    try:
        folder = folder_above(path)
        free = shutil.disk_usage(folder).free
    except (OSError, ValueError):  # writing to it will say what is wrong
        return
    if need > free:
        raise MgenError(f"{what}: this needs {in_gb(need)} of disk, {in_gb(free)} are free at {folder}; {hint}")


def folder_above(path: str | Path) -> Path:
    """The folder `path`, or the nearest one above it that exists."""
    folder = Path(path).absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def check_time(seconds: float, what: str, hint: str) -> None:
    """Raise MgenError if `what` takes more than a year by a low estimate."""
    if seconds > LONGEST:
        raise MgenError(f"{what}: this takes at least {in_days(seconds)}; {hint}")


def in_gb(size: float) -> str:
    """A number of bytes, such as "1.5 GB" or "20 MB"; of any size."""
    return f"{_short(size, GB)} GB" if size >= GB / 10 else f"{_short(size, GB / 1000)} MB"


def in_days(seconds: float) -> str:
    """A time in days, or years if it is long."""
    days = _short(seconds, 24 * 3600)
    return f"{days} days" if seconds < 1000 * 24 * 3600 else f"{_short(seconds, 365.25 * 24 * 3600)} years"


def in_time(seconds: float) -> str:
    """A time as people say it: "40 seconds", "12 minutes", "3.5 hours", "2.1 days"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} second{'s' * (round(seconds) > 1)}"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 36 * 3600 else in_days(seconds)


def _short(value: float, unit: float) -> str:
    """Three digits; whole numbers may be too large for a float."""
    ratio = value / unit if value < 1e300 else 1e300
    return f"{ratio:,.0f}" if 100 <= ratio < 1e6 else f"{ratio:.3g}"


def _left_by_groups() -> Iterator[int]:
    """What each control group above this process leaves, of version 1 and 2."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top = _CGROUPS / kinds
        limit, usage = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        inside = (top / path.lstrip("/"), *(top / path.lstrip("/")).parents)
        for group in (g for g in inside if g.is_relative_to(top)):
            try:
                most = (group / limit).read_text().strip()
                stat = dict(entry.split() for entry in (group / "memory.stat").read_text().splitlines())
                if most != "max":
                    cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
                    yield int(most) - int((group / usage).read_text()) + cached
            except (OSError, ValueError):  # no such group in this container, or no limit
                continue


def _left_by_ulimit() -> int:
    """What `ulimit -v` leaves."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return 2**63 if most == resource.RLIM_INFINITY else most - psutil.Process().memory_info().vms
