"""This process among those of a launch by accelerate, torchrun or Slurm's script, read before the processes have met."""

import os
import re

from mgen.utils.errors import MgenError, shown


def launched() -> tuple[int, int]:
    """Number of this process and of all, by the environment; (0, 1) without a launcher."""
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and world.isdecimal()) or int(rank) >= int(world):
        return 0, 1
    return int(rank), int(world)


def is_first() -> bool:
    """Whether this process speaks for all."""
    return launched()[0] == 0


def check_launch() -> None:
    """Raise MgenError unless the variables by which a launcher numbers its processes, where they are set, are such numbers."""
    world = _number("WORLD_SIZE", least=1)
    if world is not None:
        _number("RANK", least=0, most=world - 1)
    _number("LOCAL_RANK", least=-1)  # -1 is accelerate's word for none


def _number(name: str, *, least: int, most: int = 10**9 - 1) -> int | None:
    """The whole number that a variable holds, None if it isn't set or empty; MgenError for anything else."""
    text = os.environ.get(name)
    if not text:  # an empty one numbers nothing
        return None
    if not re.fullmatch(r"-?[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise MgenError(
            f"the environment's {name} is {shown(text)}: expected a whole number from {least} to {most}, as accelerate launch and torchrun "
            "set it for the processes that they start; unset it to run a single one"
        )
    return int(text)
