"""The settings of a sampler: every choice of a decoding run as a configuration that is checked when it is made."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Concatenate, ParamSpec, Self, TypeVar

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from pydantic import Field
from torch import Tensor

from mgen.generators import Cascade, Generator
from mgen.heads import check_draw
from mgen.samplers.binomial import random_left, reveal_shares
from mgen.samplers.counts import remaining_counts
from mgen.samplers.excluded import check_first_stage, check_order, check_random_counts, check_remask, check_stages
from mgen.samplers.head_steps import DEFAULT_STEPS, head_steps, longest, varies
from mgen.samplers.order import Order, OrderSettings
from mgen.samplers.plan import Phase
from mgen.samplers.remask import Path, Rates, Remask, expected_path
from mgen.samplers.reuse import Reuse
from mgen.samplers.schedule import Schedule
from mgen.samplers.stages import Selection, Stages
from mgen.samplers.values import Value, per_step
from mgen.utils.config import Settings, apply_overrides
from mgen.utils.errors import MgenError, check_keys, shown
from mgen.utils.modeling import constructor_keys
from mgen.utils.plain import check_plain
from mgen.utils.schema import Natural, Text, build, schema

P = ParamSpec("P")
S = TypeVar("S")
STEPS = 8
MOST_STEPS = 100_000


@schema
class _Plain:
    """The settings of a sampler that are one value or a mapping of their own."""

    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    start: Natural
    counts: Text
    schedule: Text | tuple[float, ...]
    head: dict[str, object] | None
    first_stage: dict[str, object] | None
    global_steps: Annotated[int, Field(ge=1)] | None


def _known_keywords(init: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """Decorator: an unknown keyword argument is an MgenError that names the nearest one, and so is no number of steps for no stages."""

    @functools.wraps(init)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if args:
            raise MgenError(f"a sampler takes settings by name, such as steps=8, not {shown(args[0])}")
        check_keys(kwargs, constructor_keys(type(self)), "sampler.")
        if kwargs.get("steps", STEPS) is None and not kwargs.get("stages"):
            raise MgenError("steps is None: a whole number is needed, None is for stages, whose steps are counted")
        init(self, *args, **kwargs)

    return call


class SamplerSettings(SchedulerMixin, ConfigMixin):
    """How tokens are revealed and drawn. The defaults are MaskGIT's, without guidance.

    Args:
        steps: T; None: 8, or those of the stages.
        order: which positions come next: "confidence", "moment", "remasking", "random", "raster", "halton", "halton-rolled",
            "checkerboard", a list of all positions, or a mapping with options, e.g. {name: confidence, redraw: true} (see
            mgen.samplers.order).
        schedule: mask fraction by name, or a list (see mgen.samplers.schedule). counts: how it is rounded (mgen.samplers.counts).
        guidance: s in u + s·(c − u); 1 is none. temperature: of the token draw. confidence_temperature: factor of the Gumbel noise on
            confidences. Each is constant, listed or a curve (see mgen.samplers.values).
        start: first step that is run.
        head: how the head draws a token: a diffusion head by mgen.heads.chains.ChainSettings, e.g. {chain: ancestral, steps: 100}, a
            categorical one by mgen.heads.categorical.DrawSettings, e.g. {top_k: 100}. Its `steps` may be a list or a curve over the
            steps, see mgen.samplers.head_steps.
        reuse: what a step reuses of those before (see mgen.samplers.reuse.Reuse), e.g. {cached: 1, full_first: 12}.
        remask: which known tokens are taken back (see mgen.samplers.remask.Remask), e.g. {kind: cap, eta: 0.008}.
        first_stage: settings of a sampler for the first stage of generators that have two (Hi-MAR); None: leave it out.
        global_steps: steps that draw global tokens, before all others, each kind by the schedule; None: in proportion to their number.
        stages: parts of the run with a number of tokens and steps each, in place of the schedule (see mgen.samplers.stages).
    """

    config_name = "sampler_config.json"

    @_known_keywords
    @register_to_config
    def __init__(
        self,
        *,
        steps: int | None = None,
        order: Order = "confidence",
        schedule: Schedule = "cosine",
        counts: str = "maskgit",
        guidance: Value = 1.0,
        temperature: Value = 1.0,
        confidence_temperature: Value = {"kind": "linear", "start": 4.5, "end": 0.0},  # noqa: B006  (JSON in the config)
        start: int = 0,
        head: Settings | None = None,
        reuse: Settings | None = None,
        remask: Settings | None = None,
        first_stage: Settings | None = None,
        global_steps: int | None = None,
        stages: Sequence[Settings] | None = None,
    ) -> None:
        # An argument for each key of the saved configuration, as diffusers writes and reads it.
        parts = Stages.of(stages)
        if steps is None:
            steps = STEPS if parts is None else parts.steps + (global_steps if type(global_steps) is int else 0)
            self.register_to_config(steps=steps)
        curves = {"guidance": guidance, "temperature": temperature, "confidence_temperature": confidence_temperature}
        check_plain({"order": order, "reuse": reuse, "remask": remask, "head": head, **curves})
        plain = {"steps": steps, "start": start, "counts": counts, "schedule": schedule, "head": head}
        build(_Plain, {**plain, "first_stage": first_stage, "global_steps": global_steps})
        if global_steps is not None and global_steps >= steps:
            raise MgenError(
                f"global_steps is {global_steps!r}: a whole number from 1 to steps − 1, {steps - 1}, is needed"
            )
        check_order(self.order, self.reuse)
        self.reuse.tokens.shares(steps)
        if parts is None:
            # Raises on a bad schedule; whether there are enough tokens for it is checked when their number is known.
            tokens = steps if schedule == "single" else max(2, steps)
            rule = "enat" if counts == "maskgit-r" else counts
            remaining_counts(schedule, steps=steps, unknown=tokens, length=tokens, start=start, counts=rule)
        else:
            check_stages(self, parts)
        for name, value in curves.items():
            per_step(value, steps, name=name)
        if self.random_counts:
            check_random_counts(self)
        head_steps(DEFAULT_STEPS if self._head_steps is None else self._head_steps, steps)
        check_draw(self.longest_head)
        if self.remask is not None:
            check_remask(self, self.remask)
        if isinstance(first_stage, Mapping) and first_stage.get("first_stage") is not None:
            raise MgenError("nested first stages aren't supported: leave first_stage.first_stage out")
        if self.first_stage is not None:
            check_first_stage(self.first_stage)

    @classmethod
    def from_settings(cls, settings: object, where: str) -> Self:
        """A sampler from a mapping of a file or a configuration; MgenError that names `where` for anything wrong in it."""
        if not isinstance(settings, Mapping):
            raise MgenError(f"{where} is {shown(settings)}: expected a mapping of sampler settings")
        check_keys(settings, constructor_keys(cls), f"{where}.")
        try:
            return cls(**settings)
        except ValueError as error:
            raise MgenError(f"{where}: {error}") from error

    @classmethod
    def suited(cls, generator: Generator | Cascade, settings: object = None, where: str = "sampler") -> Self:
        """A sampler from `settings`; where they name no order, vectors are drawn in random order, ids by confidence.

        Generators of two stages draw the first one unless `first_stage` is None, in up to 32 steps, as published for 64 tokens.
        """
        given = {} if settings is None else settings
        if not isinstance(given, Mapping):
            return cls.from_settings(given, where)
        own: Settings = {} if generator.capabilities.log_prob else {"order": "random"}
        if generator.capabilities.one_by_one:
            own = {"steps": generator.units.length, "order": "raster", "schedule": "single"}
        own |= given
        stage = own.get("first_stage", {})
        if isinstance(generator, Cascade) and isinstance(stage, Mapping):
            order = {} if generator.first.capabilities.log_prob else {"order": "random"}
            steps = {} if stage.get("stages") else {"steps": min(32, generator.first.units.length)}
            own["first_stage"] = {**steps, **order, **stage}
        return cls.from_settings(own, where)

    @property
    def settings(self) -> Settings:
        """The arguments of the constructor, as they are written to files."""
        return {key: value for key, value in self.config.items() if not key.startswith("_")}

    @property
    def order(self) -> OrderSettings:
        """The order's name and options."""
        return OrderSettings.of(self.config.order)

    @property
    def stages(self) -> Stages | None:
        """The parts of the run, of the tokens after global ones; None: the schedule splits it."""
        return Stages.of(self.config.stages)

    @property
    def selections(self) -> list[Selection]:
        """Those of the stages that select tokens for another chain."""
        return [] if self.stages is None else self.stages.selections

    def selected_steps(self, select: Selection) -> tuple[int, int]:
        """Steps of the chain of selected tokens, in a full and in a cached step."""
        share = self.reuse.head_share if self.reuse.cached else 1
        return select.head_steps, max(1, int(select.head_steps * share))

    @property
    def random_counts(self) -> bool:
        """Whether the number of tokens that a step reveals is random and drawn for each image."""
        return bool(self.config.counts == "binomial")

    @property
    def steps_shown(self) -> int:
        """Steps that a run yields: those from `start` on, and with free counts of remasking one for what is left."""
        return self.config.steps - self.config.start + int(self.remask is not None and self.remask.free)

    @property
    def reuse(self) -> Reuse:
        """The policy of reuse."""
        return Reuse.of(self.config.reuse)

    @property
    def remask(self) -> Remask | None:
        """The policy of remasking; None where no token is ever taken back."""
        return Remask.of(self.config.remask)

    @property
    def first_stage(self) -> Self | None:
        """The sampler of the first stage."""
        own = self.config.first_stage
        return None if own is None else type(self).from_settings(own, "sampler.first_stage")

    @property
    def _head_steps(self) -> Value | None:
        steps: Value | None = (self.config.head or {}).get("steps")
        return steps

    @property
    def longest_head(self) -> Settings:
        """Settings of the head in the step with its longest chain: those that the noise of a run is made for."""
        head = longest(self.config.head or {})
        selected = [n for select in self.selections for n in self.selected_steps(select)]
        return {**head, "steps": max(head.get("steps", DEFAULT_STEPS), *selected)} if selected else head

    def head(self, steps: int | None) -> Settings:
        """Settings of the head with this number of steps of its chain; None: as the settings say."""
        own = self.config.head or {}
        return own if steps is None else {**own, "steps": steps}

    # -- over the steps ------------------------------------------------------------------------------------------------

    def groups(self) -> list[list[int]]:
        """The steps that are run, cut into groups of one full step and the cached ones after it."""
        return self.reuse.groups(self.config.start, self.config.steps)

    def phases(self, length: int, global_tokens: int = 0) -> list[Phase]:
        """The phases of a run on `length` tokens: one, or two with global tokens, which come first."""
        steps, stages = self.config.steps, self.stages
        if not global_tokens:
            return [Phase(steps=steps - self.config.start, first=0, stop=length, stages=stages)]
        first = self.config.global_steps or min(max(1, round(steps * global_tokens / length)), steps - 1)
        return [
            Phase(steps=first, first=0, stop=global_tokens),
            Phase(steps=steps - first, first=global_tokens, stop=length, stages=stages),
        ]

    def remaining(self, *, unknown: int, length: int, steps: int | None = None) -> list[int]:
        """Tokens unknown after each step that is run, from `unknown` of `length` at first; `steps` replaces T."""
        c = self.config
        if steps is None and (stages := self.stages) is not None:
            return stages.left(unknown=unknown, length=length, counts=c.counts)
        steps = steps or c.steps
        own = None if self.remask is None else self.remask.fractions(steps)
        schedule, counts = (c.schedule, c.counts) if own is None else (own, "enat")
        return remaining_counts(schedule, steps=steps, unknown=unknown, length=length, start=c.start, counts=counts)

    def rates(self, length: int) -> list[Rates]:
        """The probabilities of remasking in the steps that are run."""
        c = self.config
        return [] if self.remask is None else self.remask.rates(c.schedule, steps=c.steps, length=length)[c.start :]

    def free_numbers(self, length: int, unknown: Tensor, path: Path | None) -> tuple[Tensor, Tensor]:
        """Tokens (S + 1, B) unknown after each step of a run with free counts, and taken back in it, from (1, B) unknown ones."""
        if path is not None:
            return path.left, path.taken
        assert self.remask is not None
        return expected_path(self.rates(length), int(unknown.max()), conf=self.remask.kind == "conf")

    def left(self, phase: Phase, unknown: int) -> list[int]:
        """Of `unknown` tokens of a phase at first, those left after each of its steps."""
        steps = phase.steps + self.config.start
        if unknown and phase.stages is not None:
            return phase.stages.left(unknown=unknown, length=phase.length, counts=self.config.counts)
        return self.remaining(unknown=unknown, length=phase.length, steps=steps) if unknown else [0] * phase.steps

    def left_at_random(self, phase: Phase, unknown: Sequence[int], uniform: Tensor) -> Tensor:
        """The same of each image (B), as (steps, B), where counts are random; `uniform` (steps, B, L)."""
        c = self.config
        shares = reveal_shares(c.schedule, steps=phase.steps + c.start, length=phase.length)[c.start :]
        return random_left(shares, torch.tensor(unknown), uniform)

    def values(
        self,
        name: str,
        length: int,
        global_tokens: int = 0,
        left: Sequence[int] | None = None,
        shares: Sequence[float] | None = None,
    ) -> list[float]:
        """`guidance`, `temperature` or `confidence_temperature` at each of the T steps of a run on `length` tokens.

        `left`: tokens that are unknown after each step that is run, `shares`: the share that is unknown before each, of those unknown
        at first; None: as the settings say, if none is known at first.
        """
        c, after = self.config, self._unknown(length, global_tokens, left)
        if shares is None:
            shares = [now / length for now in [length, *after][: c.steps]][c.start :]
        shares = [1.0] * c.start + list(shares)
        return per_step(c[name], c.steps, name=name, unknown=after, length=length, groups=self.groups(), shares=shares)

    def _unknown(self, length: int, global_tokens: int, left: Sequence[int] | None) -> list[int]:
        """Unknown tokens after each of the T steps; arguments as in `values`."""
        phases, after = self.phases(length, global_tokens), [length] * self.config.start + list(left or ())
        for i, phase in enumerate(phases if left is None else ()):
            later = sum(p.length for p in phases[i + 1 :])
            after += [now + later for now in self.left(phase, phase.length)]
        return after

    def chain_steps(
        self, length: int, global_tokens: int = 0, left: Sequence[int] | None = None
    ) -> list[tuple[int | None, int | None]]:
        """Steps of the head's chain in each of the T steps, as a full and as a cached step; None: as the settings of the head say.

        Arguments as in `values`.
        """
        own, c, share = self._head_steps, self.config, self.reuse.head_share if self.reuse.cached else 1
        if not varies(c.head or {}) and share == 1:
            return [(None, None)] * c.steps
        after = self._unknown(length, global_tokens, left)
        chains = head_steps(own or DEFAULT_STEPS, c.steps, unknown=after, length=length, groups=self.groups())
        return [(n if varies(c.head or {}) else None, n if share == 1 else max(1, int(n * share))) for n in chains]

    def guided(self, length: int, global_tokens: int = 0) -> list[bool]:
        """Whether each of the T steps draws with guidance."""
        return [s != 1 for s in self.values("guidance", length, global_tokens)]

    def override(
        self,
        *,
        overrides: Sequence[str] = (),
        guidance: Value | None = None,
        chain: str | None = None,
        head_steps: Value | None = None,
        **replaced: object,
    ) -> Self:
        """A sampler with some settings replaced; only what comes out of all of them must be allowed.

        A number for `guidance` replaces the end of its curve; `chain` and `head_steps` replace entries of `head`, and entries of
        `reuse` and `first_stage` those of the same name; first_stage=False, remask=False and stages=False leave those out.

        Args:
            overrides: texts such as "reuse.cached=1", as of --set, which come before the other arguments.
        """
        own = apply_overrides(self.settings, overrides)
        check_keys(own, constructor_keys(type(self)), "sampler.")
        settings: Settings = {key: value for key, value in replaced.items() if value is not None}
        if parts := {key: value for key, value in (("chain", chain), ("steps", head_steps)) if value is not None}:
            settings["head"] = {**_mapping(own, "head"), **_mapping(settings, "head"), **parts}
        for name in ("reuse", "first_stage"):
            if isinstance(settings.get(name), Mapping):
                settings[name] = {**_mapping(own, name), **settings[name]}
        if settings.get("stages"):
            settings.setdefault("steps", None)  # those of the new stages
        for name in ("first_stage", "remask", "stages"):
            if settings.get(name) is False:
                settings[name] = None
        check_keys(settings, constructor_keys(type(self)), "sampler.")
        if guidance is not None:
            bends = isinstance(own["guidance"], Mapping) and not isinstance(guidance, Mapping | list | tuple)
            settings["guidance"] = {**own["guidance"], "end": guidance} if bends else guidance
        try:
            return type(self)(**{**own, **settings})
        except MgenError as error:
            steps = self.config.steps
            own_lists = (
                key for key, value in self.settings.items() if isinstance(value, list | tuple) and key != "stages"
            )
            # Lists that were given now are not the sampler's.
            listed = any(key not in settings and own[key] == self.settings[key] for key in own_lists)
            if listed and settings.get("steps", steps) != steps:
                raise MgenError(
                    f"{error}; this sampler lists values for its {steps} steps, so their number is fixed"
                ) from error
            raise


def _mapping(settings: Settings, name: str) -> Settings:
    """The mapping at a key, empty for none; MgenError for another value."""
    found = settings.get(name)
    if not isinstance(found, Mapping | None):
        raise MgenError(f"{name} is {shown(found)}: expected a mapping of settings")
    return {**(found or {})}
