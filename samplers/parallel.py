"""Parallel decoding: the loop that every masked generator here is sampled with, on ids or on vectors.

Chang et al., "MaskGIT" (arXiv 2202.04200), algorithm of §3.2, and Li et al., "MAR" (arXiv 2406.11838), §3.3, with each of their
choices an axis: order, schedule, guidance, temperatures, head. Notation: T steps, B images, L positions, M positions evaluated
in a step, G positions of a group, C numbers of a vector token. What a step evaluates is in run.py, reuse in reuse.py.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks the base class up in this namespace)
from torch import Tensor

from mgen.layers.attention import gather_rows
from mgen.modeling import public
from mgen.samplers.noise import Noise
from mgen.samplers.run import Run
from mgen.samplers.settings import SamplerSettings
from mgen.samplers.state import put

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
        return torch.where(known, self.tokens, put(self.tokens.clone(), self.positions, self.drawn))


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
            MgenError: guidance without a null class, settings that the generator or its kind of tokens does not take.
        """
        c = self.config
        self.check(generator)
        run = Run(self, generator, condition, noise, tokens, known)
        for group in self.groups():
            for t, (positions, drawn) in zip(group, self._decode(run, group)):
                if t == c.steps - 1 and run.tokens.ndim == 2:
                    run.tokens.clamp_(max=generator.spec.vocab - 1)  # a drawn mask, where the head can draw one
                yield Step(tokens=run.tokens, known=run.known, positions=positions, drawn=drawn, index=t, count=c.steps)
            run.memory.forget()
        if run.tokens.ndim == 3 and not run.tokens.abs().amax().item() <= EXPLODED:
            # One text for all batches, so that a long run says it once.
            warnings.warn(
                f"drawn tokens pass {EXPLODED:.0f}, where trained ones stay near 1: the head is undertrained or its chain too "
                "coarse; try head.clip=5, more head steps, or the weights without EMA",
                stacklevel=2,
            )

    def _decode(self, run: Run, group: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Take the steps of a group; yields the positions (B, M) that each evaluated and what it drew there."""
        nothing = run.known[:, :0].long(), run.tokens[:, :0]
        counts = [run.times.most[t - run.start] for t in group]
        while group and not counts[0]:  # the first step that reveals something is the full one
            run.advance(group[0], twice=run.twice(group[:1]))
            yield nothing
            group, counts = group[1:], counts[1:]
        if not group:
            return
        t, positions, drawn, members = group[0], *self._full(run, group, counts)
        yield positions, drawn
        done = before = counts[0]
        guides = group[:-1] if run.reuse.late_guidance else group[1:]
        for i, (t, count, guide) in enumerate(zip(group[1:], counts[1:], guides)):
            if not count:
                yield nothing
                continue
            # With the latest rows alone refreshed, null rows that a later step reads must not be left out now.
            later = guides[i:] if run.reuse.refresh == "latest" else [guide]
            twice = any(run.guided[g] for g in later)
            z = run.local(members, done=done, count=count, before=before, twice=twice)
            positions = members[:, done : done + count]
            drawn, _ = run.draw(z, t, positions, guide=guide, local=True)
            run.reveal(positions, drawn, torch.ones_like(positions, dtype=torch.bool))
            done, before = done + count, count
            yield positions, drawn

    def _full(self, run: Run, group: list[int], counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The full step of a group: positions and draws of the step, and the positions (B, G) of the whole group."""
        t, total, count, twice = group[0], sum(counts), counts[0], run.twice(group)
        reveal = run.times.reveal[t - run.start].unsqueeze(1)  # (B, 1): exactly so many in each row
        if run.ranking is not None:
            members = run.next(group, total)
            positions = members[:, :count]
            drawn, _ = run.draw(run.full(group, positions, twice=twice), t, positions)
            run.reveal(positions, drawn, torch.arange(count, device=reveal.device) < reveal)
            return positions, drawn, members
        if run.revise:
            positions = torch.arange(run.length, device=reveal.device).expand(len(run.known), -1)
            drawn, score = run.candidates(run.full(group, positions, twice=twice), t, positions)
            i = t - run.start
            run.revise_all(drawn, score, run.times.done[i] + run.times.reveal[i])
            return positions, drawn, positions
        positions = run.unknown(t)
        z = run.full(group, positions, twice=twice)
        drawn, score = run.candidates(z, t, positions)
        rank = score.argsort(dim=1, descending=True, stable=True)  # (B, M), the surest first
        best = rank[:, :total]
        members = positions.gather(1, best)
        if run.redraw:  # the candidates settled the places; the tokens are drawn anew
            positions, best = members[:, :count], best[:, :count]
            rows = best.repeat(len(z) // len(best), 1)
            drawn, _ = run.draw(gather_rows(z, rows), t, positions)
            shown = torch.arange(count, device=reveal.device) < reveal
        else:
            shown = rank.argsort(dim=1) < reveal
        run.reveal(positions, drawn, shown)
        return positions, drawn, members
