"""The matmul peak of a device, measured."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from mgen.nn.packed import FASTER_FROM, NEVER, PackedWeight
from mgen.utils.devices import wait_for


def fastest_product(
    dtype: torch.dtype,
    device: torch.device,
    *,
    side: int,
    least: int = 1,
    seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """FLOP/s of the fastest of some products of square matrices: at least `least` of them, and for so many seconds by the clock.

    On a CPU on which sampling multiplies with packed weights, half of the products are such; the faster kind counts.
    """
    x, weight = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    kinds = [weight]
    if device.type == "cpu" and FASTER_FROM.get(dtype, NEVER) < NEVER:
        kinds.append(PackedWeight(weight, dtype))
    wait_for(device)
    best, count, began = float("inf"), 0, clock()
    while count < least * len(kinds) or clock() - began < seconds:
        start = clock()
        F.linear(x, kinds[count % len(kinds)])
        wait_for(device)
        best, count = min(best, clock() - start), count + 1
    return 2 * side**3 / best
