"""Values that change over the steps: guidance, sampling temperature, confidence temperature.

A value is a number (constant), a list with one entry per step (one less: the last is 0), or a mapping:

    {kind: linear, start: 1, end: 3, at: end}               start + (end − start) · p
    {kind: half-linear, start: 1, end: 7.5}                  start + (end − start) · min(1, 2p)  (Token-Shuffle, 2504.17789)
    {kind: power, start: 1, end: 0.65, power: 0.5}           start + (end − start) · p^power
    {kind: power-cosine, start: 1, end: 3, power: 2}         start + (end − start) · (1 − cos(π p^power)) / 2  (2306.09305, §4)

where p is the progress of step t of T: `at: end` p = (t + 1) / T, `at: start` p = t / T, `at: inclusive` p = t / (T − 1).
`at: tokens` (the two linear kinds) counts revealed tokens: p = (L − n) / L with n unknown after the step, at least `left` (default 0).
MAR's linear guidance is `at: tokens, left: 1`: its code counts one token as unknown after the last step too, so the curve ends
at start + (end − start) · (L − 1) / L. `at: group` counts groups of steps (see mgen.samplers.reuse): p = (g + 1) / G in group g of G.
A curve also takes `least: x`: no value is below x. Guidance is the factor s in u + s·(c − u): 1 means none.
The default of `at` is `end` for linear, `start` for half-linear, and `inclusive` for power and power-cosine.
"""

import math
from collections.abc import Mapping, Sequence

from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, check_choice, suggestion

Value = float | Sequence[float] | Settings
KINDS = {"linear": "left", "half-linear": "left", "power": "power", "power-cosine": "power"}  # a key of their own


def per_step(
    value: Value,
    steps: int,
    *,
    name: str = "value",
    unknown: Sequence[int] = (),
    length: int = 1,
    groups: Sequence[Sequence[int]] = (),
) -> list[float]:
    """The value at each of `steps` steps.

    Args:
        unknown, length: tokens unknown after each step, and in all, for `at: tokens`. groups: groups of steps, for `at: group`.

    Raises:
        MgenError: a list of the wrong length, an unknown kind or key, or a number that is not finite.
    """
    if isinstance(value, str | bool) or value is None:
        raise MgenError(f"{name} is {value!r}: expected a number, a list of numbers or a curve")
    if isinstance(value, Mapping):
        out = _curve(value, steps, name, unknown, length, groups)
    elif isinstance(value, Sequence):
        out = [float(x) for x in value]
        if len(out) == steps - 1:
            out.append(0.0)
        if len(out) != steps:
            raise MgenError(
                f"{name} lists {len(out)} values for {steps} steps: give {steps} (or {steps - 1}, the last is then 0)"
            )
    else:
        out = [float(value)] * steps
    if not all(map(math.isfinite, out)):
        raise MgenError(f"{name} holds a number that is not finite: {value}")
    return out


def _curve(
    value: Settings, steps: int, name: str, unknown: Sequence[int], length: int, groups: Sequence[Sequence[int]]
) -> list[float]:
    kind = check_choice(f"{name}.kind", str(value.get("kind")), KINDS)
    keys = {"start", "end", "at", "least", KINDS[kind]}
    for key in value:
        if key not in keys | {"kind"}:
            raise MgenError(f"unknown key '{name}.{key}': {suggestion(key, keys)}")
    start, end = float(value.get("start", 1.0)), float(value.get("end", 1.0))
    ways = ("start", "end", "inclusive", "group") + (("tokens",) if KINDS[kind] == "left" else ())
    usual = {"linear": "end", "half-linear": "start"}.get(kind, "inclusive")
    least = float(value.get("least", -math.inf))
    at = check_choice(f"{name}.at", value.get("at", usual), ways)
    group = {t: (g + 1) / len(groups) for g, members in enumerate(groups) for t in members}
    out = []
    for t in range(steps):
        if at == "tokens":
            left = max(int(value.get("left", 0)), unknown[t] if t < len(unknown) else 0)
            done = length - left if kind == "linear" else min(length, 2 * (length - left))
            out.append(max(least, start + (end - start) * done / length))
            continue
        alone = (t + 1) / steps
        p = {"start": t / steps, "end": alone, "inclusive": t / max(1, steps - 1), "group": group.get(t, alone)}[at]
        if kind == "half-linear":
            p = min(1.0, 2 * p)
        elif kind != "linear":
            p = p ** float(value.get("power", 1.0))
        if kind == "power-cosine":
            p = (1 - math.cos(math.pi * p)) / 2
        out.append(max(least, start + (end - start) * p))
    return out
