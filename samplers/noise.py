"""The random numbers of a sampling run, made before it from one seed per image.

Image i of a run always gets the same numbers, whatever the batch size, the number of processes or an interruption.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Union

import torch
from torch import Tensor

from mgen.heads import NoiseSpec
from mgen.utils import seeds
from mgen.utils.config import Settings


@dataclass(frozen=True, kw_only=True)
class MapNoise:
    """Normal numbers (count, B, L, C) for each decoding step, made when the step comes: all of a run would fill the memory."""

    image_seeds: Sequence[int]
    shape: tuple[int, int, int]
    device: torch.device | str = "cpu"

    def __getitem__(self, step: int) -> Tensor:
        rngs = (torch.Generator().manual_seed(seeds.fold(s, "map", step)) for s in self.image_seeds)
        return torch.stack([torch.randn(self.shape, generator=rng) for rng in rngs], dim=1).to(self.device)

    def to(self, device: torch.device | str) -> "MapNoise":
        return replace(self, device=device)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Random numbers for T steps, B images and L positions; a head uses `tokens`, `chain` or `maps`.

    Args:
        order: uniform (B, L): the random order of fixed-order sampling.
        tokens: uniform (T, B, L) in [0, 1), or Gumbel (T, B, L, V): which id each position draws at each step. For tokens of
            C ids (T, B, L, C) or (T, B, L, C, V). Where a position is drawn once in a run, one entry may stand for all T.
        confidence: Gumbel (T, B, L), added to log-probabilities when positions are ranked.
        candidates: like `tokens`, for orders that rank one draw and keep another (`redraw`).
        chain: normal (draws, B, L, C): what the reverse chain at each position starts from, then what each of its steps adds.
            A position is drawn once in a run, so the decoding step makes no difference.
        maps: the same for each of T steps (T, draws, B, L, C), for a head that draws all positions jointly in every step.
        counts: uniform (T, B, L), how many tokens each step reveals, for random counts (mgen.samplers.binomial).
        select: uniform (B, L), by which tokens are selected at random (mgen.samplers.selection).
        remask, queue: uniform (T, B, L), which tokens remasking takes back (with free counts: and reveals), and where a token that was
            taken back enters a random order again (mgen.samplers.remask_order).
        first_stage: the noise of the first stage's own run, for generators of two stages.
    """

    order: Tensor
    tokens: Tensor | None = None
    confidence: Tensor | None = None
    candidates: Tensor | None = None
    chain: Tensor | None = None
    maps: Tensor | MapNoise | None = None
    counts: Tensor | None = None
    select: Tensor | None = None
    remask: Tensor | None = None
    queue: Tensor | None = None
    first_stage: Union["Noise", None] = None

    def to(self, device: torch.device | str) -> "Noise":
        """All but `counts` and `remask` on a device: the plan of a run reads those on the CPU, before the first step."""
        moved: Settings = {name: None if v is None else v.to(device) for name, v in vars(self).items()}
        return Noise(**{**moved, "counts": self.counts, "remask": self.remask})

    def at(self, step: int, positions: Tensor) -> Tensor:
        """The head's noise at decoding step `step` and positions (B, M): (B, M, …), or (draws, B, M, C) of a chain."""
        if self.chain is not None:
            index = positions[None, :, :, None].expand(len(self.chain), -1, -1, self.chain.shape[-1])
            return self.chain.gather(2, index)
        assert self.tokens is not None
        return rows_at(self.tokens[min(step, len(self.tokens) - 1)], positions)


def rows_at(values: Tensor, positions: Tensor) -> Tensor:
    """values (B, L, …) at positions (B, M): (B, M, …)."""
    more = values.shape[2:]
    return values.gather(1, positions.view(*positions.shape, *[1] * len(more)).expand(-1, -1, *more))


def image_seed(seed: int, index: int) -> int:
    """Seed of image `index` of a run with `seed`."""
    return seeds.fold(seed, "image", index)


def make_noise(
    image_seeds: Sequence[int],
    *,
    steps: int,
    length: int,
    spec: NoiseSpec = NoiseSpec(),  # noqa: B008  (frozen)
    fixed: bool = False,
    redraw: bool = False,
    once: bool = False,
) -> Noise:
    """The noise of images with these seeds: one random generator per image.

    Args:
        steps: T. length: L. spec: of the head. fixed: a position is drawn once in the run. redraw: make `candidates` too.
        once: the same, and positions are never ranked: a run of as many steps as tokens stores nothing that it does not use.
    """
    rngs = [torch.Generator().manual_seed(s) for s in image_seeds]

    def draw(function: Callable[..., Tensor], *shape: int) -> Tensor:
        return torch.stack([function(shape, generator=rng) for rng in rngs], dim=1)

    uniform = partial(draw, torch.rand)
    if spec.normal:
        order = uniform(1, length)[0]  # (B, L)
        count, channels = spec.shape
        if spec.every_step:
            return Noise(order=order, maps=MapNoise(image_seeds=image_seeds, shape=(count, length, channels)))
        return Noise(order=order, chain=draw(torch.randn, count, length, channels))
    if once:
        tokens = uniform(1, length, *spec.shape)
        return Noise(order=uniform(1, length)[0], tokens=tokens)
    if spec.shape:
        order, own = uniform(1, length)[0], (length, *spec.shape)
        if fixed:
            return Noise(order=order, tokens=uniform(1, *own))
        tokens, confidence = uniform(steps, *own), _gumbel(uniform(steps, length))
        candidates = uniform(steps, *own) if redraw else None
        return Noise(order=order, tokens=tokens, confidence=confidence, candidates=candidates)
    numbers = uniform(2 * steps + 1, length)  # (2T + 1, B, L)
    tokens, confidence, candidates = numbers[:steps], numbers[steps:-1], uniform(steps, length) if redraw else None
    return Noise(tokens=tokens, confidence=_gumbel(confidence), order=numbers[-1], candidates=candidates)


def make_own_noise(image_seeds: Sequence[int], name: str, *, steps: int, length: int) -> Tensor:
    """Uniform (T, B, L) for `Noise.counts`, `remask` or `queue`, from seeds of its own: it changes none of the other numbers."""
    rngs = (torch.Generator().manual_seed(seeds.fold(s, name)) for s in image_seeds)
    return torch.stack([torch.rand(steps, length, generator=rng) for rng in rngs], dim=1)


def make_select_noise(image_seeds: Sequence[int], *, length: int) -> Tensor:
    """`Noise.select`, from seeds of its own: it changes none of the other numbers."""
    rngs = (torch.Generator().manual_seed(seeds.fold(s, "select")) for s in image_seeds)
    return torch.stack([torch.rand(length, generator=rng) for rng in rngs])


def _gumbel(uniform: Tensor) -> Tensor:
    # 1e-20 and 1e-7 keep both logarithms finite for numbers of exactly 0 and those next to 1.
    return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
