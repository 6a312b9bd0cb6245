"""Parallel decoding: the loop that every discrete masked generator here is sampled with.

Chang et al., "MaskGIT" (arXiv 2202.04200), algorithm of §3.2, with each of its choices an axis: order, schedule,
guidance, temperatures. Notation: T steps, B images, L positions, M positions evaluated in a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks the base class up in this namespace)
from torch import Tensor

from mgen.errors import MgenError
from mgen.modeling import public
from mgen.samplers.noise import Noise
from mgen.samplers.order import ORDERS
from mgen.samplers.settings import SamplerSettings
from mgen.samplers.values import per_step


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
class ParallelSampler(SamplerSettings):
    """Draws the tokens of a batch of images step by step; its settings are those of SamplerSettings."""

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

        for i, t in enumerate(range(c.start, c.steps)):
            positions = drawn = tokens[:, :0]
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
