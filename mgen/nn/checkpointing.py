"""Gradient checkpointing: a block keeps its inputs alone for the backward pass, and is computed again there.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174). Losses and gradients stay what they are, dropout included:
its random numbers are drawn again from the same state.
"""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_off = False


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Let these modules compute again in the backward pass what lies between their inputs and their outputs."""
    for block in blocks:
        object.__setattr__(block, "forward", partial(_again, block))


def keep_blocks(blocks: Iterable[nn.Module]) -> None:
    """Undo `checkpoint_blocks`."""
    for block in blocks:
        block.__dict__.pop("forward", None)


def is_checkpointed(block: nn.Module) -> bool:
    return "forward" in block.__dict__ and getattr(block.__dict__["forward"], "func", None) is _again


@contextlib.contextmanager
def without_checkpointing() -> Iterator[None]:
    """While it is entered, blocks keep everything, to be measured for example."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


def _again(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The output of a block, which is computed again in the backward pass if there is one."""
    forward = partial(type(block).forward, block)
    if _off or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
