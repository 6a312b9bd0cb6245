"""Parallel decoding: the loop that every masked generator here is sampled with, on ids or on vectors.

Chang et al., "MaskGIT" (arXiv 2202.04200), algorithm of §3.2, and Li et al., "MAR" (arXiv 2406.11838), §3.3, with each of their
choices an axis: order, schedule, guidance, temperatures, head. Notation: T steps, B images, L positions, M positions evaluated
in a step, C numbers of a vector token.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks the base class up in this namespace)
from torch import Tensor

from mgen.modeling import public
from mgen.samplers.noise import Noise, rows_at
from mgen.samplers.order import priorities
from mgen.samplers.settings import SamplerSettings
from mgen.samplers.timetable import timetable

EXPLODED = 50.0  # tokens have unit variance; an undertrained head magnifies its errors in the noisiest steps


@dataclass(frozen=True, kw_only=True)
class Step:
    """State after step `index` of `count`. The tensors are live: clone what you keep.

    tokens (B, L) or (B, L, C) and known (B, L); positions (B, M) and drawn (B, M) or (B, M, C): what was drawn in this step,
    revealed or not (M may be 0).
    """

    tokens: Tensor
    known: Tensor
    positions: Tensor
    drawn: Tensor
    index: int
    count: int

    @property
    def draft(self) -> Tensor:
        """The known tokens, and this step's draws where it evaluated unknown positions; shaped like `tokens`."""
        known = self.known.view(*self.known.shape, *[1] * (self.tokens.ndim - 2))
        return torch.where(known, self.tokens, _put(self.tokens.clone(), self.positions, self.drawn))


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
            noise: draws for the whole run (`draw`).
            tokens, known: ids (B, L) or vectors (B, L, C) and a bool mask (B, L) of those that are given; they never change.
                Default: none.

        Raises:
            MgenError: guidance without a null class, settings that the generator's kind of tokens does not take.
        """
        c = self.config
        self.check(generator)
        b, device, spec = len(condition), condition.device, generator.spec
        length, vector = spec.length, spec.kind == "vector"
        guidance, temperature = self.values("guidance", length), self.values("temperature", length)
        gumbel_factor, guided = self.values("confidence_temperature", length), self.guided(length)
        priority = priorities(c.order, noise, spec.grid)  # (B, L), highest first
        extra = {"plan": generator.head.plan(c.head or {})} if vector else {}
        if tokens is None:
            shape = (b, length, spec.channels) if vector else (b, length)
            tokens = torch.zeros(shape, dtype=torch.float32 if vector else torch.int64, device=device)
        else:
            tokens = tokens.clone()
        known = torch.zeros(b, length, dtype=torch.bool, device=device) if known is None else known.clone()
        both = torch.cat([condition, torch.full_like(condition, generator.null_class or 0)])

        plan = timetable(known, self.counts)
        ranking = None
        if priority is not None:
            ranking = priority.masked_fill(known, -torch.inf).argsort(dim=1, descending=True, stable=True)  # (B, L)

        for i, t in enumerate(range(c.start, c.steps)):
            positions, drawn = known[:, :0].long(), tokens[:, :0]
            if plan.most[i]:
                if ranking is None:
                    # Unknown positions in ascending order; rows with fewer are filled up with known ones, never revealed.
                    positions = known.to(torch.uint8).argsort(dim=1, stable=True)[:, : plan.widest[i]]  # (B, M)
                else:
                    # Rows that reveal fewer go round to known positions: all differ, and those are never revealed.
                    places = (plan.done[i].unsqueeze(1) + torch.arange(plan.most[i], device=device)) % length
                    positions = ranking.gather(1, places)  # (B, M)
                twice = guided[t]
                z = generator.context(
                    torch.cat([tokens, tokens]) if twice else tokens,
                    known.repeat(2, 1) if twice else known,
                    both if twice else condition,
                    positions=positions.repeat(2, 1) if twice else positions,
                    visible=(length - plan.widest[i], length - plan.fewest[i]),
                )
                drawn, score = generator.head.sample(
                    z,
                    noise=noise.at(t, positions),
                    temperature=temperature[t],
                    guidance=guidance[t] if twice else None,
                    **extra,
                )
                if ranking is None:
                    assert noise.confidence is not None
                    score = score + gumbel_factor[t] * rows_at(noise.confidence[t], positions)
                    score = score.masked_fill(known.gather(1, positions), -torch.inf)
                    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
                else:
                    rank = torch.arange(plan.most[i], device=device)
                shown = rank < plan.reveal[i].unsqueeze(1)  # (B, M), exactly the scheduled count in each row
                _put(tokens, positions, drawn, shown)
                known.scatter_(1, positions, shown | known.gather(1, positions))
            yield Step(tokens=tokens, known=known, positions=positions, drawn=drawn, index=t, count=c.steps)
        if vector and not tokens.abs().amax().item() <= EXPLODED:
            # One text for all batches, so that a long run says it once.
            warnings.warn(
                f"drawn tokens pass {EXPLODED:.0f}, where trained ones stay near 1: the head is undertrained or its chain too "
                "coarse; try head.clip=5, more head steps, or the weights without EMA",
                stacklevel=2,
            )


def _put(tokens: Tensor, positions: Tensor, values: Tensor, where: Tensor | None = None) -> Tensor:
    """Write values (B, M) or (B, M, C) at positions (B, M) of tokens, in place; only where `where` (B, M) is True."""
    if tokens.ndim == 3:
        positions = positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        where = None if where is None else where.unsqueeze(-1)
    values = values.to(tokens.dtype)
    if where is not None:
        values = torch.where(where, values, tokens.gather(1, positions))
    return tokens.scatter_(1, positions, values)
