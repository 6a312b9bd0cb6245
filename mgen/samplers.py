"""Samplers: which tokens are revealed when, and how they are drawn. The public face of the folder `samplers/`."""

from mgen.utils.folders import part as _part

# This module stands for a folder that lies elsewhere in a checkout: its path makes `mgen.samplers.<module>` importable.
__path__ = [str(_part("samplers"))]

from mgen.samplers.counts import RULES, remaining_counts  # noqa: E402
from mgen.samplers.noise import Noise, image_seed, make_noise  # noqa: E402
from mgen.samplers.order import ORDERS  # noqa: E402
from mgen.samplers.parallel import ParallelSampler  # noqa: E402
from mgen.samplers.plan import Plan, PlannedStep  # noqa: E402
from mgen.samplers.schedule import mask_fraction  # noqa: E402
from mgen.samplers.step import Step  # noqa: E402
from mgen.samplers.values import per_step  # noqa: E402

__all__ = [
    "ORDERS",
    "RULES",
    "Noise",
    "ParallelSampler",
    "Plan",
    "PlannedStep",
    "Step",
    "image_seed",
    "make_noise",
    "mask_fraction",
    "per_step",
    "remaining_counts",
]
