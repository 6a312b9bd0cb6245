"""The seed of every image of a call: from the seed of the run, or drawn from torch generators, as diffusers' pipelines take them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mgen.samplers import image_seed
from mgen.tokens import has_values
from mgen.utils.errors import MgenError, shown


def image_seeds(seed: int | None, generator: object, indices: object, count: int) -> list[int]:
    """One seed for each of `count` images.

    Args:
        seed: of the run, 0 by default. generator: a torch.Generator, of which the seed of the run is drawn, or a list with one for
            each image. Drawing moves a generator on: the next call gets other images, and the same state gives the same ones.
        indices: number of each image in the run, by default 0, 1, 2 …

    Raises:
        MgenError: both a seed and a generator, numbers of images beside generators of their own, or another type or length.
    """
    if generator is None:
        return [image_seed(seed or 0, i) for i in check_indices(indices, count)]
    if seed is not None:
        raise MgenError("seed and generator exclude each other: a generator draws the seed; give one of them")
    if isinstance(generator, torch.Generator):
        numbers = check_indices(indices, count)  # before the generator moves on
        run = _drawn(generator)
        return [image_seed(run, i) for i in numbers]
    if not isinstance(generator, list | tuple) or not all(isinstance(one, torch.Generator) for one in generator):
        raise MgenError(
            f"generator is {shown(generator)}: expected a torch.Generator, or a list with one for each image"
        )
    if len(generator) != count:
        raise MgenError(
            f"generator lists {len(generator)} generators for {count} images: give one for each, or one alone"
        )
    if indices is not None:
        raise MgenError("indices number the images of one run: leave them out where each image has its own generator")
    return [_drawn(one) for one in generator]


def _drawn(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device).item())


def check_indices(indices: object, count: int) -> Sequence[int]:
    """Numbers of the images in their run, one per image; by default 0, 1, 2 …"""
    if indices is None:
        return range(count)
    listed = isinstance(indices, Tensor | np.ndarray) and has_values(indices)
    found = indices.tolist() if listed else indices  # type: ignore[attr-defined]
    if isinstance(found, str | bytes) or not isinstance(found, Sequence):
        raise MgenError(f"indices is {shown(indices)}: expected a list of whole numbers, one for each image")
    if len(found) != count:
        raise MgenError(f"indices has {len(found)} entries for {count} images: give one for each")
    for index in found:
        if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < 2**63:
            raise MgenError(f"indices holds {shown(index)}: expected whole numbers of at least 0")
    return [int(index) for index in found]
