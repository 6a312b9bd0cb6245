"""Condition cache: the null rows of guidance as the class's rows plus a difference that is kept for a few steps.

Yan et al., "LazyMAR: Accelerating Masked Autoregressive Models via Feature Caching" (arXiv 2503.12450, §3.3): from step to step, what the
null class changes in a context vector hardly changes. It is computed and kept in some of the guided full steps and added to the class's
context in the others, which then compute half the rows. The difference is taken in front of the trunk's last normalization
(`Trunk.to_context`), where the published code takes it.

Notation: B images, L positions, M of them asked for, E width of the context.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from mgen.nn.attention import gather_rows, put
from mgen.utils.schema import Natural, schema

if TYPE_CHECKING:
    from mgen.samplers.plan import PlannedStep


@schema
class Condition:
    """The setting `reuse.condition:`.

    Args:
        every: the difference is computed in every so many groups of steps, where guidance needs it; 1: in all, which is the plain run.
        first: so many groups at the beginning compute it in any case (LazyMAR: every 9, first 5).
    """

    every: Annotated[int, Field(ge=1)] = 1
    first: Natural = 0

    def scheduled(self, group: int) -> bool:
        """Whether the difference is due in this group of steps."""
        return group < self.first or (group - self.first) % self.every == 0


def plan_condition(groups: Sequence[Sequence["PlannedStep"]], condition: Condition) -> list["PlannedStep"]:
    """The steps of a plan, of those that use the kept difference without null rows.

    A group that is due but has no guidance leaves it to the next one that has.
    """
    out: list[list[PlannedStep]] = []
    due, kept_at = True, -1  # the group whose difference is in use
    ahead: dict[int, int] = {}  # of such a group, the last one that uses its difference
    for number, steps in enumerate(groups):
        due = due or (bool(steps) and condition.scheduled(steps[0].group))
        if any(step.null_rows for step in steps):
            if due:
                kept_at, due = number, False
            else:
                ahead[kept_at] = number
                steps = [replace(step, null_rows=False, null_kept=step.null_rows) for step in steps]
        out.append([*steps])
    for number, last in ahead.items():
        revealed = [step.reveal for part in groups[number : last + 1] for step in part]
        most = max(map(sum, zip(*revealed)))  # of an image
        out[number] = [replace(step, ahead=most if step.kind == "full" else 0) for step in out[number]]
    return [step for steps in out for step in steps]


class Difference:
    """What the null class changes in the context at each position (B, L, E), as the last step that computed it left it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._values = torch.empty(0)

    def keep(self, z: Tensor, positions: Tensor | None) -> None:
        """Keep that of context z (2B, M, E) at positions (B, M), None: at all; null rows stand behind those of the class."""
        own, null = z.chunk(2)
        if positions is None:
            self._values = null - own
            return
        if self._values.shape[::2] != own.shape[::2]:
            self._values = own.new_zeros(len(own), self.length, own.shape[-1])  # (B, L, E)
        put(self._values, positions, null - own)

    def with_null_rows(self, z: Tensor, positions: Tensor | None) -> Tensor:
        """Context z (B, M, E) at positions (B, M) with null rows behind, (2B, M, E)."""
        return torch.cat([z, z + (self._values if positions is None else gather_rows(self._values, positions))])
