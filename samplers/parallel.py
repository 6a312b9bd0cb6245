"""The sampler: settings, a check against the generator, the plan, the noise, and the run (loop.py) of one stage or two."""

import dataclasses
from collections.abc import Generator as Coroutine
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mgen.generators import Cascade, Generator
from mgen.samplers import forward
from mgen.samplers.checks import check_fits, check_given, check_rows
from mgen.samplers.loop import decode
from mgen.samplers.noise import Noise, make_noise
from mgen.samplers.plan import Plan, make_plan
from mgen.samplers.settings import SamplerSettings
from mgen.samplers.state import State
from mgen.samplers.step import Step
from mgen.utils import seeds
from mgen.utils.modeling import public

Given = tuple[Tensor, Tensor]  # tokens, and a bool mask of those that are given


@public
class ParallelSampler(SamplerSettings):
    """Draws the tokens of a batch of images step by step; its settings are those of SamplerSettings."""

    def check(self, generator: Generator | Cascade) -> None:
        """Raise MgenError for settings that this generator or its kind of tokens does not take."""
        check_fits(self, generator)

    def plan(self, generator: Generator | Cascade) -> Plan:
        """The plan of a run that is given no tokens, as `str` shows it."""
        self.check(generator)
        return self._plan(generator)

    def _plan(self, generator: Generator | Cascade) -> Plan:
        first = None
        if isinstance(generator, Cascade) and self.first_stage is not None:
            first = self.first_stage._plan(generator.first)
        return make_plan(self, generator.units, generator.capabilities, first_stage=first)

    def make_noise(self, generator: Generator | Cascade, image_seeds: Sequence[int]) -> Noise:
        """The noise of a run of this sampler with `generator`, one image per seed."""
        noise = make_noise(
            image_seeds,
            steps=self.config.steps,
            length=generator.units.length,
            spec=generator.head.noise_spec(self.config.head or {}),
            fixed=not self.order.ranked,
            redraw=self.order.redraw,
            once=generator.capabilities.order == "causal",
        )
        if (sampler := self.first_stage) is None or not isinstance(generator, Cascade):
            return noise
        # The word is part of the seed: another one would change every image.
        own = sampler.make_noise(generator.first, [seeds.fold(s, "pivots") for s in image_seeds])
        return dataclasses.replace(noise, first_stage=own)

    @torch.no_grad()
    def __call__(
        self,
        generator: Generator | Cascade,
        class_ids: Tensor,
        *,
        noise: Noise,
        tokens: Tensor | None = None,
        known: Tensor | None = None,
        first_stage: Given | None = None,
        complete_first_stage: bool = False,
        unused_tail: int = 0,
    ) -> Iterator[Step]:
        """Run the steps, one per iteration.

        Args:
            generator: a Generator or a Cascade. class_ids: (B,).
            noise: of the whole run (`make_noise`).
            tokens, known: ids (B, L) or vectors (B, L, C) and a bool mask (B, L) of those that are given; they never change.
                Default: none.
            first_stage: the same for the first stage, (B, S) or (B, S, C), of a generator of two; without it a run with given
                tokens leaves the first stage out.
            complete_first_stage: draw the tokens of the first stage's last step too, though nothing reads them.
            unused_tail: so many tokens, the last ones, reach no pixel (of some tokenizers): where tokens are drawn one after the
                other they are not drawn, and stay unknown.

        Raises:
            MgenError: guidance without a null class, settings that the generator or its kind of tokens does not take.
        """
        self.check(generator)
        given = None if tokens is None or known is None else (tokens, known)
        tail = unused_tail if generator.capabilities.skips_tail else 0
        if isinstance(generator, Generator):
            yield from self._run(generator, class_ids, noise, given, unused_tail=tail)
            return
        sampler, prefix = self.first_stage, None
        if sampler is not None and (given is None or first_stage is not None):
            assert noise.first_stage is not None
            state = yield from sampler._run(
                generator.first,
                class_ids,
                noise.first_stage,
                first_stage,
                collect=True,
                features_only=not complete_first_stage,
            )
            prefix = generator.prefix(state.features, None if first_stage is None else state.given)
        prefix = generator.prefix() if prefix is None else prefix
        yield from self._run(generator.second, class_ids, noise, given, prefix=prefix)

    def _run(
        self,
        generator: Generator,
        class_ids: Tensor,
        noise: Noise,
        given: Given | None,
        *,
        prefix: Tensor | None = None,
        collect: bool = False,
        features_only: bool = False,
        unused_tail: int = 0,
    ) -> Coroutine[Step, None, State]:
        """The steps of one stage; returns its last state.

        Args:
            prefix: what a second stage reads of the first.
            collect: this is a first stage, whose context vectors are read. features_only: and nothing else of its last step.
        """
        spec, able, device = generator.units, generator.capabilities, class_ids.device
        if given is None:
            tokens = torch.zeros((len(class_ids), *spec.shape), dtype=spec.dtype, device=device)
            known = torch.zeros(len(class_ids), spec.length, dtype=torch.bool, device=device)
        else:
            tokens, known = (x.clone() for x in forward.to_units(generator, *given))
            check_given(able, known)
        phases = self.phases(spec.length, spec.global_tokens)
        # The only read-back from the device before the end of a run, and none if no tokens are given.
        hidden = [[p.length] * len(known) for p in phases]
        if given is not None:
            hidden = torch.stack([(~known[:, p.first : p.stop]).sum(1) for p in phases]).tolist()
        plan = make_plan(self, spec, able, hidden, device=device, features_only=features_only, unused_tail=unused_tail)
        check_rows(self, plan)
        guided = any(step.null_rows for step in plan.steps)
        rows, cache = forward.start(generator, class_ids, guided=guided, carry=plan.carries, prefix=prefix)
        state = State(tokens=tokens, known=known, given=known.clone(), class_ids=rows, cache=cache)
        order = self.order.strategy(noise, spec, known, raster=self.reuse.inside == "raster")
        draw = forward.token_draw(generator, noise, self.config.head or {}, self.cached_head)
        steps = decode(generator, plan, order, draw, state, collect=collect)
        for step, state, positions, drawn in steps:
            if step.index == plan.count - 1 and spec.vocab_size is not None:
                state.tokens.clamp_(max=spec.vocab_size - 1)  # a drawn mask, where the head can draw one
            shown = dict(tokens=state.tokens, known=state.known, positions=positions, drawn=drawn.tokens)
            shown = forward.to_tokens(generator, **shown)
            yield Step(**shown, index=step.index, count=plan.count, first_stage=collect, map=drawn.map)
        return state
