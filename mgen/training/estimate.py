"""What a step needs in memory, measured on one and two images before the training begins."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import psutil
import torch
from torch import Tensor, nn

from mgen.nn.checkpointing import is_checkpointed, without_checkpointing
from mgen.training.noise import Augmentation, Noise, map_tensors
from mgen.training.trainer import Trainer
from mgen.utils import seeds
from mgen.utils.compiling import uncompiled
from mgen.utils.limits import check_memory

BYTES = 4  # of a weight, a gradient and each of the two moments of AdamW


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a training needs: of a step (what it keeps for the backward pass, gradients, the optimizer's state), of the random
    numbers of a batch, and in all, with what is in use already: weights and averaged weights among it."""

    step: float
    noise: float
    total: float


def needed_memory(trainer: Trainer) -> Need:
    """What a step needs on the trainer's device, by the forward pass of one and of two images."""
    config, device = trainer.config, trainer.device
    one, two = _kept(trainer, 1), _kept(trainer, 2) if config.batch_size > 1 else (0, 0)
    image, noise = (max(0, two[0] - one[0]), max(0, two[1] - one[1])) if config.batch_size > 1 else one
    state = 3 * BYTES * sum(p.numel() for p in trainer.parameters) / trainer.parallel.shards
    # What does not depend on the number of images, such as weights in the precision of autocast.
    fixed = max(0, one[0] - image) if config.batch_size > 1 else 0
    step = piece_size(trainer) * image + fixed + state
    noises = config.batch_size * noise
    used = torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss + noises
    return Need(step=step, noise=noises, total=used + step)


def piece_size(trainer: Trainer) -> int:
    """Images of a piece of the batch, of one process."""
    config = trainer.config
    return config.batch_size // (config.accumulate * trainer.accelerator.num_processes)


def check_step(trainer: Trainer) -> Need:
    """Raise MgenError if the batch cannot fit in memory; else what it needs."""
    config, need = trainer.config, needed_memory(trainer)
    if config.batch_size > 1:
        hint = f"lower batch_size, or raise accumulate ({config.accumulate})"
        if config.task == "generator" and not config.gradient_checkpointing:
            hint += ", or set gradient_checkpointing=true"
        sizes = f"a piece of {piece_size(trainer)} images, of batch_size {config.batch_size}"
        check_memory(need.step, sizes, hint, str(trainer.device))
        check_memory(need.noise, f"the random numbers of batch_size {config.batch_size}", "lower batch_size")
    return need


def _kept(trainer: Trainer, count: int) -> tuple[int, int]:
    """Bytes that the forward pass of `count` images keeps, without the weights, and bytes of their noise."""
    objective, sizes = trainer.objective, dict[int, int]()

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return value

    batch = trainer.to_device(trainer.task.train_data.__getitems__([0] * count))
    noise = objective.make_noise(count, seeds.generator(0, "estimate"), augmentation=Augmentation())
    rows = objective.add_row_noise(noise, slice(0, count), 0, "estimate").to(trainer.device)
    options = dataclasses.replace(trainer.step_options(0), adversarial=trainer.discriminator is not None)
    objective.eval()  # nothing is drawn or counted then
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value)
    with uncompiled(), trainer.parallel.weights_in_use(objective) as weights, trainer.accelerator.autocast(), hooks:
        with _Blocks(objective, sizes, keep) as blocks:
            objective(batch, rows, options)
    objective.train()
    inputs = sum(value.nbytes for value in batch.values())
    return sum(sizes.values()) + blocks.largest + inputs, _bytes(noise)


class _Blocks(contextlib.AbstractContextManager["_Blocks"]):
    """While it is entered, blocks with gradient checkpointing are taken to keep their inputs alone.

    They do keep everything, which shows how much it is: one of them at a time is computed again in the backward pass.

    Attributes:
        largest: most bytes that lie between inputs and outputs of a block.
    """

    def __init__(self, objective: nn.Module, sizes: dict[int, int], keep: Callable[[Tensor], Tensor]) -> None:
        self.blocks = [module for module in objective.modules() if is_checkpointed(module)]
        self.sizes, self.keep, self.largest = sizes, keep, 0
        self.before: set[int] = set()
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.stack.enter_context(without_checkpointing())
        for block in self.blocks:
            for handle in (
                block.register_forward_pre_hook(self._begin, with_kwargs=True),
                block.register_forward_hook(self._end),
            ):
                self.stack.callback(handle.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def _begin(self, block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        for value in _tensors((*args, *kwargs.values())):
            self.keep(value)
        self.before = set(self.sizes)

    def _end(self, block: nn.Module, args: object, output: object) -> None:
        inside = [key for key in self.sizes if key not in self.before]
        self.largest = max(self.largest, sum(self.sizes.pop(key) for key in inside))


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    """Tensors among arguments, and in tuples and lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _bytes(noise: Noise) -> int:
    """Bytes of all tensors."""
    sizes: list[int] = []

    def note(value: Tensor) -> Tensor:
        sizes.append(value.nbytes)
        return value

    map_tensors(note, noise)
    return sum(sizes)
