"""The sampler: settings, a check against the generator, the plan, the noise, and the run (loop.py) of one stage or two."""

import dataclasses
from collections.abc import Generator as Coroutine
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from mgen.generators import Cascade, Generator
from mgen.samplers import forward
from mgen.samplers.condition import Difference
from mgen.samplers.loop import decode
from mgen.samplers.noise import Noise, make_noise, make_own_noise, make_select_noise
from mgen.samplers.order import Strategy
from mgen.samplers.plan import Plan
from mgen.samplers.planner import make_plan
from mgen.samplers.remask import Path, make_path
from mgen.samplers.remask_order import remasked
from mgen.samplers.settings import SamplerSettings
from mgen.samplers.state import State
from mgen.samplers.step import Step
from mgen.samplers.takes import check_generator, unguided
from mgen.samplers.values import by_tokens
from mgen.tokens import TokenSpec
from mgen.utils import seeds
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.modeling import public

Given = tuple[Tensor, Tensor]  # tokens, and a bool mask of those that are given


@public
class ParallelSampler(SamplerSettings):
    """Draws the tokens of a batch of images step by step; its settings are those of SamplerSettings."""

    def check(self, generator: Generator | Cascade) -> None:
        """Raise MgenError for settings that this generator or its kind of tokens does not take; see mgen.samplers.takes."""
        if self.first_stage is not None and isinstance(generator, Cascade):
            self.first_stage.check(generator.first)
        check_generator(self, generator)

    def _guides(self, generator: Generator, given: Given | None) -> bool:
        """Whether a step of a run is guided, or may be, where that depends on the numbers of unknown tokens of the images."""
        units, c = generator.units, self.config
        by_rows = by_tokens(c.guidance, "interval_of") and (given is not None or self.random_counts)
        return by_rows or any(self.guided(units.length, units.global_tokens)[c.start :])

    def plan(self, generator: Generator | Cascade) -> Plan:
        """The plan of a run that is given no tokens, as `str` shows it."""
        self.check(generator)
        first = None
        if isinstance(generator, Cascade) and self.first_stage is not None:
            guide_features = generator.capabilities.guided_by == "guide" and self._guides(generator.second, None)
            self.first_stage.check(generator.first)
            stage, able = generator.first, generator.first.capabilities
            first = make_plan(self.first_stage, stage.units, able, guide_features=guide_features)
        return make_plan(self, generator.units, generator.capabilities, first_stage=first)

    def make_noise(self, generator: Generator | Cascade, image_seeds: Sequence[int]) -> Noise:
        """The noise of a run of this sampler with `generator`, one image per seed."""
        noise = make_noise(
            image_seeds,
            steps=self.config.steps,
            length=generator.units.length,
            spec=generator.head.noise_spec(self.longest_head),
            fixed=not self.order.ranked and self.remask is None,
            redraw=self.order.redraw,
            once=generator.capabilities.one_by_one,
        )
        own = partial(make_own_noise, image_seeds, steps=self.config.steps, length=generator.units.length)
        if self.random_counts:
            noise = dataclasses.replace(noise, counts=own("counts"))
        if (remask := self.remask) is not None:
            if remask.free or remask.kind != "conf":
                noise = dataclasses.replace(noise, remask=own("remask"))
            if not remask.free and self.order.name == "random":
                noise = dataclasses.replace(noise, queue=own("queue"))
        if any(select.by == "random" for select in self.selections):
            noise = dataclasses.replace(noise, select=make_select_noise(image_seeds, length=generator.units.length))
        if self.first_stage is None or not isinstance(generator, Cascade):
            return noise
        # The word is part of the seed: another one would change every image.
        first = [seeds.fold(s, "pivots") for s in image_seeds]
        return dataclasses.replace(noise, first_stage=self.first_stage.make_noise(generator.first, first))

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
            class_ids: (B,). noise: of the whole run (`make_noise`).
            tokens, known: ids (B, L) or vectors (B, L, C) and a bool mask (B, L) of those that are given; they never change.
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
        sampler, guided = self.first_stage, self._guides(generator.second, given)
        if sampler is None or (given is not None and first_stage is None):
            prefix = generator.prefix(guided=guided)
        else:
            assert noise.first_stage is not None
            run = sampler._run(
                generator.first,
                class_ids,
                noise.first_stage,
                first_stage,
                collect=True,
                features_only=not complete_first_stage,
                guide_features=guided and generator.capabilities.guided_by == "guide",
            )
            state = yield from run
            prefix = generator.prefix(state.features, None if first_stage is None else state.given, guided=guided)
        yield from self._run(generator.second, class_ids, noise, given, prefix=prefix)

    def _free_path(self, noise: Noise, known: Tensor, given: Given | None) -> Path | None:
        """What remasking with free counts does to tokens of which known (B, L) are given, if any is; None without it."""
        if (remask := self.remask) is None or not remask.free:
            return None
        assert noise.remask is not None
        # The path is made on the CPU; without given tokens nothing is read back from the device for it.
        at_first = torch.zeros(known.shape, dtype=torch.bool) if given is None else known.cpu()
        numbers = noise.remask[self.config.start :]
        return make_path(self.rates(known.shape[1]), numbers, at_first, conf=remask.kind == "conf")

    def _strategy(self, noise: Noise, units: TokenSpec, known: Tensor, path: Path | None) -> Strategy:
        """Which positions come next, in a run with given tokens known (B, L)."""
        if (remask := self.remask) is None:
            return self.order.strategy(noise, units, known, raster=self.reuse.inside == "raster")
        return remasked(remask, self.order, noise, units, known, self.rates(units.length), path)

    def _token_draw(self, generator: Generator, plan: Plan, noise: Noise) -> forward.TokenDraw:
        """How tokens are drawn, with what the head makes for each length of its chain."""
        head, chains = generator.guided_head, {step.head_steps for step in plan.steps}
        chains |= {step.split.head_steps for step in plan.steps if step.split is not None}
        plans = {count: head.plan(self.head(count)) for count in chains}
        moment = self.order.name == "moment"
        return forward.TokenDraw(head=generator.head, guided=head, plans=plans, noise=noise, moment=moment)

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
        guide_features: bool = False,
        unused_tail: int = 0,
    ) -> Coroutine[Step, None, State]:
        """The steps of one stage; returns its last state.

        Args:
            prefix: what a second stage reads of the first.
            collect: this is a first stage, whose context vectors are read. features_only: and nothing else of its last step.
                guide_features: those of a guide too.
        """
        spec, able, device = generator.units, generator.capabilities, class_ids.device
        tokens, known = _at_first(generator, given, len(class_ids), device)
        phases = self.phases(spec.length, spec.global_tokens)
        # The only read-back from the device before the end of a run, and none if no tokens are given.
        hidden = [[p.length] * len(known) for p in phases]
        if given is not None:
            hidden = torch.stack([(~known[:, p.first : p.stop]).sum(1) for p in phases]).tolist()
        path = self._free_path(noise, known, given)
        made: Settings = dict(features_only=features_only, unused_tail=unused_tail, counts=noise.counts, path=path)
        made["guide_features"] = guide_features
        plan = make_plan(self, spec, able, hidden, device=device, **made)
        if self.reuse.equal_counts and any(step.visible[0] != step.visible[1] for step in plan.steps):
            raise MgenError(
                "cached and lazy steps need as many given tokens in every image of a batch: use batch_size 1, or "
                f"{self.reuse.off}"
            )
        guided = any(step.null_rows for step in plan.steps)
        if guided and able.guided_by is None:
            raise unguided(self, type(generator).__name__)
        rows, cache = forward.start(generator, class_ids, guided=guided, carry=plan.carries, prefix=prefix)
        order = self._strategy(noise, spec, known, path)
        own, difference = known.clone(), Difference(spec.length)
        state = State(tokens=tokens, known=known, given=own, class_ids=rows, cache=cache, difference=difference)
        state = order.begin(state)
        draw = self._token_draw(generator, plan, noise)
        kept = len(class_ids) * (2 if guide_features else 1) if collect else 0
        steps = decode(generator, plan, order, draw, state, collect=kept)
        for step, state, positions, drawn in steps:
            if step.index == plan.count - 1 and spec.vocab_size is not None:
                state.tokens.clamp_(max=spec.vocab_size - 1)  # a drawn mask, where the head can draw one
            shown = dict(tokens=state.tokens, known=state.known, positions=positions, drawn=drawn.tokens)
            if generator.windows is not None:
                shown = generator.windows.unfold(**shown)
            yield Step(**shown, index=step.index, count=plan.count, first_stage=collect, map=drawn.map)
            if generator.windows is not None:  # what a callback has changed
                state.tokens.copy_(generator.windows.to_windows(shown["tokens"]))
        return state


def _at_first(generator: Generator, given: Given | None, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) or (B, L, C) and known (B, L) before the first step, of `count` images; MgenError for tokens that can't be given."""
    spec = generator.units
    if given is None:
        tokens = torch.zeros((count, *spec.shape), dtype=spec.dtype, device=device)
        return tokens, torch.zeros(count, spec.length, dtype=torch.bool, device=device)
    tokens, known = (x.clone() for x in forward.to_units(generator, *given))
    if generator.capabilities.order == "causal" and bool((known[:, 1:] & ~known[:, :-1]).any()):
        raise MgenError("tokens are drawn one after the other: given tokens must be the first ones of an image")
    return tokens, known
