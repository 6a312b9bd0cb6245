"""The random draws of a sampling run, made before it from one seed per image.

Image i of a run always gets the same draws, whatever the batch size, the number of processes or an interruption.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mgen import seeds


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Draws for T steps, B images and L positions; a head uses `tokens` or `chain`.

    Args:
        order: uniform (B, L): the random order of fixed-order sampling.
        tokens: uniform (T, B, L) in [0, 1), or Gumbel (T, B, L, V): which code each position draws at each step.
        confidence: Gumbel (T, B, L), added to log-probabilities when positions are ranked.
        candidates: like `tokens`, for samplers that rank one draw and keep another (`redraw`).
        chain: normal (draws, B, L, C): what the reverse chain at each position starts from, then what each of its steps adds.
            A position is drawn once in a run, so the decoding step makes no difference.
    """

    order: Tensor
    tokens: Tensor | None = None
    confidence: Tensor | None = None
    candidates: Tensor | None = None
    chain: Tensor | None = None

    def to(self, device: torch.device | str) -> "Noise":
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: None if v is None else v.to(device) for name, v in values.items()}
        return Noise(**moved)

    def at(self, step: int, positions: Tensor) -> Tensor:
        """What the head draws with at decoding step `step` and positions (B, M): (B, M), (B, M, V) or (draws, B, M, C)."""
        if self.chain is not None:
            index = positions[None, :, :, None].expand(len(self.chain), -1, -1, self.chain.shape[-1])
            return self.chain.gather(2, index)
        assert self.tokens is not None
        return rows_at(self.tokens[step], positions)


def rows_at(values: Tensor, positions: Tensor) -> Tensor:
    """values (B, L) or (B, L, V) at positions (B, M)."""
    if values.ndim == 3:
        positions = positions.unsqueeze(-1).expand(-1, -1, values.shape[-1])
    return values.gather(1, positions)


def image_seed(seed: int, index: int) -> int:
    """Seed of image `index` of a run with `seed`."""
    return seeds.fold(seed, "image", index)


def draw_noise(
    image_seeds: Sequence[int], *, steps: int, length: int, chain: tuple[int, int] | None = None, redraw: bool = False
) -> Noise:
    """The draws of images with these seeds: one generator per image.

    Args:
        steps: T. length: L. chain: draws per token and its channels (draws, C), for a diffusion head.
        redraw: draw `candidates` too.
    """
    if chain is not None:
        order, parts = [], []
        for s in image_seeds:
            rng = torch.Generator().manual_seed(s)
            order.append(torch.rand(length, generator=rng))
            parts.append(torch.randn(chain[0], length, chain[1], generator=rng))
        return Noise(order=torch.stack(order), chain=torch.stack(parts, dim=1))
    rngs = [torch.Generator().manual_seed(s) for s in image_seeds]
    uniform = torch.stack([torch.rand(2 * steps + 1, length, generator=rng) for rng in rngs], dim=1)  # (2T + 1, B, L)
    more = torch.stack([torch.rand(steps, length, generator=rng) for rng in rngs], dim=1) if redraw else None
    # 1e-20 and 1e-7 keep both logarithms finite for draws of exactly 0 and those next to 1.
    gumbel = -torch.log(-torch.log(uniform[steps:-1].clamp(1e-20, 1 - 1e-7)))
    return Noise(tokens=uniform[:steps], confidence=gumbel, order=uniform[-1], candidates=more)
