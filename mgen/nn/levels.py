"""Scalar levels of a latent number: the channel-wise quantization of TokenBridge, and a form of it that fills its range.

Wang et al., "Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation" (TokenBridge, 2025, arXiv 2503.16430),
§3.2: after training, every number of a KL tokenizer's latents is put to the nearest of Q levels that suit a Gaussian.

Notation: Q levels; a number x of [low, high] lies at y = (x − low) / (high − low) · 2·span − span on the scale of the levels.
"""

import math

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor

from mgen.utils.errors import MgenError, check_choice

FORMS = ("published", "clean")
# Channels of KL16 from low to high frequency, a constant of the published code (its checkpoints do not hold it).
PUBLISHED_ORDER = (8, 1, 10, 9, 6, 12, 4, 0, 3, 11, 7, 14, 2, 15, 13, 5)


def gaussian_levels(levels: int, *, span: float = 3.0, form: str = "published") -> tuple[Tensor, Tensor]:
    """The levels and the cells they are the means of, on the scale -span … span: values (Q,) and boundaries (Q + 1,), fp32.

    Both forms cut a standard normal into Q cells of equal probability and take the mean of each.

    Args:
        levels: Q, at least 2; a power of two or not.
        form: "published": the outer cells end at ±span, so that no level reaches the ends (64 levels of span 3: ±2.44) and the range
            is never filled; where Q is so large that the cells outside ±span are empty (from 741 on at span 3) their levels are 0.
            "clean": the outer cells are open and the levels are stretched until the outermost lie at ±span exactly: `low` and
            `high` are then the lowest and the highest number that can be told. No level is lost, however many there are.

    Raises:
        MgenError: fewer than 2 levels, a span that is not positive, an unknown form.
    """
    check_choice("form of levels", form, FORMS)
    if levels < 2 or not 0 < span < math.inf:
        raise MgenError(f"{levels} levels of span {span}: at least 2 levels and a positive span are needed")
    if form == "published":
        # All in fp32: cancellation moves the levels by up to 6e-6 (64 levels), and a checkpoint was trained on those.
        at = torch.linspace(0, 1, levels + 1, device="cpu")
        boundaries = torch.from_numpy(stats.norm.ppf(at.numpy())).float().clamp(-span, span)
        # exp and erf by way of fp64: their last bit in fp32 differs between processors.
        density = (-0.5 * boundaries**2).double().exp().float() / math.sqrt(2 * math.pi)
        below = 0.5 * (1 + (boundaries / math.sqrt(2)).double().erf().float())
        share = below.diff()
        return (density[:-1] - density[1:]) / torch.where(share == 0, 1e-10, share), boundaries
    at = torch.linspace(0, 1, levels + 1, dtype=torch.float64, device="cpu")
    edges = torch.from_numpy(stats.norm.ppf(at.numpy()))
    means = -torch.from_numpy(stats.norm.pdf(edges.numpy())).diff() * levels  # every cell holds 1/Q
    means = (means - means.flip(0)) / 2  # symmetric to the last bit
    stretch = span / means[-1]
    return (means * stretch).float(), (edges * stretch).float()


def best_range(levels: int, *, span: float = 3.0, form: str = "published") -> float:
    """r such that these levels in [-r, r] tell standard normal numbers with the least squared error (64 levels: 5.05, clean 4.28)."""
    values = gaussian_levels(levels, span=span, form=form)[0].double().unique().numpy() / span

    def squared_error(r: float) -> float:
        x = values * r
        edges = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
        share = np.diff(stats.norm.cdf(edges))  # ∫ φ over each cell, and ∫ x φ
        first = -np.diff(stats.norm.pdf(edges))
        return float(1 + (x**2 * share - 2 * x * first).sum())

    return float(optimize.minimize_scalar(squared_error, bounds=(0.5, 16.0), method="bounded").x)


def quantize(x: Tensor, values: Tensor, *, low: float, high: float, span: float) -> Tensor:
    """Index of the nearest level, int64 of the shape of x; a tie goes to the lower one, NaN to 0, infinities to the ends.

    Args:
        x: numbers of any shape. values: levels (Q,) of `gaussian_levels`, or those of a checkpoint.
        low, high: the range that -span and span stand for; what lies outside gets an outermost level.
    """
    y = ((x.float() - low) / (high - low) * (2 * span) - span).clamp(-span, span).contiguous()  # as bucketize wants it
    # Equal levels (empty cells of the published form) count once, with their lowest index.
    sorted_values, place = values.unique(return_inverse=True)
    first = torch.full_like(sorted_values, len(values), dtype=torch.int64)
    first.scatter_reduce_(0, place, torch.arange(len(values), device=values.device), "amin")
    ids = first[torch.bucketize(y, (sorted_values[:-1] + sorted_values[1:]) / 2).clamp(max=len(first) - 1)]
    return torch.where(y.isnan(), 0, ids)


def dequantize(ids: Tensor, values: Tensor, *, low: float, high: float, span: float) -> Tensor:
    """Numbers, fp32 of the shape of `ids`, of indices into the levels `values` (Q,); arguments as in `quantize`."""
    return (values[ids] + span) / (2 * span) * (high - low) + low
