"""Orders: which unknown positions are revealed next.

Fixed orders know the positions of a step before the network runs, so only those are evaluated. The confidence order
(MaskGIT, arXiv 2202.04200, §3.2) draws a token at every unknown position and reveals the likeliest draws.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mgen.samplers.noise import Noise


def random_order(noise: Noise) -> Tensor:
    """A random permutation per image (MAR, arXiv 2406.11838)."""
    return noise.order


def raster_order(noise: Noise) -> Tensor:
    """Row by row."""
    b, length = noise.order.shape
    return torch.arange(length, 0, -1, device=noise.order.device, dtype=torch.float32).expand(b, length)


# Name → priority (B, L), highest first; None: chosen by confidence after the draw.
ORDERS: dict[str, Callable[[Noise], Tensor] | None] = {
    "confidence": None,
    "random": random_order,
    "raster": raster_order,
}
