"""Values that change over the steps: guidance, sampling temperature, confidence temperature.

A value is a number (constant), a list with one entry per step (one less: the last is 0), or a mapping:

    {kind: linear, start: 1, end: 3, at: end}               start + (end − start) · p
    {kind: half-linear, start: 1, end: 7.5}                  start + (end − start) · min(1, 2p)  (Token-Shuffle, 2504.17789)
    {kind: power, start: 1, end: 0.65, power: 0.5}           start + (end − start) · p^power
    {kind: power-cosine, start: 1, end: 3, power: 2}         start + (end − start) · (1 − cos(π p^power)) / 2  (2306.09305, §4)
    {kind: exponential, start: 1, end: 3}                    start + (end − start) · (1 − e^(−5p))            (eMIGM, 2503.07197)
    {kind: sine, start: 1, end: 3}                           start + (end − start) · sin(πp / 2)              (eMIGM's "cosine")
    {kind: constant, end: 4, interval: [0.1, 0.3]}           end
    {kind: step, start: 50, end: 5}                          start while p < 1/2, then end                    (DiSA, 2505.20297)

where p is the progress of step t of T: `at: end` p = (t + 1) / T, `at: start` p = t / T, `at: inclusive` p = t / (T − 1).
`at: tokens` counts revealed tokens: p = (L − n) / L with n unknown after the step, at least `left` (default 0).
MAR's linear guidance is `at: tokens, left: 1`: its code counts one token as unknown after the last step too, so the curve ends
at start + (end − start) · (L − 1) / L. `at: group` counts groups of steps (see mgen.samplers.reuse): p = (g + 1) / G in group g of G.
A curve also takes `least: x`: no value is below x, and `times: {…}`, another curve by whose values its own are multiplied (TiTok's
temperatures: one that falls to 0 times that of a softmax). Guidance is the factor s in u + s·(c − u): 1 means none.
`over: [a, b]` runs the curve over the steps a … b − 1 alone, in whose places T is b − a; before them p is 0, after them 1.
The default of `at` is `end` for linear, `start` for half-linear, and `inclusive` for the others.
A guidance of any kind takes `interval: [low, high]` (arXiv 2404.07724): it is 1 in all steps but those with low < s ≤ high, where s is
what `interval_of` names:

    time    (default) the masking time at which the step ends; it falls evenly from 1 to 1e-5 over all steps (mgen.samplers.schedule)
    tokens  the share of tokens that are unknown before the step, of those unknown at first: 1 in the first step of every run

so that (0, 1] is every step, but those that a rule of counts leaves nothing to reveal.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Annotated, Literal

from pydantic import Field

from mgen.samplers.schedule import masking_times
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, shown
from mgen.utils.schema import Natural, Share, build, schema

Value = float | Sequence[float] | Settings
Kind = Literal["linear", "half-linear", "power", "power-cosine", "exponential", "sine", "constant", "step"]
LARGEST = 10_000.0  # of a guidance or a temperature; beyond, float32 logits lose their meaning
RANGES = {
    "guidance": -LARGEST,
    "temperature": 0.0,
    "confidence_temperature": 0.0,
    "head.steps": 1.0,
}  # the least of each


@schema
class Curve:
    """A value that changes over the steps; see above."""

    kind: Kind
    start: float = 1.0
    end: float = 1.0
    at: Literal["start", "end", "inclusive", "tokens", "group"] | None = None
    least: float | None = None
    left: Natural | None = None
    power: Annotated[float, Field(gt=0, le=1000)] | None = None
    times: "Curve | None" = None
    interval: tuple[Share, Share] | None = None
    interval_of: Literal["time", "tokens"] = "time"
    over: tuple[Natural, Natural] | None = None

    def __post_init__(self) -> None:
        if self.power is not None and not self.kind.startswith("power"):
            raise MgenError(f"unknown key 'power' of the kind {self.kind}: it is of power and power-cosine")
        if self.left is not None and self.at != "tokens":
            raise MgenError(
                f"left counts tokens, but at is {self.at or 'not given'}: set at: tokens, or leave left out"
            )
        if self.kind == "constant" and self.start != 1:
            raise MgenError(f"start is {self.start}, but the kind constant is its end in every step: give end alone")
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise MgenError(f"interval is {list(self.interval)}: its first number must lie below its second")
        if self.interval is None and self.interval_of != "time":
            raise MgenError(f"interval_of is {self.interval_of}, but there is no interval: give both or neither")
        if self.over is not None and not self.over[0] < self.over[1]:
            raise MgenError(
                f"over is {list(self.over)}: expected the first step and, after it, the one where the curve ends"
            )
        if self.over is not None and self.at in ("tokens", "group"):
            raise MgenError(f"over names steps, but at is {self.at}: use at: start, end or inclusive")

    def at_steps(
        self,
        steps: int,
        unknown: Sequence[int],
        length: int,
        groups: Sequence[Sequence[int]],
        shares: Sequence[float] = (),
    ) -> list[float]:
        """The value at each step; see `per_step`."""
        span, least = self.end - self.start, -math.inf if self.least is None else self.least
        at = self.at or {"linear": "end", "half-linear": "start"}.get(self.kind, "inclusive")
        begin, stop = self.over or (0, steps)
        if stop > steps:
            raise MgenError(
                f"over is {list(self.over or ())}, but there are {steps} steps: it must end at {steps} at most"
            )
        group = {t: (g + 1) / len(groups) for g, members in enumerate(groups) for t in members}
        out = []
        for t in range(steps):
            left = max(self.left or 0, unknown[t] if t < len(unknown) else 0)
            if at == "tokens" and self.kind in ("linear", "half-linear"):  # as published: divided last
                done = length - left if self.kind == "linear" else min(length, 2 * (length - left))
                out.append(max(least, self.start + span * done / length))
                continue
            alone, shown_share = (t + 1) / steps, (length - left) / length
            i, n = t - begin, stop - begin
            places = {"start": i / n, "end": (i + 1) / n, "inclusive": i / max(1, n - 1), "tokens": shown_share}
            p = {**places, "group": group.get(t, alone)}[at]
            out.append(max(least, self.start + span * self.share(p if self.over is None else min(1.0, max(0.0, p)))))
        if self.times is not None:
            out = [x * factor for x, factor in zip(out, self.times.at_steps(steps, unknown, length, groups, shares))]
        if self.interval is not None:
            low, high = self.interval
            ends = shares or [1.0] * steps if self.interval_of == "tokens" else masking_times(steps)[1:]
            out = [x if low < end <= high else 1.0 for x, end in zip(out, ends)]
        return out

    def share(self, p: float) -> float:
        """The share of the way from start to end at progress p."""
        match self.kind:
            case "linear":
                return p
            case "half-linear":
                return min(1.0, 2 * p)
            case "exponential":
                return -math.expm1(-5 * p)
            case "sine":
                return math.sin(math.pi / 2 * p)
            case "constant":
                return 1.0
            case "step":
                return float(p >= 0.5)
        p = p ** (1.0 if self.power is None else self.power)
        return p if self.kind == "power" else (1 - math.cos(math.pi * p)) / 2


def per_step(
    value: Value,
    steps: int,
    *,
    name: str = "value",
    unknown: Sequence[int] = (),
    length: int = 1,
    groups: Sequence[Sequence[int]] = (),
    shares: Sequence[float] = (),
) -> list[float]:
    """The value at each of `steps` steps.

    Args:
        name: for error messages, and the allowed range (see RANGES).
        unknown, length: tokens unknown after each step, and in all, for `at: tokens`. groups: groups of steps, for `at: group`.
        shares: of tokens that are unknown before each step, for `interval_of: tokens`.

    Raises:
        MgenError: a list of the wrong length, an unknown kind or key, or a number that is not finite or out of range.
    """
    if isinstance(value, Mapping):
        curve = build(Curve, value, f"{name}.")
        for key, number in (("start", curve.start), ("end", curve.end)):
            _check_range(number, f"{name}.{key}", RANGES.get(name))
        if curve.interval is not None and name not in ("guidance", "value"):
            raise MgenError(f"{name}.interval is given: an interval is for guidance, which is 1 outside it")
        out = curve.at_steps(steps, unknown, length, groups, shares)
    elif isinstance(value, list | tuple):
        out = [_number(x, name) for x in value]
        if len(out) == steps - 1:
            out.append(0.0)
        if len(out) != steps:
            raise MgenError(
                f"{name} lists {len(out)} values for {steps} steps: give {steps} (or {steps - 1}, the last is then 0)"
            )
    else:
        out = [_number(value, name)] * steps
    for number in {*out}:
        _check_range(number, name, RANGES.get(name))
    return out


def by_tokens(value: Value, key: Literal["at", "interval_of"]) -> bool:
    """Whether this key of a curve, or of the one that it is multiplied by, says that tokens are counted."""
    return isinstance(value, Mapping) and (value.get(key) == "tokens" or by_tokens(value.get("times") or 1.0, key))


def _number(value: object, name: str) -> float:
    # Not `float(value)`, which takes texts, and fails for integers of 400 digits.
    if isinstance(value, bool) or not isinstance(value, Real):
        raise MgenError(f"{name} is {shown(value)}: expected a number, a list of numbers or a curve")
    if isinstance(value, int) and abs(value) > 2**63:
        raise MgenError(f"{name} is {shown(value)}: a number of at most 64 bits is needed")
    if not math.isfinite(number := float(value)):
        raise MgenError(f"{name} holds a number that is not finite: {number}")
    return number


def _check_range(number: float, name: str, least: float | None) -> None:
    if least is not None and not least <= number <= LARGEST:
        raise MgenError(f"{name} is {number:g}: allowed is {least:,g} … {LARGEST:,g}")
