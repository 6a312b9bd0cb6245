"""The tensors of a run by name, and whether they are finite."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mgen.utils.errors import MgenError

Tensors = dict[str, Tensor]


class Diverged(MgenError):
    """The training has diverged."""


def own_tensors(module: nn.Module) -> Tensors:
    """Weights and buffers by name; tied ones once."""
    found: Tensors = {}
    seen: set[int] = set()
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            found[name] = value.detach()
    return found


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """The state of AdamW as NAME/KEY → tensor; parameters that never had a gradient have none."""
    return {f"{name}/{k}": v for name, p in parameters.items() for k, v in optimizer.state.get(p, {}).items()}


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise MgenError, which says that the run has diverged, if a tensor holds NaN or infinity."""
    if bad := not_finite(tensors):
        raise diverged(bad, what)


def diverged(name: str, what: str) -> Diverged:
    """The error that the tensor `name` of `what` holds NaN or infinity."""
    return Diverged(
        f"the run has diverged: {name} of the {what} holds NaN or infinity; nothing was written: start again or resume from an "
        "earlier checkpoint with a smaller optim.lr, or with optim.clip"
    )


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, unless it is spread over processes. The same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, in what this process holds of it."""
    tensors = {name: own_part(value) for name, value in tensors.items()}
    names = [name for name, value in tensors.items() if value.is_floating_point()]
    if not names:
        return None
    devices = {tensors[name].device for name in names}
    home = next((d for d in devices if d.type != "cpu"), torch.device("cpu"))
    whole = torch.stack([torch.isfinite(tensors[name]).all().to(home) for name in names])  # read once, at the end
    return next((name for name, fine in zip(names, whole.tolist()) if not fine), None)
