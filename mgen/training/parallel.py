"""How the processes of a run share its weights: what a step, the averaged weights, checkpoints and exports ask of it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mgen.training import tensors
from mgen.training.parts import Task
from mgen.training.shard_files import has_shards, read_parts
from mgen.training.tensors import Tensors
from mgen.utils.errors import MgenError
from mgen.utils.files import atomic_folder, write_json, write_tensors
from mgen.utils.reading import read_tensors

STATE = "state.json"


class Parallel:
    """Every process has all weights (DDP), or the only process has them. `Sharded` spreads them over the processes."""

    shards = 1  # processes over which a copy of the weights is spread
    collective = False  # whether all processes must take part in every pass of the model, and in `whole`

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    # -- a step ----------------------------------------------------------------------------------------------------------------

    def prepare(self, objective: nn.Module) -> nn.Module:
        """The module that a training step calls. The parameters of `objective` are those to train only from here on."""
        wrapped: nn.Module = self.accelerator.prepare(objective)
        return wrapped

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """While it is entered, gradients are added up, and what of their exchange can wait for the last piece of the batch does."""
        sync: AbstractContextManager[None] = self.accelerator.no_sync(wrapped)
        return sync

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """Scale the gradient down to the norm `most`; returns the norm that it had, the same in all processes."""
        norm = self.accelerator.clip_grad_norm_(parameters, most)
        assert isinstance(norm, Tensor)
        return norm

    # -- weights ---------------------------------------------------------------------------------------------------------------

    def local(self, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        """What this process holds of the parameters, to read and to write: the same memory."""
        return parameters

    def joined(self, local: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        """Tensors of which this process holds `local`, spread over the processes as the parameters are: the same memory."""
        return local

    @contextlib.contextmanager
    def whole(self, task: Task, device: torch.device | None = None) -> Iterator[bool]:
        """The task's model with all its weights as they are now, on this device; None: wherever. True in the process that may use it."""
        yield self.accelerator.is_main_process

    @contextlib.contextmanager
    def weights_in_use(self, objective: nn.Module) -> Iterator[set[int]]:
        """Data pointers of the weights that a forward pass uses, at any time while it runs."""
        yield {value.untyped_storage().data_ptr() for value in objective.state_dict().values()}

    def check_finite(self, found: Mapping[str, Tensor], what: str) -> None:
        """Raise Diverged, in all processes, if a tensor holds NaN or infinity."""
        tensors.check_finite(found, what)

    # -- checkpoints -----------------------------------------------------------------------------------------------------------

    def save(self, folder: Path, parts: Mapping[str, Tensors], state: dict[str, Any], then: Callable[[], None]) -> None:
        """Write a checkpoint, and call `then` in the main process when it is complete. That may be later, see `poll`."""
        if self.accelerator.is_main_process:
            try:
                with atomic_folder(folder) as made:
                    for part, found in parts.items():
                        write_tensors(made / f"{part}.safetensors", found)
                    write_json(made / STATE, state)
            except RuntimeError as error:  # torch reports a full disk in its own way
                raise MgenError(f"cannot write {folder} ({error}): check permissions and free space") from error
            then()
        self.accelerator.wait_for_everyone()

    def poll(self) -> None:
        """Give a checkpoint that is being written its name if it is complete. To be called now and then, by any process."""

    def wait_for_checkpoint(self) -> None:
        """Wait until the checkpoint that is being written is complete. To be called by all processes."""

    def read(self, folder: Path, like: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensors]:
        """The tensors of each part of a checkpoint, placed as those of the same names in `like`; what differs is for the caller to check.

        Raises:
            MgenError: files are missing or damaged.
        """
        if has_shards(folder):
            return read_parts(folder, like)
        return {part: read_tensors(folder / f"{part}.safetensors")[0] for part in like}

    def agree(self, problem: str | None) -> str | None:
        """The problem of one of the processes that have one, the same in all; with whole weights all have the same."""
        return problem
