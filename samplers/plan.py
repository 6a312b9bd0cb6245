"""The plan of a run: everything that is settled before the first step, as an immutable table. Notation: B images, L positions."""

import math
from dataclasses import dataclass, field
from itertools import compress
from typing import Literal

from torch import Tensor

from mgen.nn import Pruning
from mgen.samplers.selection import Split
from mgen.samplers.stages import Stages

Kind = Literal["full", "cached", "lazy", "carry", "none"]
LEAST_TEMPERATURE = 1e-4  # below, a confidence temperature is 0
COLUMNS = (
    *("step", "stage", "group", "forward pass", "reveals", "takes back", "unknown", "guidance", "temperature"),
    *("head steps", "confidence temperature"),
)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """`steps` steps that reveal the tokens first … stop − 1 alone; `stages`: how they are split among them, if not by the schedule."""

    steps: int
    first: int
    stop: int
    stages: Stages | None = None

    @property
    def length(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One step.

    Args:
        index: t. phase: 1 for the tokens after global ones, else 0. group: number of its group (see Reuse).
        kind: "full", all tokens are computed; "cached", positions of the group; "lazy", the latest tokens and the rows that change most;
            "carry", nothing is revealed, features alone are computed; "none", nothing is revealed.
        reveal: tokens that each row reveals. count: the most of them. takes: the most that a row takes back (remasking).
        visible: fewest and most known tokens of a row before the step.
        unknown: most unknown tokens of the phase in a row before the step. stop: the position at which the phase's tokens end.
        guidance: s of the draw, one for each row (B,) where they differ; None: not guided.
        temperature, confidence_temperature: of the draw and of the ranking. exponent: 1 over the latter, ∞ where that is 0.
        null_rows: the forward pass computes the null class, or the guide, too. null_kept: it does not, though the draw is guided: null
            rows are the class's plus a difference that was kept. ahead: positions whose difference is kept, those revealed from this
            step on; 0: none.
        head_steps: steps of the head's chain; None: as the settings of the head say. split: tokens whose chain has another length.
        stage: number of its stage; None: there are none.
        draws: False where only the context of the revealed tokens is read (the last step of a first stage).
        group_size: tokens of the whole group. first: of them, those revealed before the step. room: of a full step, tokens that the
            cached or lazy ones after it find revealed; 0: nothing is kept. keeps_null: what is kept is that of null rows too.
        refresh: positions of the group that a cached step computes, from, to. prefix: whether it computes the class token too.
        pruning: of a lazy step. ends_group: nothing that is kept is read after it.
        quota, done, group_quota, taken: (B, 1) on the device, tokens of a row revealed by the step, before it, and by its group, and
            taken back.
    """

    index: int
    phase: int
    group: int
    kind: Kind
    reveal: tuple[int, ...]
    count: int
    takes: int = 0
    unknown: int
    stop: int
    visible: tuple[int, int]
    guidance: float | Tensor | None
    temperature: float
    confidence_temperature: float
    null_rows: bool = False
    null_kept: bool = False
    ahead: int = 0
    head_steps: int | None = None
    split: Split | None = None
    stage: int | None = None
    draws: bool = True
    group_size: int = 0
    first: int = 0
    room: int = 0
    keeps_null: bool = True
    pruning: Pruning | None = None
    refresh: tuple[int, int] = (0, 0)
    prefix: bool = True
    ends_group: bool = False
    quota: Tensor = field(repr=False, compare=False)
    done: Tensor = field(repr=False, compare=False)
    group_quota: Tensor = field(repr=False, compare=False)
    taken: Tensor = field(repr=False, compare=False)

    @property
    def exponent(self) -> float:
        a = self.confidence_temperature
        return 1 / a if a > LEAST_TEMPERATURE else math.inf


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps that are run, of `count` in all, in so many phases.

    Args:
        carries: full steps carry features on. ranked: positions are ranked, so that the confidence temperature matters.
        guided_by: what null rows are of, see Capabilities. first_stage: the plan of the stage that is drawn before.
    """

    steps: tuple[PlannedStep, ...]
    count: int
    phases: int
    carries: bool
    ranked: bool
    guided_by: str = "null class"
    first_stage: "Plan | None" = None

    @property
    def forward_passes(self) -> int:
        """Forward passes per image, with class and without, of both stages; cached ones count as whole ones."""
        own = sum(1 + step.null_rows for step in self.steps if step.kind != "none")
        return own + (self.first_stage.forward_passes if self.first_stage else 0)

    def __str__(self) -> str:
        """The plan as text, one line per step."""
        matters = {
            "stage": any(step.stage is not None for step in self.steps),
            "takes back": any(step.takes for step in self.steps),
            "head steps": any(step.head_steps is not None for step in self.steps),
            "confidence temperature": self.ranked,
        }
        shown = [matters.get(column, True) for column in COLUMNS]
        rows = [tuple(compress(row, shown)) for row in (COLUMNS, *map(self._row, self.steps))]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        if self.first_stage is None:
            return "\n".join(lines)
        return "\n".join(["first stage", str(self.first_stage), "", "second stage", *lines])

    def _row(self, s: PlannedStep) -> tuple[str, ...]:
        fewest, most = min(s.reveal), max(s.reveal)
        return (
            f"{s.index + 1}/{self.count}",
            "" if s.stage is None else f"{s.stage + 1}",
            f"{s.group + 1}",
            s.kind + (f" + {self.guided_by}" if s.null_rows else " + kept null class" if s.null_kept else ""),
            f"{most}" if fewest == most else f"{fewest}–{most}",
            f"{s.takes}",
            f"{s.unknown}" + (" global" if self.phases > 1 and s.phase == 0 else ""),
            _text(s.guidance),
            f"{s.temperature:.4g}",
            ("" if s.head_steps is None else f"{s.head_steps}") + ("" if s.split is None else f", {s.split}"),
            f"{s.confidence_temperature:.4g}",
        )


def _text(guidance: float | Tensor | None) -> str:
    if isinstance(guidance, Tensor):
        return f"{guidance.min():.4g}–{guidance.max():.4g}"
    return "none" if guidance is None else f"{guidance:.4g}"
