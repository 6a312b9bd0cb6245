"""Which tokens are masked in training: the share r of masked tokens and their positions.

Each distribution is the inverse of its cumulative distribution at uniform numbers, so the same uniform numbers give the same
masks on every machine.
"""

import math
from collections.abc import Callable

import torch
from scipy import stats
from torch import Tensor

from mgen.training.config import MaskConfig
from mgen.utils.errors import MgenError


def mask_fraction_from_uniform(uniform: Tensor, config: MaskConfig) -> Tensor:
    """Share of masked tokens (B,) in [0, 1] for uniform (B,) in [0, 1).

    "cosine" cos(π u / 2) (MaskGIT, arXiv 2202.04200, §3.3), "arccos" arccos(u) / (π/2) (Halton-MaskGIT, arXiv 2503.17076),
    "beta" Beta(α, β) (AutoNAT: 12, 3), "truncated-gaussian" N(mean, std) cut to [low, high] (MAR, arXiv 2406.11838, §3.4;
    MAGE, arXiv 2211.09117, §3.1), "uniform" u, "masked-diffusion" γ at the masking time of u (eMIGM, arXiv 2503.07197, §3).
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
        case "masked-diffusion":
            r = curve_fraction(config.curve, masking_time(u, config.clamp))
        case _:
            r = u
    if not torch.isfinite(r).all():
        raise MgenError(
            f"objective.mask: the distribution {config.distribution} with mean {config.mean}, std {config.std}, alpha "
            f"{config.alpha}, beta {config.beta}, low {config.low} and high {config.high} has no finite values: choose low and "
            "high closer to the mean, or a larger std"
        )
    return r


def masking_time(uniform: Tensor, clamp: float = 0.0) -> Tensor:
    """Masking time p (B,) in [0.001, 1] of uniform numbers (B,): those below `clamp` count as `clamp`, as published."""
    return 0.999 * uniform.double().clamp(min=clamp) + 0.001


def curve_fraction(curve: str, p: Tensor) -> Tensor:
    """γ(p): the probability with which a token is masked at time p, rising from 0 to about 1 (mgen.samplers.schedule at 1 − p)."""
    match curve:
        case "linear":
            return p
        case "cosine":
            return torch.cos(math.pi / 2 * (1 - p))
        case "sqrt":
            return p.sqrt()
        case "exp5":
            return -torch.expm1(-5 * p)
        case _:
            return torch.log1p(math.expm1(5) * p) / 5


def curve_weight(curve: str, p: Tensor) -> Tensor:
    """γ'(p) / γ(p): the weight of the loss at time p in the bound of masked diffusion."""
    match curve:
        case "linear":
            return 1 / p
        case "cosine":
            return math.pi / 2 * torch.tan(math.pi / 2 * (1 - p))
        case "sqrt":
            return 1 / (2 * p)
        case "exp5":
            return 5 / torch.expm1(5 * p)
        case _:
            k = math.expm1(5)
            return k / ((1 + k * p) * torch.log1p(k * p))


def masked_counts(mask: MaskConfig, rows: int, draw: Callable[[int], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Of the rounding "binomial": the uniform numbers (rows,) of the shares, and the numbers (rows,) of masked tokens.

    Args:
        draw: uniform numbers (n,) of n shares and (n, L) of their tokens; a row is drawn again while it masks fewer than `fewest`.

    Raises:
        MgenError: a thousand draws did not do.
    """
    share, numbers = draw(rows)
    count = _below(share, numbers, mask)
    for _ in range(1000):
        few = count < mask.fewest
        if not few.any():
            return share, count.clamp(max=numbers.shape[1] - mask.visible)
        again, numbers = draw(int(few.sum()))
        share, count = share.clone(), count.clone()
        share[few], count[few] = again, _below(again, numbers, mask)
    raise MgenError(
        f"objective.mask: the distribution {mask.distribution} hardly ever masks {mask.fewest} tokens: choose a smaller fewest"
    )


def _below(share: Tensor, numbers: Tensor, mask: MaskConfig) -> Tensor:
    """How many of the numbers (n, L) lie below the share of their row."""
    return (numbers < mask_fraction_from_uniform(share, mask).to(numbers).unsqueeze(1)).sum(1)


def known_from_count(count: Tensor, uniform: Tensor) -> Tensor:
    """Mask (B, L) with so many masked tokens, (B,) or (1,); `uniform` (B, L) as for known_from_uniform."""
    return uniform.argsort(dim=1) >= count.unsqueeze(1).to(uniform.device)


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
    return known_from_count(count, uniform)


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
