"""Makes the plan of a run: from settings, what the generator can do, and numbers of unknown tokens. Notation: B images, L positions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mgen.generators import Capabilities
from mgen.samplers.condition import plan_condition
from mgen.samplers.head_steps import DEFAULT_STEPS
from mgen.samplers.plan import Phase, Plan, PlannedStep
from mgen.samplers.remask import Path
from mgen.samplers.selection import Split
from mgen.samplers.stages import Stage
from mgen.samplers.token_cache import plan_tokens
from mgen.samplers.values import by_tokens
from mgen.tokens import TokenSpec

if TYPE_CHECKING:
    from mgen.samplers.settings import SamplerSettings


def make_plan(
    settings: "SamplerSettings",
    units: TokenSpec,
    able: Capabilities,
    hidden: Sequence[Sequence[int]] | None = None,
    *,
    device: torch.device | str = "cpu",
    features_only: bool = False,
    guide_features: bool = False,
    unused_tail: int = 0,
    counts: Tensor | None = None,
    path: Path | None = None,
    first_stage: Plan | None = None,
) -> Plan:
    """The plan of a run.

    Args:
        units: the tokens as they are drawn. able: what the generator can do.
        hidden: of each phase, the unknown tokens of each row before the run; None: one row that knows nothing.
        features_only: nobody reads the tokens of the last step, as in a first stage. guide_features: a guide's second stage reads the
            context of every token in its null rows. unused_tail: so many steps, the last, are left out.
        counts: the uniform numbers (T, B, L) of random counts; path: of remasking with free counts; None: the plan has expected numbers.
    """
    planner = _Planner(settings, units, able, hidden, device, counts, path, every_null_row=guide_features)
    # Groups are cut where a phase ends.
    groups = [list(part) for group in planner.groups for _, part in groupby(group, planner.phase)]
    undrawn = settings.config.steps - 1 if features_only and not able.log_prob else None
    kept = enumerate(groups[: len(groups) - unused_tail])
    reuse = planner.reuse
    steps = plan_condition([[*planner.group(*part, undrawn)] for part in kept], reuse.condition)
    return Plan(
        steps=tuple(plan_tokens(steps, reuse.tokens, settings.config.steps)),
        count=len(planner.temperature),
        phases=len(planner.phases),
        carries=planner.carries,
        ranked=settings.order.ranked,
        guided_by=able.guided_by or Plan.guided_by,
        first_stage=first_stage,
    )


@dataclass(frozen=True)
class Numbers:
    """Tokens of each row in the S steps that are run: unknown before and after the step, and taken back in it, (S, B) each.

    `wanted`: of each step, the most unknown tokens of its phase in a row before it.
    """

    before: Tensor
    left: Tensor
    taken: Tensor
    wanted: list[int]


def token_numbers(
    settings: "SamplerSettings",
    phases: Sequence[Phase],
    hidden: Sequence[Sequence[int]],
    length: int,
    uniform: Tensor | None,
    path: Path | None,
) -> Numbers:
    """How many tokens are known when; arguments as in `make_plan`, `uniform` as its counts."""
    start, remask = settings.config.start, settings.remask
    after: list[Tensor] = []  # unknown tokens after each step, by row
    wanted: list[int] = []
    for i, (phase, unknown) in enumerate(zip(phases, hidden)):
        later = torch.tensor(hidden[i + 1 :], dtype=torch.int64).sum(0)
        if settings.random_counts and uniform is not None:
            left = settings.left_at_random(
                phase, unknown, uniform[start + len(wanted) :, :, : phase.length]
            )  # (steps, B)
        else:
            counts = {u: settings.left(phase, u) for u in set(unknown)}
            left = torch.tensor([counts[u] for u in unknown]).T
        after.append(left + later)
        wanted += torch.cat([torch.tensor(unknown).unsqueeze(0), left[:-1]]).amax(1).tolist()
    total, left = torch.tensor(hidden).sum(0, keepdim=True), torch.cat(after)  # (1, B), (S, B)
    taken = torch.zeros_like(left)
    if remask is not None and remask.free:
        left, taken = settings.free_numbers(length, total, path)
        wanted = torch.cat([total, left[:-1]]).amax(1).tolist()
    before = torch.cat([total, left[:-1]])
    if remask is not None and not remask.free:
        taken = remask.taken(before, left, total, start=start, steps=settings.config.steps)
    return Numbers(before, left, taken, wanted)


class _Planner:
    """Makes the steps of a plan from the numbers of unknown tokens and the values of all steps."""

    def __init__(
        self,
        settings: "SamplerSettings",
        units: TokenSpec,
        able: Capabilities,
        hidden: Sequence[Sequence[int]] | None,
        device: torch.device | str,
        uniform: Tensor | None = None,
        path: Path | None = None,
        *,
        every_null_row: bool = False,
    ) -> None:
        self.device, self.groups, remask = device, settings.groups(), settings.remask
        self.every_null_row = every_null_row
        self.reuse, self.start, self.length = settings.reuse, settings.config.start, units.length
        # Of a trunk that denoises later passes compute the null rows of earlier ones, where they are read.
        self.one_by_one = able.one_by_one and not able.denoises
        self.carries = able.carried_features and self.reuse.features
        self.phases = settings.phases(units.length, units.global_tokens)
        self.phase_of = [i for i, phase in enumerate(self.phases) for _ in range(phase.steps)]
        self.settings = settings
        self.stages: dict[int, tuple[int, Stage]] = {}  # number and stage of the steps run, where there are stages
        for stop, phase in zip(accumulate(phase.steps for phase in self.phases), self.phases):
            if phase.stages is not None:
                self.stages |= {stop - phase.steps + t: phase.stages.stage(t) for t in range(phase.steps)}
        self.temperature, self.confidence_temperature = (
            settings.values(name, units.length, units.global_tokens)
            for name in ("temperature", "confidence_temperature")
        )
        self.chain_steps = settings.chain_steps(units.length, units.global_tokens)
        hidden = [[phase.length] for phase in self.phases] if hidden is None else hidden
        if remask is not None and remask.free:  # and a last step, which draws what is left as surely as can be
            self.groups.append([settings.config.steps])
            self.phase_of.append(0)
            self.temperature.append(0.0)
            self.confidence_temperature.append(0.0)
            self.chain_steps.append(self.chain_steps[-1])
        numbers = token_numbers(settings, self.phases, hidden, units.length, uniform, path)
        before, left, taken, total = numbers.before, numbers.left, numbers.taken, numbers.before[:1]
        self.wanted = numbers.wanted
        # Order remasking draws the tokens revealed so far again, also in a step that reveals no other.
        self.redraws = [settings.order.name == "remasking" and n > 0 for n in (total - before).amax(1).tolist()]
        self.visible = list(zip((self.length - before.amax(1)).tolist(), (self.length - before.amin(1)).tolist()))
        self.takes: list[int] = taken.amax(1).tolist()
        if path is not None and path.fewest is not None:
            fewest = path.fewest
            self.visible = [(fewest, most) for _, most in self.visible]
            self.takes = [1] * (len(self.takes) - 1) + [0]
        self.reveal: list[list[int]] = (before - left + taken).tolist()
        rows = before.double() / total.clamp(min=1), left if settings.random_counts and uniform is not None else None
        self.guidance: list[float | Tensor] = self._guidance(settings, units, *rows)
        self.guidance += self.guidance[-1:] * (len(self.temperature) - len(self.guidance))
        self.last_guided = max((t for t in range(len(self.guidance)) if self.guided(t)), default=-1)
        stacked = torch.stack([total - before, before - left + taken, taken])
        self.done, self.quota, self.taken = stacked.unsqueeze(-1).to(device)

    def _guidance(
        self, settings: "SamplerSettings", units: TokenSpec, shares: Tensor, left: Tensor | None
    ) -> list[float | Tensor]:
        """The guidance of all T steps; where it counts tokens and images have other numbers of them, one (B,) for each.

        Args:
            shares: (steps run, B), of tokens that are unknown before a step. left: (steps run, B), unknown ones after it, of random counts.
        """
        values, own = partial(settings.values, "guidance", units.length, units.global_tokens), settings.config.guidance
        by_left, by_share = left is not None and by_tokens(own, "at"), by_tokens(own, "interval_of")
        if not (by_left or by_share):
            return [*values()]
        none = [None] * shares.shape[1]
        lefts = [tuple(row) for row in left.T.tolist()] if left is not None and by_left else none
        parts = [tuple(row) for row in shares.T.tolist()] if by_share else none
        rows = list(zip(lefts, parts))
        made = {row: values(left=row[0], shares=row[1]) for row in set(rows)}
        steps = zip(*(made[row] for row in rows))
        return [own[0] if len(set(own)) == 1 else torch.tensor(own, device=self.device) for own in steps]

    def phase(self, t: int) -> int:
        return self.phase_of[t - self.start]

    def count(self, t: int) -> int:
        return max(self.reveal[t - self.start])

    def guided(self, t: int) -> bool:
        value = self.guidance[t]
        return isinstance(value, Tensor) or value != 1

    def null_rows(self, steps: Sequence[int]) -> bool:
        """Whether a full step for the draws of `steps` computes null rows, or must for features that later steps carry on."""
        read_later = self.one_by_one or (self.carries and self.visible[steps[0] - self.start][1] > 0)
        return self.every_null_row or any(map(self.guided, steps)) or (read_later and self.last_guided >= steps[0])

    def group(self, number: int, group: Sequence[int], undrawn: int | None) -> Iterator[PlannedStep]:
        """The steps of a group. The first one that reveals something, or draws known tokens again, is the full one.

        The step `undrawn` draws nothing.
        """
        counts, end, reuse = [self.count(t) for t in group], group[-1], self.reuse
        while counts and not counts[0] and not self.redraws[group[0] - self.start]:
            step = self.step(group[0], number, end, guide=group[0])
            yield replace(step, kind="carry", null_rows=self.null_rows(group[:1])) if self.carries else step
            group, counts = group[1:], counts[1:]
        size, first, before = sum(counts), 0, 0
        room = size - next((count for count in reversed(counts) if count), 0)
        guides = [*group[:1], *group[:-1]] if reuse.late_guidance else group
        for i, (t, count) in enumerate(zip(group, counts)):
            step = self.step(t, number, end, guide=guides[i])
            chain, split = self.chains(t, cached=i > 0)
            step = replace(step, draws=t != undrawn, group_size=size, first=first, head_steps=chain, split=split)
            if i == 0:
                step = replace(step, kind="full", null_rows=self.null_rows(group), room=room)
                if len(group) > 1 and reuse.inside == "raster":
                    step = replace(step, group_quota=self.quota[t - self.start : end + 1 - self.start].sum(0))
            elif count and reuse.refresh == "latest":  # a later step reads null rows of this one
                nulls = self.every_null_row or any(map(self.guided, guides[i:]))
                step = replace(step, kind="cached", null_rows=nulls, refresh=(first - before, first + count))
            elif count:
                nulls = self.every_null_row or self.guided(guides[i])
                step = replace(step, kind="cached", null_rows=nulls, refresh=(0, size))
            yield replace(step, prefix=reuse.prefix) if step.kind == "cached" else step
            first, before = first + count, count or before

    def chains(self, t: int, *, cached: bool) -> tuple[int | None, Split | None]:
        """Steps of the head's chain in step t, and which of its tokens have another one; None where all have the same."""
        chain, stage = self.chain_steps[t][cached], self.stages.get(t - self.start)
        if stage is None or stage[1].select is None:
            return chain, None
        own = (self.settings.config.head or {}).get("steps", DEFAULT_STEPS) if chain is None else chain
        steps = self.settings.selected_steps(stage[1].select)[cached]
        if steps == own:
            return chain, None
        return own, Split.of(stage[1].select, steps, self.reveal[t - self.start], self.device)

    def step(self, t: int, number: int, end: int, *, guide: int) -> PlannedStep:
        """Step t of group `number`, which step `end` ends, with the guidance of step `guide`, as one that reveals nothing."""
        i = t - self.start
        return PlannedStep(
            index=t,
            kind="none",
            phase=self.phase_of[i],
            stage=self.stages[i][0] if i in self.stages else None,
            group=number,
            reveal=tuple(self.reveal[i]),
            count=self.count(t),
            takes=self.takes[i],
            unknown=self.wanted[i],
            stop=self.phases[self.phase_of[i]].stop,
            visible=self.visible[i],
            guidance=self.guidance[guide] if self.guided(guide) else None,
            temperature=self.temperature[t],
            confidence_temperature=self.confidence_temperature[t],
            ends_group=t == end,
            quota=self.quota[i],
            done=self.done[i],
            group_quota=self.quota[i],
            taken=self.taken[i],
        )
