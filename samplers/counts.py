"""Counts: how many tokens are still unknown after each step. One function per published rounding rule.

| rule | tokens revealed in a step | from |
|---|---|---|
| maskgit | floor of the fraction, at least one | AutoNAT, MAGE; MaskGIT with exact cosines |
| maskgit-float32 | the same in float32, which loses a token where a fraction is 1/2 | MaskGIT (JAX) |
| maskgit-r | floor, at least one, which the last step then lacks | ReCAP's MaskGIT-r |
| mar | as maskgit, but the cosine of (π/2 · t) / T, just below 1/2 at two thirds of the steps | MAR, Hi-MAR, TokenBridge |
| enat | floor, possibly none | ENAT |
| halton | the number revealed so far is rounded down, in float32; at least t after t steps | Halton-MaskGIT |
| halton-confidence | the same at progress (t − 1) / (T − 1) | Halton-MaskGIT's confidence sampler |
| binomial | each masked token with probability 1 − γ(s) / γ(t), at least one: see mgen.samplers.binomial | eMIGM |
"""

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import numpy as np
import torch

from mgen.samplers.binomial import expected_left, reveal_shares
from mgen.samplers.schedule import Float, Schedule, exponent, listed_fractions, mask_fraction
from mgen.utils.errors import MgenError, check_choice


@dataclass(frozen=True, kw_only=True)
class Unmasking:
    """Steps start … T − 1 of T, with `unknown` of L tokens unknown at first."""

    schedule: Schedule
    steps: int
    unknown: int
    length: int
    start: int

    def floors(self, dtype: Float = np.float64) -> list[int]:
        """floor(unknown · γ) after every step but the last."""
        if isinstance(self.schedule, str):
            ratios = [float(dtype(t + 1) / dtype(self.steps)) for t in range(self.steps - 1)]
            fractions = [mask_fraction(self.schedule, r, length=max(2, self.unknown), dtype=dtype) for r in ratios]
        else:
            fractions = listed_fractions(self.schedule, self.steps)
        return [int(np.floor(dtype(self.unknown) * dtype(x))) for x in fractions[self.start : self.steps - 1]]


def maskgit(run: Unmasking, dtype: Float = np.float64) -> list[int]:
    """Every step reveals at least one token and leaves at least one to the next."""
    return _at_least_one(run.floors(dtype), run.unknown)


def mar(run: Unmasking) -> list[int]:
    """MaskGIT's rule with MAR's order of operations in the cosine: 39 steps of 256 tokens leave 127 after step 26, not 128."""
    if run.schedule != "cosine":
        return maskgit(run)
    fractions = (math.cos(math.pi / 2 * (t + 1) / run.steps) for t in range(run.start, run.steps - 1))
    return _at_least_one([math.floor(run.unknown * fraction) for fraction in fractions], run.unknown)


def _at_least_one(floors: Iterable[int], unknown: int) -> list[int]:
    left = accumulate(floors, lambda now, count: min(now, max(1, min(now - 1, count))), initial=unknown)
    return [*left, 0][1:]


def enat(run: Unmasking) -> list[int]:
    """Steps may reveal nothing."""
    return [*accumulate(run.floors(), min, initial=run.unknown), 0][1:]


def maskgit_r(run: Unmasking) -> list[int]:
    """A step that would reveal nothing reveals one token, which the last step then lacks."""
    reveals = [max(1, before - after) for before, after in pairwise([run.unknown, *enat(run)])]
    left = list(accumulate(reveals[:-1], operator.sub, initial=run.unknown))
    if left[-1] < 1:
        raise MgenError(
            f"counts maskgit-r: too few of the {run.unknown} tokens are left for the last of {run.steps} steps; use fewer "
            "steps, or counts maskgit"
        )
    return [*left, 0][1:]


def halton(run: Unmasking, inclusive: bool = False) -> list[int]:
    """Halton-MaskGIT's rule, see `halton_revealed`; after t steps at least t tokens are revealed."""
    if not isinstance(run.schedule, str):
        raise MgenError("counts halton needs a named schedule, not a list: use counts maskgit")
    shown = [
        max(i + 1, halton_revealed(run.schedule, t, run.steps, run.unknown, inclusive=inclusive))
        for i, t in enumerate(range(run.start, run.steps - 1))
    ]
    return [*(run.unknown - min(run.unknown, n) for n in shown), 0]


def halton_revealed(schedule: str, t: int, steps: int, unknown: int, *, inclusive: bool) -> int:
    """Tokens revealed after step t: int(N · (1 − γ)) in float32, before it is raised to at least t + 1.

    Args:
        inclusive: progress t / (T − 1), of the confidence sampler, instead of (t + 1) / T.
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
        case "log" | "exp" | "sqrt" | "exp5" | "log5":
            raise MgenError(f"counts halton has no schedule {schedule!r}: use arccos, cosine, linear, square or powX")
        case _:
            power = exponent(schedule)
            shown = np.sqrt(r) if power == 0.5 else r ** np.float32(power)  # a power is an ulp off the root
    return min(unknown, int(np.float32(unknown) * shown))


def binomial(run: Unmasking) -> list[int]:
    """The expected numbers, which a plan shows; those of a run are drawn for each image."""
    shares = reveal_shares(run.schedule, steps=run.steps, length=run.length)
    return expected_left(shares[run.start :], run.unknown)


RULES: dict[str, Callable[[Unmasking], list[int]]] = {
    "maskgit": maskgit,
    "maskgit-float32": partial(maskgit, dtype=np.float32),
    "maskgit-r": maskgit_r,
    "mar": mar,
    "enat": enat,
    "halton": halton,
    "halton-confidence": partial(halton, inclusive=True),
    "binomial": binomial,
}


def remaining_counts(
    schedule: Schedule, *, steps: int, unknown: int, length: int, start: int = 0, counts: str = "maskgit"
) -> list[int]:
    """Tokens still unknown after each of the steps start … steps − 1; the last entry is 0.

    Args:
        schedule: a name, or a list of `steps` − 1 fractions (the last step always reveals the rest) or of `steps`.
        steps: T. start: first step that is run (MaskGIT's editing starts later than 0).
        unknown: tokens unknown at the start. length: tokens in all, L. counts: a rounding rule, see the table above.

    Raises:
        MgenError: unknown name, a list of the wrong length, or fractions outside [0, 1].
    """
    if steps < 1:
        raise MgenError(f"steps is {steps}: at least 1 is needed")
    if not 0 <= start < steps:
        raise MgenError(f"start is {start}: it must lie in 0 … {steps - 1} (steps − 1)")
    rule = RULES[check_choice("counts", counts, RULES)]
    if schedule == "single":
        if counts == "binomial":
            raise MgenError(
                "counts binomial needs a mask fraction, schedule single has none: use another schedule or counts maskgit"
            )
        if unknown > steps:
            raise MgenError(f"schedule single takes a step for each of {unknown} tokens, steps is {steps}")
        return [min(unknown, steps - 1 - step) for step in range(start, steps)]
    return rule(Unmasking(schedule=schedule, steps=steps, unknown=unknown, length=length, start=start))
