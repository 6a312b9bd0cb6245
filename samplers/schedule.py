"""Schedules: how many tokens remain unknown after each step.

A schedule is a mask fraction γ(r) of the progress r in (0, 1] (MaskGIT, arXiv 2202.04200, §3.3), or an explicit list of
fractions, one per step (AutoNAT, arXiv 2406.05478).

| name | γ(r) |
|---|---|
| cosine | cos(π r / 2) |
| arccos | arccos(r) / (π / 2) |
| linear | 1 − r |
| square | 1 − r² |
| powX, e.g. pow2.5 | 1 − r^X |
| log | −log₂ r / log₂ N |
| exp | 1 − 2^(−log₂ N · (1 − r)) |
| single | one token a step, in the last steps where fewer tokens than steps are unknown |
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from mgen.utils.errors import MgenError, suggestion

NAMES = ("arccos", "cosine", "exp", "linear", "log", "single", "square")
Schedule = str | Sequence[float]


def mask_fraction(name: str, ratio: float, *, length: int, precision: str = "float64") -> float:
    """γ(ratio), clipped to [1e-6, 1] as in the original code.

    Args:
        name: see the table above.
        ratio: progress in (0, 1].
        length: N, used by "log" and "exp".
        precision: "float64" or "float32". The original JAX code works in float32, where a cosine that is 1/2 comes out
            just below, and the floor of a count then loses one token (256 tokens at ratio 2/3: 127, not 128).
    """
    f = np.float32 if precision == "float32" else np.float64
    r, one = f(ratio), f(1)
    match name:
        case "cosine":
            value = np.cos(f(math.pi) / f(2) * r) if precision == "float64" else np.cos(r * f(math.pi * 0.5))
        case "arccos":
            value = np.arccos(np.minimum(r, one)) / f(math.pi / 2)
        case "linear" | "uniform":
            value = one - r
        case "square":
            value = one - r**2
        case "log":
            value = -np.log2(r) / np.log2(f(length))
        case "exp":
            value = one - np.exp2(-np.log2(f(length)) * (one - r))
        case _:
            value = one - r ** f(_exponent(name))
    return float(np.clip(value, f(1e-6), one))


def _exponent(name: str) -> float:
    try:
        if not name.startswith("pow"):
            raise ValueError
        return float(name[3:].lstrip(":"))
    except ValueError:
        raise MgenError(
            f"unknown schedule {name!r}: {suggestion(name, (*NAMES, 'pow2.5'))} (any power), or a list"
        ) from None


def remaining_counts(
    schedule: Schedule,
    *,
    steps: int,
    unknown: int,
    length: int,
    start: int = 0,
    precision: str = "float64",
    keep_one: bool | str = True,
) -> list[int]:
    """Tokens still unknown after each of the steps start … steps − 1; the last entry is 0.

    Args:
        schedule: a name, or a list of `steps` − 1 fractions (the last step always reveals the rest) or of `steps`.
        steps: T. start: first step that is run (MaskGIT's editing starts later than 0).
        unknown: tokens unknown at the start; counts are floor(unknown · γ). length: tokens in all, L.
        precision: "float64" or "float32" (see mask_fraction), or "mar": float64 with MAR's order of operations in the cosine,
            (π/2 · step) / steps, which falls just below 1/2 where two thirds of the steps are done (39 steps of 256 tokens:
            127 left after step 26, not 128). "halton": the revealed count is rounded down, in float32, and is at least one per
            step on the whole (Halton-MaskGIT); "halton-inclusive": the same with progress t / (T − 1), for its confidence sampler.
        keep_one: hold the count between 1 and one less than before, as MaskGIT and AutoNAT do. ENAT does not (False). "borrow": a
            step that would reveal nothing reveals one token, which the last step then lacks (ReCAP's MaskGIT code).

    Raises:
        MgenError: unknown name, a list of the wrong length, or fractions outside [0, 1].
    """
    if steps < 1:
        raise MgenError(f"steps is {steps}: at least 1 is needed")
    if not 0 <= start < steps:
        raise MgenError(f"start is {start}: it must lie in 0 … {steps - 1} (steps − 1)")
    if schedule == "single":
        if unknown > steps:
            raise MgenError(f"schedule single takes a step for each of {unknown} tokens, steps is {steps}")
        return [min(unknown, steps - 1 - step) for step in range(start, steps)]
    fractions = None
    if not isinstance(schedule, str | Sequence):
        raise MgenError(f"schedule is {schedule!r}: expected a name or a list of fractions")
    if not isinstance(schedule, str):
        fractions = [float(x) for x in schedule]
        if len(fractions) not in (steps - 1, steps):
            raise MgenError(
                f"the schedule lists {len(fractions)} fractions, {steps} steps take {steps - 1} (or {steps})"
            )
        if any(not 0 <= x <= 1 for x in fractions):
            raise MgenError("the schedule lists fractions outside 0 … 1")
    if keep_one not in (True, False, "borrow"):
        raise MgenError(f"keep_one is {keep_one!r}: expected true, false or borrow")
    if keep_one == "borrow" and precision.startswith("halton"):
        raise MgenError("keep_one borrow does nothing with precision halton, which has a rule of its own: use true")
    if precision.startswith("halton"):
        return _revealed_down(schedule, steps, unknown, start, inclusive=precision == "halton-inclusive")
    f = np.float32 if precision == "float32" else np.float64
    counts, now = [], unknown
    for step in range(start, steps - 1):
        if fractions is not None:
            fraction = fractions[step]
        elif precision == "mar" and schedule == "cosine":
            fraction = math.cos(math.pi / 2 * (step + 1) / steps)
        else:
            fraction = mask_fraction(schedule, float(f(step + 1) / f(steps)), length=length, precision=precision)  # type: ignore[arg-type]
        count = int(np.floor(f(unknown) * f(fraction)))
        count = max(1, min(now - 1, count)) if keep_one is True else min(now, count)
        now = min(count, now)
        counts.append(now)
    counts.append(0)
    return _borrowed(counts, unknown, steps) if keep_one == "borrow" else counts


def _borrowed(counts: list[int], unknown: int, steps: int) -> list[int]:
    """The counts in which every step but the last reveals at least one token, which the last then lacks."""
    reveals = [max(1, before - after) for before, after in zip([unknown, *counts[:-1]], counts)]
    reveals[-1] = unknown - sum(reveals[:-1])
    if reveals[-1] < 1:
        raise MgenError(
            f"with {steps} steps the last one would have to lend more of the {unknown} tokens than it has: use fewer steps or "
            "keep_one=true"
        )
    return [unknown - sum(reveals[: i + 1]) for i in range(len(reveals))]


def revealed_down(schedule: str, t: int, steps: int, unknown: int, *, inclusive: bool) -> int:
    """Tokens revealed after step t by Halton-MaskGIT's rule: int(N · (1 − γ)) in float32, before it is made at least t + 1.

    Args:
        inclusive: progress t / (T − 1), of its confidence sampler, instead of (t + 1) / T.
    """
    r = np.float32((t + 1) / steps)
    if inclusive:
        r = np.float32(torch.linspace(0, 1, steps)[t]) if steps > 1 else np.float32(1)
    match schedule:
        case "arccos":
            shown = np.float32(1) - np.arccos(r) / np.float32(math.pi / 2)
        case "cosine":
            shown = np.float32(1) - np.cos(r * np.float32(math.pi / 2))
        case "linear":
            shown = r
        case "square":
            shown = r * r
        case "log" | "exp":
            raise MgenError(
                f"precision halton has no schedule {schedule!r}: use arccos, cosine, linear, square or powX"
            )
        case _:
            power = _exponent(schedule)
            shown = np.sqrt(r) if power == 0.5 else r ** np.float32(power)  # a power is an ulp off the root
    return min(unknown, int(np.float32(unknown) * shown))


def _revealed_down(schedule: Schedule, steps: int, unknown: int, start: int, *, inclusive: bool) -> list[int]:
    if not isinstance(schedule, str):
        raise MgenError("precision halton computes counts from a named schedule, not from a list")
    shown = [revealed_down(schedule, t, steps, unknown, inclusive=inclusive) for t in range(start, steps)]
    return [*(unknown - min(unknown, max(i + 1, n)) for i, n in enumerate(shown[:-1])), 0]
