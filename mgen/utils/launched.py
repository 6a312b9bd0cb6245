"""This process among those of a launch by accelerate, torchrun or Slurm's script, read before the processes have met."""

import os


def launched() -> tuple[int, int]:
    """Number of this process and of all, by the environment; (0, 1) without a launcher."""
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and world.isdecimal()) or int(rank) >= int(world):
        return 0, 1
    return int(rank), int(world)


def is_first() -> bool:
    """Whether this process speaks for all."""
    return launched()[0] == 0
