"""Draws: the random numbers that a head takes to make a token."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Draws:
    """Of one token.

    Args:
        normal: standard normal numbers, else uniform ones in [0, 1).
        shape: () for one number; (C,) for one per channel of a token; (count, C) for the steps of a reverse chain.
        every_step: fresh ones in every decoding step, for a head that draws all positions again and again. Chains of single
            tokens need none: a position is drawn once in a run. Uniform numbers are always fresh where a step may redraw.
    """

    normal: bool = False
    shape: tuple[int, ...] = ()
    every_step: bool = False
