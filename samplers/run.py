"""One run of a sampler on one batch: the two kinds of evaluation, and what they draw. The loop over steps is in parallel.py.

Notation: B images, L positions, M positions drawn in a step, G positions of a group, C numbers of a vector token.
"""

from typing import Any

import torch
from torch import Tensor

from mgen.nn.attention import gather_rows
from mgen.nn.cache import CachedStep as Local
from mgen.samplers.noise import Noise, rows_at
from mgen.samplers.order import priorities
from mgen.samplers.places import Places
from mgen.samplers.state import put
from mgen.samplers.timetable import timetable
from mgen.utils.errors import MgenError


class Run(Places):
    """The state, the settings of every step, and what the trunk keeps. `settings` is the sampler.

    `collect`: keep the context vectors of the class's rows, as they were when their positions were revealed, as `features` (B, L, D);
    vectors of the last step are then not drawn, since only features are read.
    """

    def __init__(
        self,
        settings: Any,
        generator: Any,
        condition: Tensor,
        noise: Noise,
        tokens: Tensor | None,
        known: Tensor | None,
        *,
        collect: bool = False,
        prefix: Any = None,
    ) -> None:
        c, spec = settings.config, generator.units
        if generator.windows is not None and tokens is not None and known is not None:
            folded = generator.windows.gather(known)
            if bool((folded.any(-1) != folded.all(-1)).any()):
                raise MgenError(
                    f"windows of {generator.windows.side}×{generator.windows.side} tokens are drawn as one: give all tokens of a window or none"
                )
            tokens, known = generator.windows.to_windows(tokens), folded.all(-1)
        super().__init__(spec, len(condition), condition.device, tokens, known)
        if (
            (generator.capabilities.order == "causal")
            and known is not None
            and bool((known[:, 1:] & ~known[:, :-1]).any())
        ):
            raise MgenError(
                f"{type(generator).__name__} draws one token after the other: given tokens must be the first ones of an image"
            )
        self.generator, self.noise = generator, noise
        self.revise, self.redraw = c.revise, c.redraw
        self.guidance, self.temperature, self.gumbel_factor = (
            settings.values(name, self.length, spec.global_tokens)
            for name in ("guidance", "temperature", "confidence_temperature")
        )
        self.guided, self.reuse, self.start = settings.guided(self.length, spec.global_tokens), settings.reuse, c.start
        self.condition = torch.cat([condition, torch.full_like(condition, generator.null_class or 0)])
        extra = {} if prefix is None else {"prefix": prefix}
        self.memory = generator.start(
            self.condition if any(self.guided) else condition,
            carry=generator.capabilities.carried_features and self.reuse.features,
            **extra,
        )
        self.carrying = generator.capabilities.carried_features and self.reuse.features
        self.plan, self.local_plan = settings.plans(generator)
        self.whole = generator.head.joint  # the head draws all positions, from the context of all
        self.map: Tensor | None = None  # that context
        self.drawn_map: Tensor | None = None  # and what the head made of it in the last step
        self.collect, self.last = collect, c.steps - 1
        self.features: Tensor | None = None
        self._latest: Tensor | None = None
        self.phases = settings.phases(self.length, spec.global_tokens)
        self.times = timetable(self.known, self.phases)
        if self.reuse.any_local and self.times.fewest != self.times.widest:
            raise MgenError(
                "local steps need as many given tokens in every image of a batch: use batch_size 1, or reuse.local=0"
            )
        priority = priorities(c.order, noise, spec.grid, spec.global_tokens)  # (B, L), highest first
        self.ranking = None
        if priority is not None:
            self.ranking = priority.masked_fill(self.known, -torch.inf).argsort(dim=1, descending=True, stable=True)

    # -- evaluations ---------------------------------------------------------------------------------------------------

    def full(self, group: list[int], positions: Tensor, *, twice: bool) -> Tensor:
        """Context (B, M, D) or, with null rows, (2B, M, D), of a full evaluation before the steps of `group`."""
        i = group[0] - self.start
        keep = sum(self.times.most[t - self.start] for t in group[:-1]) if len(group) > 1 else None
        tokens, known, condition = self._state(twice)
        asked = positions.repeat(2, 1) if twice else positions
        z = self.generator.context(
            tokens,
            known,
            condition,
            positions=None if self.whole else asked,
            visible=self._visible(i),
            cache=self.memory,
            keep=keep,
        )
        self.map = z if self.whole else None
        return z

    def local(self, group: Tensor, *, done: int, count: int, before: int, twice: bool) -> Tensor:
        """Context of the `count` positions of the group after its first `done`; `before` were revealed in the last step."""
        until = done + count
        fresh = (0, group.shape[1]) if self.reuse.refresh == "group" else (done - before, until)
        step = Local(
            group=group.repeat(2, 1) if twice else group,
            done=done,
            fresh=fresh,
            asked=(done, until),
            prefix=self.reuse.prefix,
        )
        tokens, _, condition = self._state(twice)
        z = self.generator.cached_step(tokens, condition, self.memory, step)
        if self.map is None:
            return z
        return put(self.map[: len(z)], step.group[:, done:until], z)

    def advance(self, t: int, *, twice: bool) -> None:
        """A full step that reveals nothing: features that are carried go on being projected, as published."""
        if self.carrying:
            tokens, known, condition = self._state(twice)
            self.generator.carry(tokens, known, condition, visible=self._visible(t - self.start), cache=self.memory)

    def _visible(self, i: int) -> tuple[int, int]:
        return self.length - self.times.widest[i], self.length - self.times.fewest[i]

    def _state(self, twice: bool) -> tuple[Tensor, Tensor, Tensor]:
        if not twice:
            return self.tokens, self.known, self.condition[: len(self.tokens)]
        return torch.cat([self.tokens, self.tokens]), self.known.repeat(2, 1), self.condition

    def twice(self, steps: list[int]) -> bool:
        """Whether an evaluation for the draws of `steps` takes null rows, or must for features that later steps carry on."""
        if any(self.guided[t] for t in steps):
            return True
        seen = self.times.fewest[steps[0] - self.start] < self.length
        return ((self.generator.capabilities.order == "causal") or self.carrying and seen) and any(
            self.guided[steps[0] :]
        )

    def draw(
        self, z: Tensor, t: int, positions: Tensor, *, guide: int | None = None, local: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The head's draw at step t with the guidance of step `guide` (t); null rows of z that it does not need are dropped."""
        guide = t if guide is None else guide
        b, head = len(positions), self.generator.head
        options: dict[str, Any] = {
            "temperature": self.temperature[t],
            "guidance": self.guidance[guide] if self.guided[guide] else None,
            "plan": self.local_plan if local else self.plan,
        }
        if len(self.phases) > 1:
            options["part"] = self.times.phase[t - self.start]
        rows = z if self.guided[guide] else z[:b]
        if self.collect:
            self._latest = gather_rows(z[:b], positions) if self.whole else z[:b]
            if t == self.last and not head.has_log_prob:
                return self.tokens.new_zeros(*positions.shape, *self.tokens.shape[2:]), None
        if not self.whole:
            return head.sample(rows, noise=self.noise.at(t, positions), **options)
        assert self.noise.maps is not None
        i = t - self.start
        even = self.times.fewest[i] == self.times.widest[i]
        unknown = self.unknown(t) if even else None
        self.drawn_map, _ = drawn, _ = head.sample(
            rows, noise=self.noise.maps[t], tokens=self.tokens, known=self.known, unknown=unknown, **options
        )
        return gather_rows(drawn, positions), None

    def reveal(self, positions: Tensor, drawn: Tensor, shown: Tensor) -> None:
        """See State.reveal; notes the features of what is revealed."""
        if self.collect:
            assert self._latest is not None
            if self.features is None:
                self.features = self._latest.new_zeros(*self.known.shape, self._latest.shape[-1])
            put(self.features, positions, self._latest, shown)
        super().reveal(positions, drawn, shown)

    def candidates(self, z: Tensor, t: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Draws at unknown positions (B, M), and their confidences with Gumbel noise, −∞ where a position is known."""
        if self.redraw:  # MaskGIT-r: candidates at temperature 1, kept for their places alone
            assert self.noise.candidates is not None
            drawn, score = self.generator.head.sample(
                z if self.guided[t] else z[: len(positions)],
                noise=rows_at(self.noise.candidates[t], positions),
                guidance=self.guidance[t] if self.guided[t] else None,
                plan=self.plan,
                **({"part": self.times.phase[t - self.start]} if len(self.phases) > 1 else {}),
            )
        else:
            drawn, score = self.draw(z, t, positions)
        assert self.noise.confidence is not None and score is not None
        score = score + self.gumbel_factor[t] * rows_at(self.noise.confidence[t], positions)
        return drawn, score.masked_fill(self.known.gather(1, positions), -torch.inf)
