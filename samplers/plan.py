"""The plan of a run: everything that is settled before the first step, as an immutable table. Notation: B images, L positions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mgen.generators import Capabilities
from mgen.tokens import TokenSpec

if TYPE_CHECKING:
    from mgen.samplers.settings import SamplerSettings

Kind = Literal["full", "cached", "carry", "none"]
COLUMNS = ("step", "group", "forward pass", "reveals", "unknown", "guidance", "temperature", "confidence temperature")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """`steps` steps that reveal the tokens first … stop − 1 alone."""

    steps: int
    first: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One step.

    Args:
        index: t. phase: with global tokens 0 for theirs and 1 for the others, else 0. group: number of its group (see Reuse).
        kind: "full", all tokens are computed; "cached", positions of the group; "carry", nothing is revealed, features alone are
            computed; "none", nothing is revealed.
        reveal: tokens that each row reveals. count: the most of them.
        unknown: most unknown tokens of the phase in a row before the step. stop: the position at which the phase's tokens end.
        visible: fewest and most known tokens of a row before the step.
        guidance: s of the draw; None: not guided. temperature, confidence_temperature: of the draw and of the ranking.
        null_rows: whether the forward pass computes the null class too.
        draws: False where only the context of the revealed tokens is read (the last step of a first stage).
        group_size: tokens of the whole group. first: of them, those revealed before the step. room: those revealed before its last.
        refresh: positions of the group that a cached step computes, from, to. prefix: whether it computes the class token too.
        ends_group: nothing that is cached for the group is read after it.
        quota, done, group_quota: (B, 1) on the device, tokens of a row revealed by the step, before it, and by its group.
    """

    index: int
    phase: int
    group: int
    kind: Kind
    reveal: tuple[int, ...]
    count: int
    unknown: int
    stop: int
    visible: tuple[int, int]
    guidance: float | None
    temperature: float
    confidence_temperature: float
    null_rows: bool = False
    draws: bool = True
    group_size: int = 0
    first: int = 0
    room: int = 0
    refresh: tuple[int, int] = (0, 0)
    prefix: bool = True
    ends_group: bool = False
    quota: Tensor = field(repr=False, compare=False)
    done: Tensor = field(repr=False, compare=False)
    group_quota: Tensor = field(repr=False, compare=False)

    @property
    def passes(self) -> int:
        """Forward passes per image, with class and without."""
        return 0 if self.kind == "none" else 1 + self.null_rows


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps that are run, of `count` in all, in so many phases.

    Args:
        carries: full steps carry features on. ranked: positions are ranked, so that the confidence temperature matters.
        first_stage: the plan of the stage that is drawn before.
    """

    steps: tuple[PlannedStep, ...]
    count: int
    phases: int
    carries: bool
    ranked: bool
    first_stage: "Plan | None" = None

    @property
    def forward_passes(self) -> int:
        """Forward passes per image, with class and without, of both stages; cached ones count as whole ones."""
        return sum(s.passes for s in self.steps) + (self.first_stage.forward_passes if self.first_stage else 0)

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """The plan as text, one line per step."""
        rows = [row[: None if self.ranked else -1] for row in (COLUMNS, *map(self._row, self.steps))]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        if self.first_stage is None:
            return "\n".join(lines)
        return "\n".join(["first stage", self.first_stage.table(), "", "second stage", *lines])

    def _row(self, s: PlannedStep) -> tuple[str, ...]:
        fewest, most = min(s.reveal), max(s.reveal)
        return (
            f"{s.index + 1}/{self.count}",
            f"{s.group + 1}",
            s.kind + (" + null class" if s.null_rows else ""),
            f"{most}" if fewest == most else f"{fewest}–{most}",
            f"{s.unknown}" + (("", " global")[s.phase == 0] if self.phases > 1 else ""),
            "none" if s.guidance is None else f"{s.guidance:.4g}",
            f"{s.temperature:.4g}",
            f"{s.confidence_temperature:.4g}",
        )


def make_plan(
    settings: "SamplerSettings",
    units: TokenSpec,
    able: Capabilities,
    hidden: Sequence[Sequence[int]] | None = None,
    *,
    device: torch.device | str = "cpu",
    features_only: bool = False,
    unused_tail: int = 0,
    first_stage: Plan | None = None,
) -> Plan:
    """The plan of a run.

    Args:
        units: the tokens as they are drawn. able: what the generator can do.
        hidden: of each phase, the unknown tokens of each row before the run; None: one row that knows nothing.
        features_only: nobody reads the tokens of the last step, as in a first stage. unused_tail: so many steps, the last, are left out.
    """
    phases = settings.phases(units.length, units.global_tokens)
    table = _table(settings, units, able, phases, hidden or [[phase.length] for phase in phases], device)
    groups = [  # cut where a phase ends
        [t for t in group if table.phase(t) == p]
        for group in settings.groups()
        for p in sorted({table.phase(t) for t in group})
    ]
    last = settings.config.steps - 1 if features_only and not able.log_prob else None
    steps = [
        step for i, group in enumerate(groups[: len(groups) - unused_tail]) for step in table.group(i, group, last)
    ]
    return Plan(
        steps=tuple(steps),
        count=settings.config.steps,
        phases=len(phases),
        carries=table.carries,
        ranked=settings.order.ranked,
        first_stage=first_stage,
    )


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Numbers of every step, from which the steps are made. Lists of T start at step 0, all others at the first step that is run."""

    settings: "SamplerSettings"
    able: Capabilities
    length: int
    phases: Sequence[Phase]
    phase_of: Sequence[int]
    wanted: Sequence[int]  # most unknown tokens of the phase
    fewest: Sequence[int]  # unknown tokens of a row
    widest: Sequence[int]
    most: Sequence[int]  # tokens revealed
    reveal: Sequence[Sequence[int]]
    on_device: Tensor  # (2, steps, B, 1): done and reveal
    guidance: Sequence[float]
    temperature: Sequence[float]
    confidence_temperature: Sequence[float]

    def phase(self, t: int) -> int:
        return self.phase_of[t - self.settings.config.start]

    def guided(self, t: int) -> bool:
        return self.guidance[t] != 1

    @property
    def carries(self) -> bool:
        return self.able.carried_features and self.settings.reuse.features

    def null_rows(self, steps: Sequence[int]) -> bool:
        """Whether a full step for the draws of `steps` computes null rows, or must for features that later steps carry on."""
        if any(map(self.guided, steps)):
            return True
        seen = self.fewest[steps[0] - self.settings.config.start] < self.length
        carried = self.able.order == "causal" or (self.carries and seen)
        return carried and any(map(self.guided, range(steps[0], len(self.guidance))))

    def group(self, number: int, group: Sequence[int], last: int | None) -> Iterator[PlannedStep]:
        """The steps of a group. The first one that reveals something is the full one. `last` is a step that draws nothing."""
        reuse, start = self.settings.reuse, self.settings.config.start
        counts, end = [self.most[t - start] for t in group], group[-1]
        while counts and not counts[0]:
            kind: Kind = "carry" if self.carries else "none"
            null_rows = self.carries and self.null_rows(group[:1])
            yield self.step(number, group[0], kind, null_rows=null_rows, ends_group=group[0] == end)
            group, counts = group[1:], counts[1:]
        size, first, before = sum(counts), 0, 0
        guides = reuse.guides(group)
        for i, (t, count) in enumerate(zip(group, counts)):
            own: dict[str, Any] = dict(
                guide=guides[i], draws=t != last, group_size=size, first=first, ends_group=t == end
            )
            if i == 0:
                rows = self.on_device[1, t - start : t - start + len(group)]
                quota = rows.sum(0) if len(group) > 1 and reuse.inside == "raster" else None
                own |= dict(null_rows=self.null_rows(group), room=size - counts[-1], group_quota=quota)
                yield self.step(number, t, "full", **own)
            elif count:
                own["null_rows"] = reuse.null_rows([self.guided(g) for g in guides[i:]])
                own["refresh"] = reuse.refreshed(size=size, first=first, count=count, before=before)
                yield self.step(number, t, "cached", prefix=reuse.prefix, **own)
            else:
                yield self.step(number, t, "none", ends_group=t == end)
            first, before = first + count, count or before

    def step(
        self,
        number: int,
        t: int,
        kind: Kind,
        *,
        guide: int | None = None,
        group_quota: Tensor | None = None,
        **own: Any,
    ) -> PlannedStep:
        """Step t, with the guidance of step `guide` (t)."""
        i, guide = t - self.settings.config.start, t if guide is None else guide
        done, quota = self.on_device[:, i]
        return PlannedStep(
            index=t,
            phase=self.phase_of[i],
            group=number,
            kind=kind,
            reveal=tuple(self.reveal[i]),
            count=self.most[i],
            unknown=self.wanted[i],
            stop=self.phases[self.phase_of[i]].stop,
            visible=(self.length - self.widest[i], self.length - self.fewest[i]),
            guidance=self.guidance[guide] if self.guided(guide) else None,
            temperature=self.temperature[t],
            confidence_temperature=self.confidence_temperature[t],
            quota=quota,
            done=done,
            group_quota=quota if group_quota is None else group_quota,
            **own,
        )


def _table(
    settings: "SamplerSettings",
    units: TokenSpec,
    able: Capabilities,
    phases: Sequence[Phase],
    hidden: Sequence[Sequence[int]],
    device: torch.device | str,
) -> _Table:
    after, wanted = [], []  # of each step, by row
    for i, (phase, unknown) in enumerate(zip(phases, hidden)):
        counts = {u: settings.left(phase, u) for u in set(unknown)}
        later = torch.tensor(hidden[i + 1 :], dtype=torch.int64).sum(0)
        left = torch.tensor([counts[u] for u in unknown]).T  # (steps, B)
        after.append(left + later)
        wanted += torch.cat([torch.tensor(unknown).unsqueeze(0), left[:-1]]).amax(1).tolist()
    total = torch.tensor(hidden).sum(0, keepdim=True)  # (1, B)
    left = torch.cat(after)  # (steps run, B)
    before = torch.cat([total, left[:-1]])
    reveal = before - left
    values = {
        name: settings.values(name, units.length, units.global_tokens)
        for name in ("guidance", "temperature", "confidence_temperature")
    }
    return _Table(
        settings=settings,
        able=able,
        length=units.length,
        phases=phases,
        phase_of=[i for i, phase in enumerate(phases) for _ in range(phase.steps)],
        wanted=wanted,
        fewest=before.amin(1).tolist(),
        widest=before.amax(1).tolist(),
        most=reveal.amax(1).tolist(),
        reveal=reveal.tolist(),
        on_device=torch.stack([total - before, reveal]).unsqueeze(-1).to(device),
        **values,
    )
