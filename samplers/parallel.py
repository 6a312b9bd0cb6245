"""Parallel decoding: the loop that every masked generator here is sampled with, on ids or on vectors.

Chang et al., "MaskGIT" (arXiv 2202.04200), algorithm of §3.2, and Li et al., "MAR" (arXiv 2406.11838), §3.3, with each of their
choices an axis: order, schedule, guidance, temperatures, head. Notation: T steps, B images, L positions, M positions evaluated
in a step, G positions of a group, C numbers of a vector token. What a step evaluates is in run.py, reuse in reuse.py.
"""

from collections.abc import Generator, Iterator
from typing import Any

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks the base class up in this namespace)
from torch import Tensor

from mgen.nn.attention import gather_rows
from mgen.samplers.noise import Noise
from mgen.samplers.run import Run
from mgen.samplers.settings import SamplerSettings
from mgen.samplers.step import Step
from mgen.utils.modeling import public


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
        pivots: tuple[Tensor, Tensor] | None = None,
        whole_pivots: bool = False,
        unread: int = 0,
    ) -> Iterator[Step]:
        """Run the steps, one per iteration.

        Args:
            generator: a mgen.generators.Generator.
            condition: class ids (B,).
            noise: draws for the whole run (`draw`).
            tokens, known: ids (B, L) or vectors (B, L, C) and a bool mask (B, L) of those that are given; they never change.
                Default: none.
            pivots: the same for the pivots (B, S) or (B, S, C) of a generator that draws them first; without them a run with given
                tokens draws no pivots.
            whole_pivots: draw the pivots of their last step too, though nothing reads them.
            unread: so many tokens, the last ones, reach no pixel (of some tokenizers): where one token is drawn after the other
                they are not drawn, and stay unknown.

        Raises:
            MgenError: guidance without a null class, settings that the generator or its kind of tokens does not take.
        """
        self.check(generator)
        if hasattr(generator, "first"):
            prefix = yield from self._pivots(generator, condition, noise, pivots, known is not None, whole_pivots)
            generator = generator.second
        else:
            prefix = None
        run = Run(self, generator, condition, noise, tokens, known, prefix=prefix)
        yield from self._steps(
            run, unread=unread if (generator.capabilities.order == "causal") and generator.windows is None else 0
        )

    def _pivots(
        self, generator: Any, condition: Tensor, noise: Noise, given: Any, edits: bool, whole: bool
    ) -> Generator[Step, None, Any]:
        """Draw the pivots, if there are to be any; returns the generator's second stage."""
        sampler = self.pivot_sampler
        if sampler is None or (edits and given is None):
            return generator.prefix()
        assert noise.pivots is not None
        run = Run(sampler, generator.first, condition, noise.pivots, *(given or (None, None)), collect=True)
        run.last = -1 if whole else run.last
        yield from sampler._steps(run, pivots=True)
        return generator.prefix(run.features, run.given if given is not None else None)

    def _steps(self, run: Run, pivots: bool = False, unread: int = 0) -> Iterator[Step]:
        c, generator, groups = self.config, run.generator, run.groups(self.groups())
        for group in groups[: len(groups) - unread]:
            for t, (positions, drawn) in zip(group, self._decode(run, group)):
                if t == c.steps - 1 and not run.tokens.is_floating_point():
                    run.tokens.clamp_(max=generator.tokens.vocab_size - 1)  # a drawn mask, where the head can draw one
                state = dict(tokens=run.tokens, known=run.known, positions=positions, drawn=drawn)
                if generator.windows is not None:
                    state = generator.windows.unfold(**state)
                yield Step(**state, index=t, count=c.steps, pivots=pivots, map=run.drawn_map)
            run.memory.free()
        run.warn_if_exploded()

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
