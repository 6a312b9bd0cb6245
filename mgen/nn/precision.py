"""Computing in bf16 or fp16: autocast, with the weights of linear layers held in that type while a run lasts.

Autocast alone converts the weights at every call: outside of training it keeps no converted weights. What it computes in fp32, such as
the norms, the sum along the blocks and embeddings, stays in fp32, and the results are bit for bit those of autocast alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from mgen.nn.packed import FASTER_FROM, LARGEST, NEVER, PackedWeight
from mgen.utils.compiling import is_compiled


@contextmanager
def held(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within, the weights of all linear layers are in `dtype`, for use under autocast, and laid out for the CPU's kernels.

    fp32 weights stay fp32, laid out where that is faster on this CPU (mgen/nn/packed.py); weights of compiled networks keep their layout.
    Those from before are kept aside and put back at the end: the very tensors, whatever happens. Weights of another type stay, such as
    those held by a block around this one. One run at a time may hold a module.
    """
    layers = linear_layers(module)
    weights = linear_weights(module, layers)
    least = NEVER if is_compiled(module) else FASTER_FROM.get(dtype, NEVER)
    roomy = dtype != torch.float32 or sum(weight.nbytes for weight in weights) <= LARGEST
    replaced: dict[int, Tensor] = {}
    changed: list[tuple[nn.Linear, Tensor]] = []
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        # Outside of inference mode, whose tensors would stay unfit for training.
        with torch.inference_mode(False), torch.no_grad():
            for weight in weights:
                # A plain parameter: not one that is sharded over processes, or quantized.
                packable = type(weight) is nn.Parameter and weight.ndim == 2 and weight.device.type == "cpu"
                if packable and weight.numel() >= least:
                    replaced[id(weight)] = PackedWeight(weight.data, dtype, pack=roomy)
                elif dtype != torch.float32:
                    kept.append((weight, weight.data))
                    # Row by row, which is the fastest layout in 16 bits for any number of rows.
                    weight.data = weight.data.to(dtype, memory_format=torch.contiguous_format)
            for layer in layers:
                if id(layer.weight) in replaced:
                    changed.append((layer, layer.weight))
                    layer.weight = replaced[id(layer.weight)]  # type: ignore[assignment]
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for weight, data in kept:
                weight.data = data
            for layer, plain in changed:
                layer.weight = plain  # type: ignore[assignment]  # the parameter


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """All linear layers."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def linear_weights(module: nn.Module, layers: list[nn.Linear]) -> list[nn.Parameter]:
    """Weights and biases in fp32 that belong to linear layers alone; a table that is looked up too is not among them."""
    others = {
        id(weight)
        for part in module.modules()
        if not isinstance(part, nn.Linear)
        for weight in part.parameters(recurse=False)
    }
    found = {id(weight): weight for layer in layers for weight in layer.parameters(recurse=False)}
    plain = [weight for key, weight in found.items() if key not in others and not isinstance(weight, PackedWeight)]
    return [weight for weight in plain if weight.dtype == torch.float32]


@contextmanager
def computing(module: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Within, `module` computes in fp32, or in bf16 or fp16 under autocast, with its weights held for it."""
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    with held(module, dtype), autocast:
        yield
