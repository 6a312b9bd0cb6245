"""Samplers: which tokens are revealed when, and how they are drawn. The public face of the folder `samplers/`."""

from mgen.utils.folders import part as _part

# This module stands for a folder that lies elsewhere in a checkout: its path makes `mgen.samplers.<module>` importable.
__path__ = [str(_part("samplers"))]

from mgen.samplers.noise import Noise, draw_noise, image_seed  # noqa: E402
from mgen.samplers.order import ORDERS  # noqa: E402
from mgen.samplers.parallel import ParallelSampler, Step  # noqa: E402
from mgen.samplers.schedule import mask_fraction, remaining_counts  # noqa: E402
from mgen.samplers.values import per_step  # noqa: E402

__all__ = [
    "ORDERS",
    "Noise",
    "ParallelSampler",
    "Step",
    "draw_noise",
    "image_seed",
    "mask_fraction",
    "per_step",
    "remaining_counts",
]
