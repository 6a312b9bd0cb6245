"""The settings of a sampler: every choice of a decoding run as a configuration that is checked when it is made."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from mgen.heads import check_draw
from mgen.samplers.noise import Noise, draw_noise
from mgen.samplers.order import Order, check_order
from mgen.samplers.reuse import Reuse
from mgen.samplers.schedule import Schedule, remaining_counts
from mgen.samplers.timetable import Phase, remaining
from mgen.samplers.values import Value, per_step, with_strength
from mgen.utils import seeds
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.modeling import check_keys, constructor_keys


class SamplerSettings(SchedulerMixin, ConfigMixin):
    """How tokens are revealed and drawn. Defaults: MaskGIT's, without guidance.

    Args:
        steps: T.
        order: "confidence", "random", "raster", "halton", "halton-rolled", or a list of all positions.
        schedule: mask fraction by name, or a list (see mgen.samplers.schedule).
        guidance: s in u + s·(c − u), constant, listed or a curve (see mgen.samplers.values); 1 is none.
        temperature: of the token draw; constant, listed or a curve.
        confidence_temperature: factor of the Gumbel noise on confidences; constant, listed or a curve.
        start: first step that is run. precision, keep_one: see mgen.samplers.schedule.remaining_counts.
        guidance_tolerance: |s − 1| up to which the null pass is left out. 0 is exact; AutoNAT's published lists hold three
            entries of 1.0001, whose null passes 1e-3 would save.
        head: how the head draws a token: a diffusion head by mgen.heads.chains.ChainSettings, e.g. {chain: ancestral, steps: 100}, a
            categorical one by mgen.heads.categorical.DrawSettings, e.g. {top_k: 100}.
        reuse: what is kept between steps (mgen.samplers.reuse.Reuse), e.g. {local: 1, full_first: 12}.
        redraw: the confidence order ranks one draw at temperature 1 and keeps a second one (ReCAP's MaskGIT-r).
        pivots: of generators that draw pivots first (Hi-MAR): settings of a sampler for them; None: no pivots.
        revise: every step of the confidence order draws known tokens anew too (Halton-MaskGIT's confidence sampler).
        global_steps: of tokens of which some describe the image as a whole: so many steps, the first ones, draw those and the
            others the rest, each by the schedule; None: in proportion to their number.
    """

    config_name = "sampler_config.json"

    @register_to_config
    def __init__(
        self,
        *,
        steps: int = 8,
        order: Order = "confidence",
        schedule: Schedule = "cosine",
        guidance: Value = 1.0,
        temperature: Value = 1.0,
        confidence_temperature: Value = {"kind": "linear", "start": 4.5, "end": 0.0},  # noqa: B006  (JSON in the config)
        start: int = 0,
        precision: str = "float64",
        keep_one: bool | str = True,
        guidance_tolerance: float = 0.0,
        head: Mapping[str, Any] | None = None,
        reuse: Mapping[str, Any] | None = None,
        redraw: bool = False,
        revise: bool = False,
        pivots: Mapping[str, Any] | None = None,
        global_steps: int | None = None,
    ) -> None:
        for name, value in (("steps", steps), ("start", start)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise MgenError(f"{name} is {value!r}: expected a whole number")
        if global_steps is not None and (not isinstance(global_steps, int) or not 0 < global_steps < steps):
            raise MgenError(
                f"global_steps is {global_steps!r}: a whole number from 1 to steps − 1, {steps - 1}, is needed"
            )
        check_order(order)
        check_choice("precision", precision, ("float32", "float64", "mar", "halton", "halton-inclusive"))
        for name, on in (("redraw", redraw), ("revise", revise)):
            if on and order != "confidence":
                raise MgenError(f"{name} is for order confidence, not {order!r}")
        self.groups()  # raises on a bad policy
        if revise and (redraw or self.reuse.any_local):
            raise MgenError(
                "revise draws known tokens anew in every step: it goes neither with redraw nor with local steps"
            )
        # Raises on a bad schedule; whether there are tokens enough to borrow from is seen when their number is known.
        tokens = steps if schedule == "single" else max(2, steps)
        remaining_counts(schedule, steps=steps, unknown=tokens, length=tokens, start=start, precision=precision)
        if keep_one not in (True, False, "borrow"):
            raise MgenError(f"keep_one is {keep_one!r}: expected true, false or borrow")
        for name in ("guidance", "temperature", "confidence_temperature"):
            per_step(self.config[name], steps, name=name)
        if head is not None and not isinstance(head, Mapping):
            raise MgenError(f"head is {head!r}: expected a mapping, such as {{chain: ddim, steps: 25}}")
        if not isinstance(guidance_tolerance, int | float):
            raise MgenError(f"guidance_tolerance is {guidance_tolerance!r}: expected a number")
        check_draw(head or {})
        if isinstance(pivots, Mapping) and pivots.get("pivots") is not None:
            raise MgenError("pivots have no pivots of their own: leave pivots.pivots out")
        if (sampler := self.pivot_sampler) is not None and sampler.config.revise:
            raise MgenError("pivots.revise draws known pivots anew, whose features have been read: leave it out")

    @classmethod
    def from_settings(cls, settings: Any, where: str) -> Self:
        """A sampler from a mapping of a file or a configuration; MgenError that names `where` for anything wrong in it."""
        if not isinstance(settings, Mapping):
            raise MgenError(f"{where} is {settings!r}: expected a mapping of sampler settings")
        check_keys(dict(settings), constructor_keys(cls), f"{where}.")
        try:
            return cls(**settings)
        except (TypeError, ValueError) as error:
            raise MgenError(f"{where}: {error}") from error

    @classmethod
    def suited(cls, generator: Any, settings: Any = None, where: str = "sampler") -> Self:
        """A sampler from `settings`; where they name no order, vectors are drawn in random order, as ids by confidence.

        Generators that draw pivots first do so unless `pivots` is None: in up to 32 steps, as published for 64 pivots.
        """
        given = {} if settings is None else settings
        if not isinstance(given, Mapping):
            return cls.from_settings(given, where)
        if generator.capabilities.order == "causal":
            given = {"steps": generator.units.length, "order": "raster", "schedule": "single", **given}
        if not generator.head.has_log_prob and "order" not in given:
            given = {**given, "order": "random"}
        if hasattr(generator, "first") and given.get("pivots", {}) is not None:
            stage, own = generator.first, given.get("pivots", {})
            if isinstance(own, Mapping):
                order = {} if stage.head.has_log_prob else {"order": "random"}
                own = {"steps": min(32, stage.units.length), **order, **own}
            given = {**given, "pivots": own}
        return cls.from_settings(given, where)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the constructor, as they are written to files."""
        return {key: value for key, value in self.config.items() if not key.startswith("_")}

    @property
    def reuse(self) -> Reuse:
        """The policy of reuse."""
        return Reuse.of(self.config.reuse)

    @property
    def pivot_sampler(self) -> Self | None:
        """The sampler of the pivots."""
        pivots = self.config.pivots
        return None if pivots is None else type(self).from_settings(pivots, "sampler.pivots")

    def groups(self) -> list[list[int]]:
        """The steps that are run, cut into groups of one full step and the local ones after it."""
        return self.reuse.grouped(self.config.start, self.config.steps)

    def counts(self, *, unknown: int, length: int, steps: int | None = None) -> list[int]:
        """Tokens unknown after each step that is run, from `unknown` of `length` at first; `steps` replaces T."""
        c = self.config
        return remaining_counts(
            c.schedule,
            steps=c.steps if steps is None else steps,
            unknown=unknown,
            length=length,
            start=c.start,
            precision=c.precision,
            keep_one=c.keep_one,
        )

    def phases(self, length: int, global_tokens: int = 0) -> list[Phase]:
        """The phases of a run on `length` tokens: one, or with global ones among them two, those first."""
        steps = self.config.steps
        if not global_tokens:
            return [Phase(steps=steps - self.config.start, first=0, stop=length, counts=self.counts)]
        first = self.config.global_steps or min(max(1, round(steps * global_tokens / length)), steps - 1)
        return [
            Phase(steps=first, first=0, stop=global_tokens, counts=partial(self.counts, steps=first)),
            Phase(
                steps=steps - first, first=global_tokens, stop=length, counts=partial(self.counts, steps=steps - first)
            ),
        ]

    def values(self, name: str, length: int, global_tokens: int = 0) -> list[float]:
        """`guidance`, `temperature` or `confidence_temperature` at each of the T steps of a run on `length` tokens."""
        c = self.config
        after = [length] * c.start + remaining(self.phases(length, global_tokens))
        return per_step(c[name], c.steps, name=name, unknown=after, length=length, groups=self.groups())

    def guided(self, length: int, global_tokens: int = 0) -> list[bool]:
        """Whether each of the T steps takes a null pass."""
        return [abs(s - 1) > self.config.guidance_tolerance for s in self.values("guidance", length, global_tokens)]

    def check(self, generator: Any) -> None:
        """Raise MgenError for settings that this generator or its kind of tokens does not take."""
        c, spec = self.config, generator.units
        if c.pivots is not None and not hasattr(generator, "first"):
            raise MgenError(f"{type(generator).__name__} draws no pivots: leave the sampler's pivots out")
        if (sampler := self.pivot_sampler) is not None:
            sampler.check(generator.first)
        self._check_phases(generator, spec)
        if any(self.guided(spec.length, spec.global_tokens)[c.start :]) and generator.null_class is None:
            raise MgenError(
                f"guidance {c.guidance} needs a null class, this {type(generator).__name__} has none: use guidance 1"
            )
        if not isinstance(c.order, str) and len(c.order) != spec.length:
            raise MgenError(f"order lists {len(c.order)} positions, this model has {spec.length}")
        if isinstance(c.order, str) and c.order.startswith("halton") and spec.grid is None:
            raise MgenError("order 'halton' needs tokens with a place in the image: use random, raster or a list")
        reuse = self.reuse
        if reuse.any_local and not generator.capabilities.cached_steps:
            raise MgenError(f"{type(generator).__name__} has no local evaluation: set reuse.local=0")
        if generator.capabilities.carried_features and reuse.features and c.revise:
            raise MgenError("revise changes known tokens, whose features are carried: set reuse.features=false")
        if not generator.head.has_log_prob:
            if c.order == "confidence":
                raise MgenError(
                    "order 'confidence' ranks draws by probability, which vectors have none of: use order random"
                )
            if c.steps > spec.length:
                raise MgenError(f"steps is {c.steps}, this model has {spec.length} tokens: at most one step per token")
        elif reuse.head_share != 1:
            raise MgenError(f"reuse.head_share is {reuse.head_share}: only a diffusion head has steps to share")
        for settings in (c.head or {}, self._local_head()):
            generator.head.check(settings, temperatures=self.values("temperature", spec.length, spec.global_tokens))

    def _check_phases(self, generator: Any, spec: Any) -> None:
        """MgenError unless the steps suit the order of the tokens: one after the other, or global ones first."""
        c, name = self.config, type(generator).__name__
        if (generator.capabilities.order == "causal") and (
            c.order != "raster" or c.schedule != "single" or c.steps != spec.length or c.start
        ):
            raise MgenError(
                f"{name} draws one token after the other: it takes steps {spec.length}, order raster and schedule single, not "
                f"steps {c.steps}, order {c.order} and schedule {c.schedule}"
                + (f" from step {c.start} on" if c.start else "")
            )
        if not spec.global_tokens:
            if c.global_steps is not None:
                raise MgenError(f"{name} draws no global tokens: leave global_steps out")
            return
        if c.steps < 2:
            raise MgenError("global tokens are drawn before the others: at least 2 steps are needed")
        if c.start or c.revise or not isinstance(c.schedule, str):
            raise MgenError(
                "start, revise and listed schedules are for tokens of one kind: leave them out with global tokens"
            )

    def _local_head(self) -> dict[str, Any]:
        """Settings of the head in local steps."""
        head = dict(self.config.head or {})
        if self.reuse.head_share != 1:
            head["steps"] = max(1, int(head.get("steps", 100) * self.reuse.head_share))
        return head

    def plans(self, generator: Any) -> tuple[Any, Any]:
        """What the draws of full steps share, and those of local steps."""
        plan = generator.head.plan(self.config.head or {})
        shared = self.reuse.head_share == 1 or not self.reuse.any_local
        return plan, plan if shared else generator.head.plan(self._local_head())

    def draw(self, generator: Any, image_seeds: Sequence[int]) -> Noise:
        """The draws of a run of this sampler with `generator`, one image per seed."""
        c, draws = self.config, generator.head.noise_spec(self.config.head or {})
        fixed = c.order != "confidence"
        noise = draw_noise(
            image_seeds,
            steps=c.steps,
            length=generator.units.length,
            draws=draws,
            fixed=fixed,
            redraw=c.redraw,
            once=(generator.capabilities.order == "causal"),
        )
        if (sampler := self.pivot_sampler) is None:
            return noise
        own = sampler.draw(generator.first, [seeds.fold(s, "pivots") for s in image_seeds])
        return dataclasses.replace(noise, pivots=own)

    def override(
        self,
        *,
        guidance: float | None = None,
        chain: str | None = None,
        head_steps: int | None = None,
        **settings: Any,
    ) -> Self:
        """A sampler with some settings replaced.

        A number for `guidance` replaces the end of its curve; `chain` and `head_steps` replace entries of `head`,
        and entries of `reuse` and `pivots` those of the same name; pivots=False leaves the pivots out.
        """
        settings = {key: value for key, value in settings.items() if value is not None}
        parts = {key: value for key, value in (("chain", chain), ("steps", head_steps)) if value is not None}
        if parts:
            settings["head"] = {**(self.config.head or {}), **settings.get("head", {}), **parts}
        for name in ("reuse", "pivots"):
            if isinstance(settings.get(name), Mapping) and self.config[name]:
                settings[name] = {**self.config[name], **settings[name]}
        if settings.get("pivots") is False:
            settings["pivots"] = None
        check_keys(settings, constructor_keys(type(self)), "sampler.")
        if guidance is not None:
            settings["guidance"] = with_strength(self.config.guidance, guidance)
        own = self.settings
        try:
            return type(self)(**{**own, **settings})
        except MgenError as error:
            if "steps" in settings and settings["steps"] != own["steps"]:
                raise MgenError(
                    f"{error}; this sampler lists values for its {own['steps']} steps, so their number is fixed"
                ) from error
            raise
