"""Dropout, with a faster draw on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.utils.devices import cpu_name

BITS = 16  # of a draw: the probability is rounded to a multiple of 2^-16
PACK = 64 // BITS  # draws in a number that the generator makes
# Probabilities that such draws serve: within them rounding moves the dropped share by 1 %, and the mean of the result by 0.01 % at most.
SERVED = 0.001, 0.9
# On CPUs of Intel torch draws by MKL, on others a double for each number, one after the other.
DRAWS_SLOWLY = "Intel" not in cpu_name()


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """F.dropout: x with a share `p` of its numbers, in [0, 1], set to zero and the others over 1 − p; x itself outside of training.

    Where torch draws slowly, 16 bits are drawn for each number in a few vectorized passes (docs/experiments/training_speed.md).
    """
    own = DRAWS_SLOWLY and x.device.type == "cpu" and SERVED[0] <= p <= SERVED[1]
    if not training or not own or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    return x * kept(x, p).to(x.dtype).mul_(1 / (1 - p))


def kept(x: Tensor, p: float) -> Tensor:
    """Which numbers are kept, bool of the shape of x: drawn by torch's global generator, as F.dropout's."""
    return (_draws(x.numel()) >= round(p * 2**BITS) - 2 ** (BITS - 1)).view(x.shape)


def _draws(count: int) -> Tensor:
    """Uniform int16 (count,) of all values."""
    drawn = torch.empty(-(-count // PACK), dtype=torch.int64).random_(-(2**63), None)
    return drawn.view(torch.int16)[:count]
