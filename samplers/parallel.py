"""Parallel decoding: the loop that every discrete masked generator here is sampled with.

Chang et al., "MaskGIT" (arXiv 2202.04200), algorithm of §3.2, with each of its choices an axis: order, schedule,
guidance, temperatures. Notation: T steps, B images, L positions, M positions evaluated in a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from mgen.samplers.noise import Noise
from mgen.samplers.order import ORDERS
from mgen.samplers.schedule import Schedule, remaining_counts
from mgen.samplers.values import Value, per_step, with_strength
from torch import Tensor

from mgen.errors import MgenError, check_choice
from mgen.modeling import check_keys, constructor_keys, public


@dataclass(frozen=True, kw_only=True)
class Step:
    """State after step `index` of `count`. The tensors are live: clone what you keep.

    tokens (B, L) and known (B, L); positions and drawn (B, M): what was drawn in this step, revealed or not (M may be 0).
    """

    tokens: Tensor
    known: Tensor
    positions: Tensor
    drawn: Tensor
    index: int
    count: int

    @property
    def draft(self) -> Tensor:
        """Ids (B, L): the known tokens, and this step's draws where it evaluated unknown positions."""
        return torch.where(self.known, self.tokens, self.tokens.scatter(1, self.positions, self.drawn))


@public
class ParallelSampler(SchedulerMixin, ConfigMixin):
    """How tokens are revealed and drawn. Defaults: MaskGIT's, without guidance.

    Args:
        steps: T.
        order: "confidence", "random" or "raster".
        schedule: mask fraction by name, or a list (see mgen.samplers.schedule).
        guidance: s in u + s·(c − u), constant, listed or a curve (see mgen.samplers.values); 1 is none.
        temperature: of the token draw; constant, listed or a curve.
        confidence_temperature: factor of the Gumbel noise on confidences; constant, listed or a curve.
        start: first step that is run. precision, keep_one: see mgen.samplers.schedule.remaining_counts.
        guidance_tolerance: |s − 1| up to which the null pass is left out. 0 is exact; AutoNAT's published lists hold three
            entries of 1.0001, whose null passes 1e-3 would save.
    """

    config_name = "sampler_config.json"

    @register_to_config
    def __init__(
        self,
        *,
        steps: int = 8,
        order: str = "confidence",
        schedule: Schedule = "cosine",
        guidance: Value = 1.0,
        temperature: Value = 1.0,
        confidence_temperature: Value = {"kind": "linear", "start": 4.5, "end": 0.0},  # noqa: B006  (JSON in the config)
        start: int = 0,
        precision: str = "float64",
        keep_one: bool = True,
        guidance_tolerance: float = 0.0,
    ) -> None:
        check_choice("order", order, ORDERS)
        self.counts(
            unknown=max(2, steps), length=max(2, steps)
        )  # raises on an unknown schedule or a list of wrong length
        for name in ("guidance", "temperature", "confidence_temperature"):
            per_step(self.config[name], steps, name=name)

    def counts(self, *, unknown: int, length: int) -> list[int]:
        """Tokens unknown after each step that is run, from `unknown` at first."""
        c = self.config
        return remaining_counts(
            c.schedule,
            steps=c.steps,
            unknown=unknown,
            length=length,
            start=c.start,
            precision=c.precision,
            keep_one=c.keep_one,
        )

    def override(self, *, guidance: float | None = None, **settings: Any) -> "ParallelSampler":
        """A sampler with some settings replaced; a number for `guidance` replaces the end of its curve."""
        settings = {key: value for key, value in settings.items() if value is not None}
        check_keys(settings, constructor_keys(type(self)), "sampler.")
        if guidance is not None:
            settings["guidance"] = with_strength(self.config.guidance, guidance)
        own = {key: value for key, value in self.config.items() if not key.startswith("_")}
        try:
            return type(self)(**{**own, **settings})
        except MgenError as error:
            if "steps" in settings and settings["steps"] != own["steps"]:
                raise MgenError(
                    f"{error}; this sampler lists values for its {own['steps']} steps, so their number is fixed"
                ) from error
            raise

    @torch.no_grad()
    def __call__(
        self,
        generator: Any,
        condition: Tensor,
        *,
        noise: Noise,
        tokens: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Iterator[Step]:
        """Run the steps, one per iteration.

        Args:
            generator: a mgen.generators.Generator.
            condition: class ids (B,).
            noise: draws for all `steps` steps (mgen.samplers.draw_noise); step t uses row t.
            tokens, known: ids (B, L) and a bool mask of those that are given; they never change. Default: none.

        Raises:
            MgenError: guidance without a null class.
        """
        c = self.config
        b, length = len(condition), generator.spec.length
        device = condition.device
        guidance = per_step(c.guidance, c.steps, name="guidance")
        temperature = per_step(c.temperature, c.steps, name="temperature")
        gumbel_factor = per_step(c.confidence_temperature, c.steps, name="confidence_temperature")
        guided = [abs(s - 1) > c.guidance_tolerance for s in guidance]
        if any(guided[c.start :]) and generator.null_class is None:
            raise MgenError(
                f"guidance {c.guidance} needs a null class, this {type(generator).__name__} has none: use guidance 1"
            )
        tokens = torch.zeros(b, length, dtype=torch.int64, device=device) if tokens is None else tokens.clone()
        known = torch.zeros(b, length, dtype=torch.bool, device=device) if known is None else known.clone()
        both = torch.cat([condition, torch.full_like(condition, generator.null_class or 0)])
        fixed = ORDERS[c.order]
        priority = None if fixed is None else fixed(noise)  # (B, L), highest first

        # The only read-back from the device: from here on every count is known in advance.
        unknown = (~known).sum(1).tolist()
        plans = {u: self.counts(unknown=u, length=length) if u else [0] * (c.steps - c.start) for u in set(unknown)}
        after = torch.tensor([plans[u] for u in unknown]).T  # (steps run, B)
        before = torch.cat([torch.tensor(unknown).unsqueeze(0), after[:-1]])
        reveal = before - after
        widest, most = before.amax(1).tolist(), reveal.amax(1).tolist()
        reveal = reveal.to(device)

        positions = drawn = tokens[:, :0]
        for i, t in enumerate(range(c.start, c.steps)):
            if most[i]:
                if priority is None:
                    # Unknown positions in ascending order; rows with fewer are filled up with known ones, never revealed.
                    positions = known.to(torch.uint8).argsort(dim=1, stable=True)[:, : widest[i]]  # (B, M)
                else:
                    ranked = priority.masked_fill(known, -torch.inf)
                    positions = ranked.topk(most[i], dim=1).indices  # (B, M)
                twice = guided[t]
                z = generator.context(
                    tokens.repeat(2, 1) if twice else tokens,
                    known.repeat(2, 1) if twice else known,
                    both if twice else condition,
                    positions=positions.repeat(2, 1) if twice else positions,
                )
                drawn, score = generator.head.sample(
                    z,
                    noise=_rows(noise.tokens[t], positions),
                    temperature=temperature[t],
                    guidance=guidance[t] if twice else None,
                )
                if priority is None:
                    score = score + gumbel_factor[t] * _rows(noise.confidence[t], positions)
                    score = score.masked_fill(known.gather(1, positions), -torch.inf)
                    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
                else:
                    rank = torch.arange(most[i], device=device)
                shown = rank < reveal[i].unsqueeze(1)  # (B, M), exactly the scheduled count in each row
                tokens.scatter_(1, positions, torch.where(shown, drawn, tokens.gather(1, positions)))
                known.scatter_(1, positions, shown | known.gather(1, positions))
            yield Step(tokens=tokens, known=known, positions=positions, drawn=drawn, index=t, count=c.steps)


def _rows(values: Tensor, positions: Tensor) -> Tensor:
    """values (B, L) or (B, L, V) at positions (B, M)."""
    if values.ndim == 3:
        positions = positions.unsqueeze(-1).expand(-1, -1, values.shape[-1])
    return values.gather(1, positions)
