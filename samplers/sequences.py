"""Sequences of positions that need no network: random, row by row, Halton's, by a checkerboard, or listed.

Notation: B images, L positions, K levels of a checkerboard.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from mgen.samplers.noise import Noise

SEQUENCES = ("checkerboard", "halton", "halton-rolled", "random", "raster")
ON_GRID = ("checkerboard", "halton", "halton-rolled")  # these need tokens with a position in the image
LEVELS = 3  # of a checkerboard


def priorities(
    order: str | Sequence[int],
    noise: Noise,
    grid: tuple[int, int] | None,
    global_tokens: int = 0,
    *,
    levels: int = LEVELS,
) -> Tensor:
    """Priority (B, L) of the positions, the first to be revealed highest.

    "random": a permutation per image (MAR, arXiv 2406.11838). "raster": row by row. "halton": a low-discrepancy sequence
    (Halton-MaskGIT, arXiv 2503.17076); "halton-rolled": the same, begun at a random position for each image. "checkerboard": set after
    set of `checkerboard`, a permutation per image within each. A list: the positions in the order in which they are revealed, L of
    them. Those of ON_GRID need a grid.

    The first `global_tokens` tokens have no position in the grid: they come before the others, in an order of their own: random,
    listed, or as they stand.
    """
    b, length = noise.order.shape
    if global_tokens:
        first: str | Sequence[int] = "random" if order == "random" else "raster"
        rest = order
        if not isinstance(order, str):
            first = [p for p in order if p < global_tokens]
            rest = [p - global_tokens for p in order if p >= global_tokens]
        first_noise, rest_noise = (replace(noise, order=u) for u in noise.order.tensor_split([global_tokens], dim=1))
        of_rest = priorities(rest, rest_noise, grid, levels=levels)
        return torch.cat([priorities(first, first_noise, None) + length, of_rest], dim=1)
    if order == "random":
        return noise.order
    if order == "checkerboard":
        assert grid is not None
        return noise.order - torch.tensor(checkerboard(*grid, levels), device=noise.order.device)
    listed: str | Sequence[int] = range(length) if order == "raster" else order
    if isinstance(listed, str):
        assert grid is not None
        listed = halton(*grid)
    priority = length - torch.tensor(listed, device=noise.order.device).argsort().float()
    if order == "halton-rolled":  # the sequence, rolled forward by an offset in 0 … L − 1
        offset = (noise.order[:, :1] * length).floor()
        return length - (length - priority + offset) % length  # (B, L)
    return priority.expand(b, length)


@lru_cache
def checkerboard(rows: int, columns: int, levels: int) -> tuple[int, ...]:
    """The set 0 … K − 1 of each cell (i, j), row by row, of which set 0 comes first: a reading of "Generation then Reconstruction"
    (GtR, arXiv 2510.17171), for which no code was published.

    The last set is the odd half of a checkerboard, (i + j) mod 2 = 1. The even half is split in two by (i + j) mod 4, of which 0
    comes first, that one by mod 8, and so on, until there are K sets. On 16 × 16 cells: 64, 64, 128 of three levels; 32, 32, 64, 128
    of four. A level more than that of the longest diagonal leaves sets empty.
    """
    diagonals = [levels - 1]  # of i + j = 0: every power of two divides it
    diagonals += [min(levels - 1, (d & -d).bit_length() - 1) for d in range(1, rows + columns - 1)]
    return tuple(levels - 1 - diagonals[i + j] for i in range(rows) for j in range(columns))


@lru_cache
def halton(rows: int, columns: int) -> tuple[int, ...]:
    """All cells of a grid by the Halton sequence of bases 2 (row) and 3 (column): first visits in order of the points.

    In whole numbers: scipy.stats.qmc.Halton's floats put the point 7/9 of 9 columns in the seventh, and so at 18, 27 and 36.
    """
    seen: dict[int, None] = {}
    index = 0
    while len(seen) < rows * columns:
        index += 1  # the origin is no part of the published sequence
        seen.setdefault(_cell(index, 2, rows) * columns + _cell(index, 3, columns))
    return tuple(seen)


def _cell(index: int, base: int, cells: int) -> int:
    """The cell of `cells` in which the radical inverse of `index` lies."""
    value, scale = 0, 1
    while index:
        index, digit = divmod(index, base)
        value, scale = value * base + digit, scale * base
    return value * cells // scale
