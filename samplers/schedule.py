"""Unmasking schedules: the fraction γ(r) of the tokens that is still masked at progress r in (0, 1].

A schedule is a name (MaskGIT, arXiv 2202.04200, §3.3) or a list of fractions, one per step (AutoNAT, arXiv 2406.05478).
sqrt, exp5 and log5 are eMIGM's (arXiv 2503.07197), whose linear and cosine are those above; its time is 1 − r.
N is the number of tokens that are unknown before the first step; in training, for counts binomial and for remask, of all.
How fractions become whole numbers of tokens is in mgen.samplers.counts.

| name | γ(r) |
|---|---|
| cosine | cos(π r / 2) |
| arccos | arccos(r) / (π / 2) |
| linear | 1 − r |
| square | 1 − r² |
| powX, e.g. pow2.5 | 1 − r^X |
| log | −log₂ r / log₂ N |
| exp | 1 − 2^(−log₂ N · (1 − r)) |
| sqrt | √(1 − r) |
| exp5, log5 | 1 − e^(−5 (1 − r)); ln(1 + (e⁵ − 1)(1 − r)) / 5 |
| single | one token a step, in the last steps where fewer tokens than steps are unknown |
"""

import math
import re
from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch

from mgen.utils.errors import MgenError, shown, suggestion

NAMES = ("arccos", "cosine", "exp", "exp5", "linear", "log", "log5", "single", "sqrt", "square")
Schedule = str | Sequence[float]
Float = type[np.float32] | type[np.float64]


LAST_TIME = 1e-5


def masking_times(steps: int) -> list[float]:
    """Masking time before the first step, 1, and after each: evenly spaced, in float32 as published, to 1e-5 after the last."""
    return [float(time) for time in torch.linspace(1.0, LAST_TIME, steps + 1, dtype=torch.float32)]


def mask_fraction(name: str, ratio: float, *, length: int, dtype: Float = np.float64) -> float:
    """γ(ratio), clipped to [1e-6, 1] as in MaskGIT's code.

    Args:
        name: see the table above. ratio: progress in (0, 1]. length: N, above 1, used by "log" and "exp".
        dtype: the original JAX code works in float32, where a cosine that is 1/2 comes out just below, and the floor of a
            count then loses one token (256 tokens at ratio 2/3: 127, not 128).
    """
    r, one = dtype(ratio), dtype(1)
    match name:
        case "cosine":
            value = np.cos(dtype(math.pi) / dtype(2) * r) if dtype is np.float64 else np.cos(r * dtype(math.pi * 0.5))
        case "arccos":
            value = np.arccos(np.minimum(r, one)) / dtype(math.pi / 2)
        case "linear":
            value = one - r
        case "square":
            value = one - r**2
        case "log":
            value = -np.log2(r) / np.log2(dtype(length)) if r > 0 else one
        case "exp":
            value = one - np.exp2(-np.log2(dtype(length)) * (one - r))
        case "sqrt":
            value = np.sqrt(one - r)
        case "exp5":
            value = -np.expm1(dtype(-5) * (one - r))
        case "log5":
            value = np.log1p(np.expm1(dtype(5)) * (one - r)) / dtype(5)
        case _:
            value = one - r ** dtype(exponent(name))
    return float(np.clip(value, dtype(1e-6), one))


def exponent(name: str) -> float:
    """X of a schedule "powX", above 0 and up to 1000; MgenError for another name."""
    match = re.fullmatch(r"pow:?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?", name)
    if not match:
        raise MgenError(
            f"unknown schedule {shown(name)}: {suggestion(name, (*NAMES, 'pow2.5'))} (any power), or a list"
        )
    power = float(name.removeprefix("pow").removeprefix(":"))
    if not 0 < power <= 1000:
        raise MgenError(f"schedule {shown(name)}: the power must be above 0 and at most 1000")
    return power


def listed_fractions(schedule: Sequence[float], steps: int) -> list[float]:
    """The fractions of a schedule that is a list; MgenError unless they are `steps` − 1 or `steps` numbers in [0, 1]."""
    if not isinstance(schedule, list | tuple) or not all(
        isinstance(x, Real) and not isinstance(x, bool) for x in schedule
    ):
        raise MgenError(f"schedule is {shown(schedule)}: expected a name or a list of fractions")
    fractions = [float(min(2, x)) for x in schedule]  # one above 1, of any size, raises an error below
    if len(fractions) not in (steps - 1, steps):
        raise MgenError(f"the schedule lists {len(fractions)} fractions, {steps} steps take {steps - 1} (or {steps})")
    if any(not 0 <= x <= 1 for x in fractions):
        raise MgenError("the schedule lists fractions outside 0 … 1")
    return fractions
