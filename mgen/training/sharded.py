"""Sharded data parallelism: each process holds a part of every weight, of its gradient, its moments and its average.

FSDP2, `torch.distributed.fsdp.fully_shard` (Zhao et al., "PyTorch FSDP", arXiv 2304.11277; ZeRO stage 3, arXiv 1910.02054): the weights
of a block are gathered before it runs and dropped behind it; gradients are summed where they are kept.

By fully_shard itself and not by accelerate's FullyShardedDataParallelPlugin, which does nothing for processes on CPUs (accelerate shards
for GPUs alone, so that no test could see what it does) and replaces autocast by weights, inputs and outputs of blocks in bf16: other
numbers than those of DDP. Here autocast is what it is there, on weights that are gathered in fp32.
"""

import contextlib
import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from mgen.training.parallel import STATE, Parallel
from mgen.training.parts import Task
from mgen.training.shard_files import Writing, read_parts
from mgen.training.tensors import Tensors, diverged, not_finite
from mgen.utils.errors import MgenError
from mgen.utils.files import atomic_folder, write_json


class Sharded(Parallel):
    """The weights are spread over all processes (FSDP), or over those of a group, of which there are several alike (HSDP).

    Args:
        model: the network that is trained, with its initial weights. The main process keeps a whole copy of it in main memory, for previews
            and exports.
        replicas: HSDP. shards: of it, processes of a group; None: those of a node.

    Raises:
        MgenError: the processes can't be cut into such groups.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, *, replicas: bool, shards: int | None = None
    ) -> None:
        super().__init__(accelerator)
        self.collective = True
        world = accelerator.num_processes
        self.shards = group_size(world, shards) if replicas else world
        self.mesh = _mesh(accelerator.device.type, world, self.shards)
        # Groups for what is in main memory. The thread that writes checkpoints has its own: two threads would mix up their messages.
        self.group, self.writers = _gloo(), _gloo()
        self.blocks = set(getattr(model, "_repeated_blocks", None) or ())
        self.copy = copy.deepcopy(model) if accelerator.is_main_process else None
        self.saving: _Saving | None = None

    # -- a step ----------------------------------------------------------------------------------------------------------------

    def prepare(self, objective: nn.Module) -> nn.Module:
        objective.to(self.accelerator.device)
        for value in objective.state_dict().values():
            dist.broadcast(value, 0)  # as DDP does: the processes begin with the same weights
        for module in reversed(list(objective.modules())):  # those inside of others first
            if type(module).__name__ in self.blocks:
                self._shard_block(module)
        fully_shard(objective, mesh=self.mesh)
        objective.register_forward_hook(_drop_weights)
        # torch warns of modulations, which are views: no block changes one in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        return _Autocast(objective, self.accelerator)

    def _shard_block(self, block: nn.Module) -> None:
        """Shard a block and its parts that others call than its forward: they need their weights at another time."""
        apart = getattr(block, "called_apart", ())
        for part in [getattr(block, name) for name in apart]:
            if isinstance(part, nn.Module):
                fully_shard(part, mesh=self.mesh)
        fully_shard(block, mesh=self.mesh)
        for name in apart:
            if not isinstance(getattr(block, name), nn.Module):
                register_fsdp_forward_method(block, name)

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        # Sums stay within a group, where they are needed to keep no whole gradient; those between groups wait.
        return _no_all_reduce(cast(FSDPModule, cast(_Autocast, wrapped).objective))

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        norm = super().clip(parameters, most)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    # -- weights ---------------------------------------------------------------------------------------------------------------

    def local(self, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        with torch.enable_grad():  # diffusers averages what requires a gradient, and copies the rest
            return [p.to_local() for p in cast(Sequence[DTensor], parameters)]

    def joined(self, local: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        return [_joined(value, p) for value, p in zip(local, cast(Sequence[DTensor], parameters), strict=True)]

    @contextlib.contextmanager
    def whole(self, task: Task, device: torch.device | None = None) -> Iterator[bool]:
        gathered = get_model_state_dict(task.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self.copy is None:
            yield False
            return
        self.copy.load_state_dict(gathered)
        del gathered
        sharded, task.model = task.model, cast(Any, self.copy.eval().to(device))
        try:
            yield True
        finally:
            task.model = sharded
            self.copy.to("cpu")

    @contextlib.contextmanager
    def weights_in_use(self, objective: nn.Module) -> Iterator[set[int]]:
        used = {value.data_ptr() for value in objective.buffers()}
        handles = [
            h for m in objective.modules() if isinstance(m, FSDPModule) for h in _noting(cast(nn.Module, m), used)
        ]
        try:
            yield used
        finally:
            for handle in handles:
                handle.remove()
            cast(FSDPModule, objective).reshard()

    def check_finite(self, found: Mapping[str, Tensor], what: str) -> None:
        if bad := self.agree(not_finite(found)):
            raise diverged(bad, what)

    # -- checkpoints -----------------------------------------------------------------------------------------------------------

    def save(self, folder: Path, parts: Mapping[str, Tensors], state: dict[str, Any], then: Callable[[], None]) -> None:
        self.wait_for_checkpoint()
        main, opened, where = self.accelerator.is_main_process, ExitStack(), [""]
        problem = None
        if main:
            try:
                where = [str(opened.enter_context(atomic_folder(folder)))]
            except MgenError as error:
                problem = str(error)
        self._check(problem)
        dist.broadcast_object_list(where, 0, group=self.group)
        writing = Writing(Path(where[0]), parts, self.writers)
        self.saving = _Saving(folder, Path(where[0]), state, then, opened, writing, main=main)

    def poll(self) -> None:
        # What the first process knows to be written all processes have written.
        if self.saving is not None and self.accelerator.is_main_process and self.saving.writing.done():
            self.saving.complete()

    def wait_for_checkpoint(self) -> None:
        if self.saving is not None:
            saving, self.saving = self.saving, None
            self._check(saving.complete())

    def read(self, folder: Path, like: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensors]:
        return read_parts(folder, like)

    def agree(self, problem: str | None) -> str | None:
        problems: list[str | None] = [None] * self.accelerator.num_processes
        dist.all_gather_object(problems, problem, group=self.group)
        return next((found for found in problems if found is not None), None)

    def _check(self, problem: str | None) -> None:
        """Raise MgenError in all processes if one of them has a problem."""
        if found := self.agree(problem):
            raise MgenError(found)


class _Saving:
    """A checkpoint that is being written.

    Args:
        folder: its name at the end. made: where it is up to then. state: what is left to write. then: what is done at the end.
        opened: of the main process, what gives the folder its name. writing: the tensors.
    """

    def __init__(
        self,
        folder: Path,
        made: Path,
        state: dict[str, Any],
        then: Callable[[], None],
        opened: ExitStack,
        writing: Writing,
        *,
        main: bool,
    ) -> None:
        self.folder, self.made, self.state, self.then, self.main = folder, made, state, then, main
        self.opened, self.writing = opened, writing
        self.completed, self.problem = False, cast(str | None, None)

    def complete(self) -> str | None:
        """Wait for the end, and give the folder its name; returns why it failed, None: it did not."""
        if not self.completed:
            self.completed = True
            try:
                self._complete()
            except MgenError as error:
                self.problem = str(error)
        return self.problem

    def _complete(self) -> None:
        with self.opened:
            if problem := self.writing.wait():
                raise MgenError(f"cannot write {self.folder} ({problem}): check permissions and free space")
            if self.main:
                write_json(self.made / STATE, self.state)
        if self.main:
            self.then()


class _Autocast(nn.Module):
    """The objective in the run's precision, as accelerate prepares one."""

    def __init__(self, objective: nn.Module, accelerator: Accelerator) -> None:
        super().__init__()
        self.objective, self.accelerator = objective, accelerator
        self.call = convert_outputs_to_fp32(objective.__call__) if accelerator.native_amp else objective.__call__

    def forward(self, *args: Any) -> Any:
        with self.accelerator.autocast():
            return self.call(*args)


def group_size(world: int, shards: int | None) -> int:
    """Processes of a group that holds all weights. None: those of a node, as the launcher tells, or all."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    size = shards or (int(told) if told.isascii() and told.isdigit() else 0) or world
    if world % size:
        given = f"hsdp_shards is {shards}" if shards else f"a node has {size} processes"
        raise MgenError(
            f"{given}, but {world} processes take part, which can't be cut into groups of {size}: set hsdp_shards to a divisor of {world}"
        )
    return size


def _gloo() -> dist.ProcessGroup:
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo"))  # all processes are of it


def _mesh(device: str, world: int, shards: int) -> DeviceMesh:
    if shards == world:
        return init_device_mesh(device, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (world // shards, shards), mesh_dim_names=("replica", "shard"))


def _drop_weights(module: nn.Module, args: object, out: object) -> None:
    """Without a backward pass to come, drop what the outermost weights were gathered to: they may be other ones in the next pass."""
    if not torch.is_grad_enabled():
        cast(FSDPModule, module).reshard()


@contextlib.contextmanager
def _no_all_reduce(module: FSDPModule) -> Iterator[None]:
    module.set_requires_all_reduce(False)
    try:
        yield
    finally:
        module.set_requires_all_reduce(True)


def _joined(local: Tensor, like: DTensor) -> Tensor:
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _noting(module: nn.Module, used: set[int]) -> list[Any]:
    """Hooks that keep in `used` where the gathered weights of a module are, while it runs; behind FSDP's own."""

    def note(module: nn.Module, args: object) -> None:
        found = {p.untyped_storage().data_ptr() for p in module.parameters() if not isinstance(p, DTensor)}
        noted.append(found)
        used.update(found)

    def forget(module: nn.Module, args: object, out: object) -> None:
        used.difference_update(noted.pop())

    noted: list[set[int]] = []
    return [module.register_forward_pre_hook(note), module.register_forward_hook(forget)]
