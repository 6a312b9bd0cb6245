"""What is known of torch's kernels on this machine."""

import torch
from torch import Tensor

from mgen.utils.devices import cpu_bf16_units

# A constant and no cached function, of which torch.compile would warn.
AMX = cpu_bf16_units() == "AMX"


def slow_kernel(q: Tensor) -> bool:
    """Whether torch's fused attention multiplies such queries without the CPU's bf16 units: of those it knows AMX alone."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and not AMX
