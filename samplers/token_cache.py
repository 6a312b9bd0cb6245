"""Token cache: lazy steps, which compute few tokens and keep what earlier steps made of the others. The setting `reuse.tokens:`.

Yan et al., "LazyMAR: Accelerating Masked Autoregressive Models via Feature Caching" (arXiv 2503.12450, §3.2; details as in its code):
features of most tokens hardly change from step to step. A *full* step keeps the keys and values of every layer and the decoder's input.
The *lazy* steps after it, up to the next full one,

* encode the prefix and the tokens revealed in the step before; older tokens stay as they were when they were encoded;
* decode all rows up to the attention of block `layer`, rank them there by how much their values have changed, and compute the rest of
  the blocks for the rows that changed most alone: those drawn now, those revealed in the step before, `extra` more, or `keep` of all.

With guidance each half keeps and ranks its own rows; with `reuse.condition` lazy steps compute the class's half alone, as published.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mgen.nn import Pruning
from mgen.utils.errors import MgenError
from mgen.utils.schema import Natural, Share, schema

if TYPE_CHECKING:
    from mgen.samplers.plan import PlannedStep

Knots = tuple[tuple[Share, Share], ...]
NEAR = 1e-9  # progress 1/3 may be written as 0.3333333333


@schema
class TokenCache:
    """The setting `reuse.tokens:`.

    Args:
        every: every so many steps are full ones; 1: all, which is the plain run. first: so many steps at the beginning are full in any
            case (LazyMAR: every 9, first 5).
        layer: the decoder's block, from 0 on, behind whose attention rows are dropped.
        keep: share of the decoder's rows, prefix included, that pass the later blocks; 1 drops none. A number, a list with one for each
            step, or knots [progress, share] in rising order: from step t with t / T ≥ progress on, until the next one; before them 1.
        extra: rows that pass them at least, beside those of the tokens drawn in the step and in the one before.
    """

    every: Annotated[int, Field(ge=1)] = 1
    first: Natural = 0
    layer: Natural = 3
    keep: Share | tuple[Share, ...] | Knots = 1.0
    extra: Natural = 15

    def __post_init__(self) -> None:
        progress = [knot[0] for knot in self.knots or ()]
        if progress != sorted(set(progress)):
            raise MgenError(f"reuse.tokens.keep has knots at {progress}: each must lie behind the one before")

    @property
    def lazy(self) -> bool:
        """Whether there are lazy steps."""
        return self.every > 1

    @property
    def knots(self) -> Knots | None:
        """The knots of `keep`; None if it is a number or a list."""
        keep = self.keep
        return keep if isinstance(keep, tuple) and keep and isinstance(keep[0], tuple) else None  # type: ignore[return-value]

    def scheduled(self, step: int) -> bool:
        """Whether this step, counted from the first one that is run, is a full one."""
        return step < self.first or (step - self.first) % self.every == 0

    def shares(self, steps: int) -> list[float]:
        """`keep` at each of `steps` steps; MgenError for a list of another length."""
        if (knots := self.knots) is not None:
            progress, shares = zip(*knots)
            return [(1.0, *shares)[bisect_right(progress, t / steps + NEAR)] for t in range(steps)]
        if isinstance(self.keep, float):
            return [self.keep] * steps
        if len(self.keep) != steps:
            raise MgenError(
                f"reuse.tokens.keep lists {len(self.keep)} shares for {steps} steps: give one for each step"
            )
        return [*self.keep]  # type: ignore[list-item]


def plan_tokens(steps: Sequence["PlannedStep"], tokens: TokenCache, count: int) -> list["PlannedStep"]:
    """The steps of a plan, of `count` in all, that are groups of their own, some of them as lazy ones.

    A full step that is due but reveals nothing leaves it to the next one that does. A step is full, too, if it computes null rows and
    the one before did not, or a difference that later steps use (`reuse.condition`).
    """
    if not tokens.lazy or not steps:
        return [*steps]
    out, shares, start = [*steps], tokens.shares(count), steps[0].index
    due, null_rows = True, False
    for i, step in enumerate(steps):
        due = due or tokens.scheduled(step.index - start)
        if step.kind != "full":
            continue
        if not (due or step.ahead or (step.null_rows and not null_rows)):
            pruning = Pruning(layer=tokens.layer, share=shares[step.index], extra=tokens.extra)
            out[i] = replace(step, kind="lazy", pruning=pruning)
        due, null_rows = False, step.null_rows
    for first, last in _spans(out):
        room = sum(step.count for step in out[first:last])
        out[first] = replace(
            out[first], room=room, keeps_null=any(step.null_rows for step in out[first + 1 : last + 1])
        )
        out[first:last] = [replace(step, ends_group=False) for step in out[first:last]]
    return out


def _spans(steps: Sequence["PlannedStep"]) -> list[tuple[int, int]]:
    """Each full step that lazy ones follow, and the last of these."""
    spans: dict[int, int] = {}
    full = 0
    for i, step in enumerate(steps):
        if step.kind == "full":
            full = i
        elif step.kind == "lazy":
            spans[full] = i
    return [*spans.items()]
