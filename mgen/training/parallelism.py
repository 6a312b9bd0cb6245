"""Which way the processes of a run share its weights: the setting `parallel`."""

from accelerate import Accelerator
from torch import nn

from mgen.training.config import GeneratorObjectiveConfig, TrainConfig
from mgen.training.parallel import Parallel
from mgen.utils.errors import MgenError


def check_parallel(config: TrainConfig) -> None:
    """Raise MgenError for settings that a run with `parallel` fsdp or hsdp does not take."""
    kind, objective = config.parallel, config.objective
    if kind != "hsdp" and config.hsdp_shards is not None:
        raise MgenError(f"hsdp_shards is for parallel=hsdp, this is {kind}: leave it out")
    if kind == "ddp":
        return
    if config.task != "generator":
        raise MgenError(f"parallel={kind} is for task generator, this is {config.task}: use parallel=ddp")
    if config.precision == "fp16":
        raise MgenError(f"parallel={kind} trains in bf16 or fp32, not in fp16: set precision, or use parallel=ddp")
    if config.compile == "full":
        raise MgenError(f"compile=full is for parallel=ddp, this is {kind}: use compile=regional")
    if isinstance(objective, GeneratorObjectiveConfig) and objective.reuse:
        raise MgenError(
            f"objective.reuse needs all weights in each process, with parallel={kind} each holds a part: use parallel=ddp"
        )


def make_parallel(kind: str, accelerator: Accelerator, model: nn.Module, *, shards: int | None = None) -> Parallel:
    """What the setting `parallel` asks for; one process alone always has all weights.

    Args:
        model: the network that is trained, with its initial weights. shards: of "hsdp", the processes of a group.

    Raises:
        MgenError: the processes can't be cut into such groups.
    """
    if accelerator.num_processes == 1 and shards not in (None, 1):
        raise MgenError(
            f"hsdp_shards is {shards}, but one process takes part: start more with accelerate launch, or leave it out"
        )
    if kind == "ddp" or accelerator.num_processes == 1:
        return Parallel(accelerator)
    from mgen.training.sharded import Sharded  # needs torch.distributed, which not every build of torch has

    return Sharded(accelerator, model, shards=shards, replicas=kind == "hsdp")
