"""Which tokens are hidden in training: the share r of masked tokens and the positions that are masked.

Distributions are inverted from uniform draws, so the same uniforms give the same masks on every machine.
"""

import math

import torch
from scipy import stats
from torch import Tensor

from mgen.errors import MgenError
from mgen.training.config import MaskConfig


def mask_fraction_from_uniform(uniform: Tensor, config: MaskConfig) -> Tensor:
    """Share of masked tokens (B,) in [0, 1] for uniform (B,) in [0, 1).

    "cosine" cos(π u / 2) (MaskGIT, arXiv 2202.04200, §3.3), "arccos" arccos(u) / (π/2) (Halton-MaskGIT, arXiv 2503.17076),
    "beta" Beta(α, β) (AutoNAT: 12, 3), "truncated-gaussian" N(mean, std) cut to [low, high] (MAR, arXiv 2406.11838, §3.4;
    MAGE, arXiv 2211.09117, §3.1), "uniform" u.
    """
    u = uniform.double()
    match config.distribution:
        case "cosine":
            r = torch.cos(u * math.pi / 2)
        case "arccos":
            r = torch.acos(u) / (math.pi / 2)
        case "beta":
            r = torch.from_numpy(stats.beta.ppf(u.numpy(), config.alpha, config.beta))
        case "truncated-gaussian":
            a, b = (config.low - config.mean) / config.std, (config.high - config.mean) / config.std
            r = torch.from_numpy(stats.truncnorm.ppf(u.numpy(), a, b, loc=config.mean, scale=config.std))
        case _:
            r = u
    if not torch.isfinite(r).all():
        raise MgenError(
            f"objective.mask: {config.distribution} with mean {config.mean}, std {config.std}, alpha {config.alpha}, beta "
            f"{config.beta} on {config.low} … {config.high} gives no numbers: low must lie below high"
        )
    return r


def known_from_uniform(fraction: Tensor, uniform: Tensor, rounding: str = "round") -> Tensor:
    """Mask of given tokens (B, L), True where the token stays visible.

    Args:
        fraction: share of masked tokens (B,), or (1,) for all alike; the count is length · fraction, rounded, at least 1 and at most L.
        uniform: (B, L) in [0, 1); its argsort is the random permutation that decides which positions are masked.
        rounding: "round" (half to even), "ceil" or "floor".
    """
    length = uniform.shape[1]
    count = getattr(torch, rounding)(length * fraction).clamp(1, length).to(uniform.device)
    return uniform.argsort(dim=1) >= count.unsqueeze(1)
