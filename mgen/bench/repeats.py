"""Blocks that are counted once: a network's blocks are alike, and so are its passes, so that most of a run need not be executed.

The operations of a block are a function of its weights' shapes and of the shapes of its arguments. A block whose arguments hold anything
else, such as a cache that it writes to, is always executed.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Made = tuple[int, tuple[int, ...], torch.dtype]  # operations, and shape and dtype of the output


@dataclass
class Repeats:
    """What is known of blocks, and the operations of those that were not executed so far (`skipped`).

    Args:
        active: False: everything is executed.
    """

    active: bool = True
    known: dict[Hashable, Made] = field(default_factory=dict)
    skipped: int = 0

    def watch(self, model: nn.Module) -> None:
        """Let the blocks of a model on the meta device, in its lists of modules, be executed once for equal shapes. It is changed."""
        for blocks in model.modules() if self.active else ():
            if isinstance(blocks, nn.ModuleList):
                for block in blocks:
                    block.forward = self._once(block, block.forward)  # type: ignore[method-assign]

    def _once(self, block: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        kind = (type(block), *((name, tuple(p.shape)) for name, p in block.named_parameters()))

        def call(*args: object, **kwargs: object) -> Tensor:
            key = _key((kind, args, kwargs))
            if key is None:
                return forward(*args, **kwargs)
            if key in self.known:
                operations, shape, dtype = self.known[key]
                self.skipped += operations
                return torch.empty(shape, dtype=dtype, device="meta")
            before = self.skipped
            with FlopCounterMode(display=False) as counter:
                out = forward(*args, **kwargs)
            if isinstance(out, Tensor):
                self.known[key] = counter.get_total_flops() + self.skipped - before, tuple(out.shape), out.dtype
            return out

        return call


def _key(value: object) -> Hashable | None:
    """What a block's operations depend on; None if that can't be told."""
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.dtype) if value.is_meta else None
    if isinstance(value, dict):
        value = tuple(sorted(value.items()))
    if isinstance(value, tuple | list):
        parts = [_key(part) for part in value]
        return None if any(part is None for part in parts) else tuple(parts)
    if value is None or isinstance(value, int | float | str | bool | type | torch.dtype):
        return ("value", value)
    return ("slice", value.start, value.stop, value.step) if isinstance(value, slice) else None
