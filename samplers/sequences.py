"""Sequences of positions that need no network: random, row by row, Halton's, or listed. Notation: B images, L positions."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from mgen.samplers.noise import Noise

SEQUENCES = ("halton", "halton-rolled", "random", "raster")


def priorities(
    order: str | Sequence[int], noise: Noise, grid: tuple[int, int] | None, global_tokens: int = 0
) -> Tensor:
    """Priority (B, L) of the positions, the first to be revealed highest.

    "random": a permutation per image (MAR, arXiv 2406.11838). "raster": row by row. "halton": a low-discrepancy sequence
    (Halton-MaskGIT, arXiv 2503.17076); "halton-rolled": the same, begun at a random position for each image. A list: the positions
    in the order in which they are revealed, L of them. Halton's sequences need a grid.

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
        return torch.cat([priorities(first, first_noise, None) + length, priorities(rest, rest_noise, grid)], dim=1)
    if order == "random":
        return noise.order
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
