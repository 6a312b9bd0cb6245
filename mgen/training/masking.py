"""Which tokens are masked in training: the share r of masked tokens and their positions.

Each distribution is the inverse of its cumulative distribution at uniform numbers, so the same uniform numbers give the same
masks on every machine.
"""

import math

import torch
from scipy import stats
from torch import Tensor

from mgen.training.config import MaskConfig
from mgen.utils.errors import MgenError


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
            f"objective.mask: the distribution {config.distribution} with mean {config.mean}, std {config.std}, alpha "
            f"{config.alpha}, beta {config.beta}, low {config.low} and high {config.high} has no finite values: choose low and "
            "high closer to the mean, or a larger std"
        )
    return r


def known_from_uniform(fraction: Tensor, uniform: Tensor, rounding: str = "round", visible: int = 0) -> Tensor:
    """Mask (B, L), True where a token is visible.

    Args:
        fraction: share of masked tokens (B,), or (1,) for all images alike; the number of masked tokens is length · fraction,
            rounded, at least 1 and at most L − `visible`.
        uniform: (B, L) in [0, 1); its argsort is the random permutation that decides which positions are masked.
        rounding: "round" (half to even), "ceil" or "floor"; or "bernoulli": each token is masked with probability `fraction`, so
            the number of masked tokens is random and may be 0 (Halton-MaskGIT).
    """
    length = uniform.shape[1]
    if rounding == "bernoulli":
        return uniform >= fraction.unsqueeze(1).to(uniform)
    count = getattr(torch, rounding)(length * fraction).clamp(1, length - visible).to(uniform.device)
    return uniform.argsort(dim=1) >= count.unsqueeze(1)


def known_in_phases(
    fraction: Tensor, uniform: Tensor, mask: MaskConfig, *, global_tokens: int, first: Tensor
) -> Tensor:
    """Mask (B, L) as it occurs in the two phases of sampling: global tokens first, then the grid.

    Args:
        fraction, uniform: see known_from_uniform. mask: its rounding and visible tokens. global_tokens: their number; they come first.
        first: bool (B,) or (1,), images in the first phase, where the whole grid is masked; the others see all global tokens.
    """
    parts = uniform.tensor_split([global_tokens], dim=1)
    whole, grid = (known_from_uniform(fraction, part, mask.rounding, mask.visible) for part in parts)
    first = first.unsqueeze(1).to(uniform.device)
    return torch.cat([whole | ~first, grid & ~first], dim=1)


def known_before(known: Tensor, fraction: Tensor, uniform: Tensor) -> Tensor:
    """What was known one step earlier (B, L): a random part of what is known now (ENAT, arXiv 2411.06959, §3.3).

    Args:
        known: (B, L). fraction: (1,) or (B,), share of the known tokens that were still masked; their number is rounded, half
            to even.
        uniform: (B, L); the known tokens with the smallest numbers were the masked ones.
    """
    count = (known.sum(1) * fraction.to(uniform.device)).round().long()
    rank = uniform.masked_fill(~known, torch.inf).argsort(dim=1).argsort(dim=1)
    return known & (rank >= count.unsqueeze(1))
