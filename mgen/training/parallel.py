"""How the processes of a run share its weights: what a step, the averaged weights, checkpoints and exports ask of it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from accelerate import Accelerator
from torch import Tensor, nn


class Parallel:
    """Every process has all weights (DDP), or the only process has them."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def prepare(self, objective: nn.Module) -> nn.Module:
        """The module that a training step calls. The parameters of `objective` are those to train only from here on."""
        wrapped: nn.Module = self.accelerator.prepare(objective)
        return wrapped

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """While it is entered, gradients are added up in each process and not exchanged."""
        sync: AbstractContextManager[None] = self.accelerator.no_sync(wrapped)
        return sync

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """Scale the gradient down to the norm `most`; returns the norm that it had, the same in all processes."""
        norm = self.accelerator.clip_grad_norm_(parameters, most)
        assert isinstance(norm, Tensor)
        return norm

    def local(self, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        """What this process holds of the parameters, to read and to write: the same memory."""
        return parameters
