"""Orders: which unknown positions are revealed next.

Fixed orders know the positions of a step before the network runs, so only those are evaluated. The confidence order
(MaskGIT, arXiv 2202.04200, §3.2) draws a token at every unknown position and reveals the likeliest draws.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from mgen.samplers.noise import Noise
from mgen.utils.errors import MgenError, check_choice

ORDERS = ("confidence", "halton", "halton-rolled", "random", "raster")
Order = str | Sequence[int]


def check_order(order: Order) -> None:
    """MgenError unless `order` is a name or a list of positions, each once."""
    if isinstance(order, str):
        check_choice("order", order, ORDERS)
    elif not isinstance(order, Sequence) or sorted(order) != list(range(len(order))) or not order:
        raise MgenError(
            f"order is {order!r}: expected a name ({', '.join(ORDERS)}) or all positions 0 … L − 1, each once"
        )


def priorities(order: Order, noise: Noise, grid: tuple[int, int] | None, global_tokens: int = 0) -> Tensor | None:
    """Priority (B, L) of the positions, highest first; None for "confidence", which ranks after the draw.

    The first `global_tokens` tokens have no place in the grid: they come before the others, in an order of
    their own: random, listed, or as they stand.

    "random": a permutation per image (MAR, arXiv 2406.11838). "raster": row by row. "halton": a low-discrepancy sequence
    (Halton-MaskGIT, arXiv 2503.17076); "halton-rolled": begun at a random place of it for each image. A list: the positions
    in the order in which they are revealed.
    SamplerSettings.check has seen to it that a list has L entries, and that there is a grid for "halton".
    """
    b, length = noise.order.shape
    if global_tokens:
        whole: Order
        rest: Order
        if isinstance(order, str):
            whole, rest = "random" if order == "random" else "raster", order
        else:
            whole, rest = (
                [p for p in order if p < global_tokens],
                [p - global_tokens for p in order if p >= global_tokens],
            )
        first = priorities(whole, replace(noise, order=noise.order[:, :global_tokens]), None)
        own = priorities(rest, replace(noise, order=noise.order[:, global_tokens:]), grid)
        return None if first is None or own is None else torch.cat([first + length, own], dim=1)
    roll = isinstance(order, str) and order == "halton-rolled"
    if isinstance(order, str):
        if order == "confidence":
            return None
        if order == "random":
            return noise.order
        if order.startswith("halton"):
            assert grid is not None
            order = halton(*grid)
        else:
            order = range(length)
    priority = torch.empty(length, device=noise.order.device)
    priority[torch.tensor(order, device=noise.order.device)] = torch.arange(
        length, 0, -1, device=noise.order.device, dtype=torch.float32
    )
    if roll:  # the sequence, rolled forward by an offset in 0 … L − 1
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
