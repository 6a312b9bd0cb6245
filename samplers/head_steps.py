"""Head steps: how many steps the head's chain takes in each step of the sampler; the setting `head.steps`.

Late tokens are nearly settled by their neighbors, so that short chains do for them (Zhao et al., "DiSA: Diffusion Step Annealing in
Autoregressive Image Generation", arXiv 2505.20297). A number holds for all steps; a list has one entry per step; a curve is one of
mgen.samplers.values and is rounded from `start` toward `end`: end + int((1 − share) · (start − end)). Curves of the kinds `linear` and
`power-cosine` at `inclusive` are computed in DiSA's order of operations, (U − k) / U and (cos(πk / U) + 1) / 2 with U = T − 1: another
order gives other whole numbers.

The noise of a token does not depend on the step that draws it: the noise of the longest chain is made, and shorter ones use the first
part of it.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral

from mgen.samplers.values import Curve, Value, per_step
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, shown
from mgen.utils.schema import build

DEFAULT_STEPS = 100  # of heads with a chain
NAME = "head.steps"


def varies(head: Settings) -> bool:
    """Whether `head.steps` is a list or a curve."""
    return isinstance(head.get("steps"), list | tuple | Mapping)


def longest(head: Settings) -> Settings:
    """Settings of the head for its longest chain: `head` itself where the number of steps is the same in all steps."""
    if not varies(head):
        return head
    value = head["steps"]
    ends = (_curve(value).start, _curve(value).end) if isinstance(value, Mapping) else (*map(_whole, value),)
    return {**head, "steps": max(map(int, ends), default=0)}


def head_steps(
    value: Value,
    steps: int,
    *,
    unknown: Sequence[int] = (),
    length: int = 1,
    groups: Sequence[Sequence[int]] = (),
) -> list[int]:
    """Steps of the chain in each of `steps` steps.

    Args:
        unknown, length, groups: as in mgen.samplers.values.per_step.

    Raises:
        MgenError: a list of the wrong length or with entries that are no whole numbers, a curve that is not allowed, fewer than 1 step.
    """
    if isinstance(value, list | tuple):
        value = [_whole(x) for x in value]
        if len(value) != steps:
            raise MgenError(f"{NAME} lists {len(value)} numbers for {steps} steps: give one for each step")
    if not isinstance(value, Mapping):
        return [int(x) for x in per_step(value, steps, name=NAME)]
    curve, last = _curve(value), steps - 1
    places = [(last - k) / max(1, last) for k in range(steps)]
    if (
        curve.over is None
        and curve.at in (None, "inclusive")
        and curve.kind == "power-cosine"
        and curve.power in (None, 1)
    ):
        rest = [(math.cos(math.pi * k / max(1, last)) + 1) / 2 for k in range(steps)]
    elif curve.over is None and curve.at == "inclusive" and curve.kind == "linear":
        rest = places
    else:
        # Rounded, so that a value of 2 is not 1.9999….
        values = curve.at_steps(steps, unknown, length, groups)
        span = (curve.start - curve.end) or 1.0
        rest = [round((x - curve.end) / span, 9) for x in values]
    return [int(curve.end) + int(x * (curve.start - curve.end)) for x in rest]


def _curve(value: Mapping[str, object]) -> Curve:
    curve = build(Curve, value, f"{NAME}.")
    for key in ("times", "interval", "least"):
        if value.get(key) is not None:
            raise MgenError(
                f"{NAME}.{key} is given: a number of head steps takes kind, start, end, at, left, over and power"
            )
    for key in ("start", "end"):
        if getattr(curve, key) < 1 or getattr(curve, key) != int(getattr(curve, key)):
            raise MgenError(f"{NAME}.{key} is {shown(getattr(curve, key))}: a whole number from 1 on is needed")
    return curve


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise MgenError(f"{NAME} lists {shown(value)}: whole numbers are needed, one for each step")
    return int(value)
