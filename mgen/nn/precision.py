"""Computing in bf16 or fp16: autocast, with the weights of linear layers held in that type while a run lasts.

Autocast alone converts the weights at every call: outside of training it keeps no converted weights. What it computes in fp32, such as
the norms, the sum along the blocks and embeddings, stays in fp32, and the results are bit for bit those of autocast alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def held(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within, the weights of all linear layers are in `dtype`, for use under autocast; nothing happens for fp32.

    The weights in fp32 are kept aside, half as much memory again in 16 bits, and put back at the end: the very tensors, whatever
    happens. Weights of another type stay, such as those held by a block around this one. One run at a time may hold a module.
    """
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        # Outside of inference mode, whose tensors would stay unfit for training.
        with torch.inference_mode(False), torch.no_grad():
            for weight in linear_weights(module) if dtype != torch.float32 else ():
                kept.append((weight, weight.data))
                # Row by row, which is the fastest layout in 16 bits for any number of rows.
                weight.data = weight.data.to(dtype, memory_format=torch.contiguous_format)
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for weight, data in kept:
                weight.data = data


def linear_weights(module: nn.Module) -> list[nn.Parameter]:
    """Weights and biases in fp32 that belong to linear layers alone; a table that is looked up too is not among them."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    others = {
        id(weight)
        for part in module.modules()
        if not isinstance(part, nn.Linear)
        for weight in part.parameters(recurse=False)
    }
    found = {id(weight): weight for layer in layers for weight in layer.parameters(recurse=False)}
    return [weight for key, weight in found.items() if key not in others and weight.dtype == torch.float32]


@contextmanager
def computing(module: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Within, `module` computes in fp32, or in bf16 or fp16 under autocast with its weights held in that type."""
    if dtype == torch.float32:
        yield
        return
    with held(module, dtype), torch.autocast(device.type, dtype):
        yield
