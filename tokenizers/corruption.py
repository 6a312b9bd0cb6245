"""Latents that are made worse in training, so that the decoder learns to make a clean image of them.

Yang et al., "Latent Denoising Makes Good Visual Tokenizers" (l-DeTok, arXiv 2507.15856), §3.2: noise on the latents, and patches that
the encoder does not see. Generators make errors of both kinds; a decoder that mends them makes their work easier.

Notation: B batch, L patches, K of them visible, c, h, w channels and sides of the latent.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_RATIO = -0.1  # of masked patches, before negative shares become 0: some batches stay whole


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """The random numbers of a batch, and what is done with them. Row i of each tensor belongs to image i."""

    strength: float = 0.0  # γ
    additive: bool = False  # (1 − t)·z + t·γ·ε without, z + t·γ·ε with it
    level: Tensor | None = None  # t (B,) in [0, 1]
    noise: Tensor | None = None  # ε, standard normal (B, c, h, w)
    order: Tensor | None = None  # int64 (B, L), the patches in random order; the first ones are visible
    visible: int | None = None  # K

    @property
    def seen(self) -> Tensor | None:
        """The patches that the encoder sees, int64 (B, K), in random order; None: all."""
        return None if self.order is None else self.order[:, : self.visible]

    def add_noise(self, z: Tensor, noise: Tensor | None) -> Tensor:
        """Latents z (B, …) with noise: this one's, brought into the shape of z."""
        if noise is None or self.level is None:
            return z
        level = self.level.view(-1, *[1] * (z.ndim - 1)).to(z)
        kept = z if self.additive else (1 - level) * z
        return kept + level * (self.strength * noise.to(z))


def mask_ratio(uniform: float, most: float) -> float:
    """max(0, U(−0.1, `most`)) for a uniform number in [0, 1)."""
    return max(0.0, LEAST_RATIO + (most - LEAST_RATIO) * uniform)


def visible_count(length: int, ratio: float) -> int:
    """Patches that are seen if a share `ratio` of them is masked: at least one."""
    return max(1, math.ceil(length * (1 - ratio)))


def make_corruption(
    count: int, shape: tuple[int, ...], rng: torch.Generator, *, noise: float, form: str, mask: float, patches: int
) -> Corruption:
    """The random numbers for `count` images with latents of `shape` (c, h, w); see Tokenizer.corruption."""
    order = visible = level = drawn = None
    if mask:
        ratio = mask_ratio(torch.rand((), generator=rng, dtype=torch.float64).item(), mask)
        visible = visible_count(patches, ratio)
        order = torch.rand(count, patches, generator=rng).argsort(dim=1)
    if noise:
        level = torch.rand(count, generator=rng)
        drawn = torch.randn(count, *shape, generator=rng)
    return Corruption(
        strength=noise, additive=form == "additive", level=level, noise=drawn, order=order, visible=visible
    )
