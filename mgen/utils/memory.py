"""How the process keeps memory that it frees."""

import ctypes
import os

TRIM, MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
KEPT = 2**30  # bytes
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let glibc keep up to a GiB of freed memory for the next tensors instead of giving it back; whether it does now.

    By default large blocks go back to the system when they are freed, and each new one is mapped and cleared page by page: on a CPU that
    costs a network in 16 bits 5 to 10 % of its time. Blocks of more than a GiB still go back. Settings of the user's environment win, and
    where there is no glibc nothing happens.
    """
    if any(name in os.environ for name in SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(MMAP, KEPT) and mallopt(TRIM, KEPT))
