"""Rows of two networks in one tensor, where one guides the other: those of the guided network, then as many of its guide.

The two may have other widths: narrower rows are filled up with zeros, which nobody reads.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.nn.denoising import Network

M = TypeVar("M", bound=nn.Module)


def join(own: Tensor, guide: Tensor) -> Tensor:
    """Rows (R, …, D) and (R, …, E) as (2R, …, max(D, E))."""
    width = max(own.shape[-1], guide.shape[-1])
    return torch.cat([F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (own, guide)])


def separate(joined: Tensor, own: int, guide: int) -> tuple[Tensor, Tensor]:
    """The rows of `join` again, (R, …, own) and (R, …, guide)."""
    first, second = joined.chunk(2)
    return first[..., :own], second[..., :guide]


def by_halves(
    own: Callable[..., Tensor], guide: Callable[..., Tensor], *, widths: tuple[int, int]
) -> Callable[..., Tensor]:
    """A function of joined rows (2R, …): `own` of the first half, `guide` of the second; `widths` of what each takes."""

    def both(rows: Tensor, *args: object) -> Tensor:
        first, second = separate(rows, *widths)
        return join(own(first, *args), guide(second, *args))

    return both


def networks_by_halves(own: Network, guide: Network, *, rows: int) -> Network:
    """A network of 2R rows that asks `own` for the first R = `rows` and `guide` for the others; one state may serve both."""

    def both(x: Tensor, j: int) -> Tensor:
        first, second = (x, x) if len(x) == rows else x.chunk(2)
        return join(own(first, j), guide(second, j))

    return both


def sharing(module: M, **replaced: object) -> M:
    """A module of the same class that shares weights and everything else with `module`, but for the attributes and methods `replaced`."""
    made = module.__class__.__new__(module.__class__)
    made.__dict__.update(module.__dict__)
    for name in ("_modules", "_parameters", "_buffers"):
        made.__dict__[name] = {**module.__dict__[name]}
    for name, value in replaced.items():
        setattr(made, name, value)
    return made
