"""The adaptive weight of an adversarial term: as steep at the last layer as the terms that it stands beside.

Esser et al., "Taming Transformers" (VQGAN, arXiv 2012.09841), eq. 7, with the numbers of its code, which LlamaGen's is one of:
|∇ pixel and perceptual terms| / (|∇ adversarial term| + 1e-4), at most 1e4, a constant for the gradient. It is computed from the
gradients of the whole batch, so that processes and pieces of a batch train like one.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

SMALL, LARGEST = 1e-4, 1e4


def slopes(terms: Iterable[Tensor], weight: Tensor) -> Tensor:
    """Gradients (terms, n) of some terms of a loss by a weight of n numbers; their graph stays for the backward pass."""
    return torch.stack([torch.autograd.grad(term, weight, retain_graph=True)[0].flatten() for term in terms])


def factor(found: Tensor) -> Tensor:
    """The weight (a scalar) of slopes (2, n), of the terms beside the adversarial one and of that: means over a process's images."""
    found = found.float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(found)
        found = found / dist.get_world_size()
    beside, adversarial = found.norm(dim=1)
    return (beside / (adversarial + SMALL)).clamp(max=LARGEST)
