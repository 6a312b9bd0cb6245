"""The random draws of a sampling run, made before it from one seed per image.

Image i of a run always gets the same draws, whatever the batch size, the number of processes or an interruption.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mgen import seeds


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Draws for T steps, B images and L positions.

    Args:
        tokens: uniform (T, B, L) in [0, 1), or Gumbel (T, B, L, V): which code each position draws at each step.
        confidence: Gumbel (T, B, L), added to log-probabilities when positions are ranked.
        order: uniform (B, L): the random order of fixed-order sampling.
    """

    tokens: Tensor
    confidence: Tensor
    order: Tensor

    def to(self, device: torch.device | str) -> "Noise":
        return Noise(tokens=self.tokens.to(device), confidence=self.confidence.to(device), order=self.order.to(device))


def image_seed(seed: int, index: int) -> int:
    """Seed of image `index` of a run with `seed`."""
    return seeds.fold(seed, "image", index)


def draw_noise(image_seeds: Sequence[int], *, steps: int, length: int) -> Noise:
    """The draws of images with these seeds: one generator per image, one draw from it."""
    rows = [torch.rand(2 * steps + 1, length, generator=torch.Generator().manual_seed(s)) for s in image_seeds]
    uniform = torch.stack(rows, dim=1)  # (2T + 1, B, L)
    # 1e-20 and 1e-7 keep both logarithms finite for draws of exactly 0 and those next to 1.
    gumbel = -torch.log(-torch.log(uniform[steps:-1].clamp(1e-20, 1 - 1e-7)))
    return Noise(tokens=uniform[:steps], confidence=gumbel, order=uniform[-1])
