"""The generator as the sampler sees it: no other file of this folder, nor of mgen.pipelines, calls a trunk or a head.

A full step computes all tokens, a cached step the positions of a group, a lazy step few, a carry-only step features alone. With
guidance the null class, or a guide (mgen.generators.guided), is computed in the same pass: its rows stand behind those of the images'
classes. The head then draws tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mgen.generators import Generator
from mgen.heads import DenoisingHead, Draw, Head, JointHead, PerCodebookHead
from mgen.nn.attention import gather_rows, put
from mgen.nn.cache import Cache, CachedStep, LazyStep
from mgen.nn.denoising import Denoiser
from mgen.samplers.noise import Noise, rows_at
from mgen.samplers.selection import Split, frequency
from mgen.samplers.state import State
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError

if TYPE_CHECKING:
    from mgen.samplers.plan import PlannedStep


def to_units(generator: Generator, tokens: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Given tokens (B, L) or (B, L, C) and known (B, L) by unit.

    Raises:
        MgenError: a window of which some tokens are given and others not.
    """
    windows = generator.windows
    if windows is None:
        return tokens, known
    folded = windows.gather(known)
    if bool((folded.any(-1) != folded.all(-1)).any()):
        raise MgenError(
            f"{windows.name}s of {'×'.join(map(str, windows.shape))} tokens are drawn as one: give all tokens of a "
            f"{windows.name} or none"
        )
    return windows.to_windows(tokens), folded.all(-1)


def whole_units(generator: Generator, known: Tensor) -> Tensor:
    """known (B, L), without the tokens of windows that are known in part."""
    windows = generator.windows
    return known if windows is None else windows.expand(windows.whole(known))


def start(
    generator: Generator, class_ids: Tensor, *, guided: bool, carry: bool, prefix: Tensor | None
) -> tuple[Tensor, Cache]:
    """The class ids (2B,) of a run, null classes behind the images' own, and its empty cache. `prefix`: see Cascade.prefix."""
    rows = torch.cat([class_ids, generator.null_ids(class_ids)])
    null_rows = len(class_ids) if guided else 0
    return rows, generator.start(rows if guided else class_ids, prefix=prefix, carry=carry, null_rows=null_rows)


Context = Tensor | Denoiser  # what a token is drawn from: vectors, or a trunk that reads noisy tokens


def full(generator: Generator, state: State, step: "PlannedStep", positions: Tensor, ahead: Tensor) -> Context:
    """Context (B, M, D) of all tokens at `positions` (B, M), of a joint head (B, L, D); (2B, …) with null rows.

    `ahead` (B, N): positions, those first, at which the difference of null rows is kept, where the step says so.
    """
    if generator.capabilities.denoises:
        return generator.denoiser(*_rows(state, step), visible=step.visible, cache=state.cache)
    wanted = None if generator.head.joint else ahead if step.ahead else positions
    asked = wanted.repeat(2, 1) if wanted is not None and step.null_rows else wanted
    kept = step.null_kept or step.ahead > 0
    options: Settings = dict(visible=step.visible, cache=state.cache, keep=step.room or None, finished=not kept)
    if not step.keeps_null:
        options["keep_images"] = len(state.tokens)
    z = generator.context(*_rows(state, step), positions=asked, **options)
    return _with_kept(generator, state, step, z, wanted, positions) if kept else z


def _with_kept(
    generator: Generator, state: State, step: "PlannedStep", z: Tensor, at: Tensor | None, positions: Tensor
) -> Tensor:
    """Finished context at `positions` (B, M), the first of `at` (B, N), with null rows, of unfinished context z at `at`."""
    if step.null_kept:
        z = state.difference.with_null_rows(z, at)
    else:
        state.difference.keep(z, at)
    if at is None:
        return generator.to_context(z)
    return generator.to_context(z[:, : positions.shape[1]], positions.repeat(2, 1))


def cached_step(generator: Generator, state: State, step: "PlannedStep", group: Tensor, whole: Context) -> Tensor:
    """Context (B, M, D) of the step's positions of `group` (B, G), of a joint head (B, L, D); (2B, …) with null rows.

    For a joint head it is written into `whole`, the context of the last full step.
    """
    group, asked = group.repeat(2, 1) if step.null_rows else group, (step.first, step.first + step.count)
    cached = CachedStep(
        group=group, done=step.first, fresh=step.refresh, asked=asked, prefix=step.prefix, finished=not step.null_kept
    )
    tokens, _, class_ids = _rows(state, step)
    z = generator.cached_step(tokens, class_ids, state.cache, cached)
    if step.null_kept:
        positions = group[:, slice(*asked)]
        z = _with_kept(generator, state, step, z, positions, positions)
    if not generator.head.joint:
        return z
    assert isinstance(whole, Tensor)
    return put(whole[: len(z), :, : z.shape[-1]], group[:, slice(*asked)], z)


def lazy_step(generator: Generator, state: State, step: "PlannedStep", positions: Tensor, latest: Tensor) -> Context:
    """Context (B, M, D) at `positions` (B, M); (2B, …) with null rows. `latest` (B, P): those revealed in the step before."""
    assert step.pruning is not None
    drawn, found = (x.repeat(2, 1) if step.null_rows else x for x in (positions, latest))
    lazy = LazyStep(latest=found, drawn=drawn, pruning=step.pruning, finished=not step.null_kept)
    z = generator.lazy_step(*_rows(state, step), state.cache, lazy)
    return _with_kept(generator, state, step, z, positions, positions) if step.null_kept else z


def at_rows(z: Context, rows: Tensor) -> Tensor:
    """Rows (B, M) of a context, of null rows the same."""
    assert isinstance(z, Tensor)
    return gather_rows(z, rows.repeat(len(z) // len(rows), 1))


def at_positions(generator: Generator, z: Context, positions: Tensor, *, rows: int) -> Tensor:
    """Context (R, M, D) at positions (B, M) that were drawn, of the first `rows`: the B images, or all 2B."""
    assert isinstance(z, Tensor)
    z = images_of(z, generator.head, len(positions)) if rows == len(positions) else z[:rows]
    return gather_rows(z, positions.repeat(rows // len(positions), 1)) if generator.head.joint else z


def images_of(z: Tensor, head: Head, images: int) -> Tensor:
    """The context of the images alone: rows behind are left out, and so is what a guide of another width has filled them up with."""
    return z[:images, :, : head.width]


def carry(generator: Generator, state: State, step: "PlannedStep") -> None:
    """A step that reveals nothing, of a trunk that carries features: they are projected once more, as published."""
    generator.carry(*_rows(state, step), visible=step.visible, cache=state.cache)


def _rows(state: State, step: "PlannedStep") -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, known and class ids of a pass, twice with null rows."""
    if not step.null_rows:
        return state.tokens, state.known, state.class_ids[: len(state.tokens)]
    return torch.cat([state.tokens, state.tokens]), state.known.repeat(2, 1), state.class_ids


class Drawn(NamedTuple):
    """Tokens (B, M) or (B, M, C), their log-probabilities (B, M) if they have any, and of a joint head all positions (B, L, C)."""

    tokens: Tensor
    log_prob: Tensor | None = None
    map: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TokenDraw:
    """Draws tokens from context vectors.

    Args:
        head: of draws without guidance. guided: of those with it, from contexts with null rows (Generator.guided_head).
        plans: what draws of so many head steps share (PlannedStep.head_steps), made by `guided`, whose plans serve `head` too.
        moment: positions are ranked by their log-moments, and tokens drawn as that order has it (mgen.samplers.order).
    """

    head: Head
    guided: Head
    plans: Mapping[int | None, object]
    noise: Noise
    moment: bool = False

    def __call__(
        self, z: Context, state: State, step: "PlannedStep", positions: Tensor, *, preview: bool = False
    ) -> Drawn:
        """Tokens at positions (B, M) from their context z (B, M, D), of a joint head (B, L, D); (2B, …) with null rows.

        `preview`: a first draw at temperature 1, which is not kept; with moments none, only the log-moments.
        """
        if not step.draws:
            return Drawn(state.tokens.new_zeros(*positions.shape, *state.tokens.shape[2:]))
        plan, temperature, guidance = self.plans[step.head_steps], step.temperature, step.guidance
        head = self.head if guidance is None else self.guided
        if isinstance(z, Denoiser):
            assert isinstance(head, DenoisingHead)
            noise = self.noise.at(step.index, positions)
            return Drawn(*head.denoise(z, noise=noise, plan=plan, temperature=temperature, guidance=guidance))
        rows = z if guidance is not None else images_of(z, head, len(positions))
        if isinstance(head, JointHead):
            return self._draw_jointly(head, rows, state, step, positions)
        part: Settings = {"part": step.phase} if isinstance(head, PerCodebookHead) else {}
        if self.moment:
            part["exponent"] = step.exponent
        if preview and self.moment:
            own = head.log_moments(rows, plan=plan, temperature=temperature, guidance=guidance, **part)
            return Drawn(state.tokens[:, :0], own)
        if preview:
            assert self.noise.candidates is not None
            noise, temperature = rows_at(self.noise.candidates[step.index], positions), 1.0
        else:
            noise = self.noise.at(step.index, positions)
        if step.split is not None:
            return Drawn(self._draw_split(step.split, rows, step, positions))
        sample: Callable[..., Draw] = head.sample
        return Drawn(*sample(rows, noise=noise, plan=plan, temperature=temperature, guidance=guidance, **part))

    def _draw_split(self, split: Split, z: Tensor, step: "PlannedStep", positions: Tensor) -> Tensor:
        """Tokens (B, M, C) of a step in which some have another chain, from contexts z (B, M, D), or (2B, M, D) with null rows."""
        if split.by == "random":
            assert self.noise.select is not None
            score = rows_at(self.noise.select, positions)
        else:
            score = frequency(images_of(z, self.head, len(positions)))
        head = self.head if step.guidance is None else self.guided

        def sample(rows: Tensor, head_steps: int | None) -> Tensor:
            drawn: Draw = head.sample(
                at_rows(z, rows),
                noise=self.noise.at(step.index, positions.gather(1, rows)),
                plan=self.plans[head_steps],
                temperature=step.temperature,
                guidance=step.guidance,
            )
            return drawn.tokens

        return split.draw(split.ranked(score, step.quota), step.head_steps, sample)

    def _draw_jointly(self, head: JointHead, z: Tensor, state: State, step: "PlannedStep", positions: Tensor) -> Drawn:
        assert self.noise.maps is not None
        even = step.visible[0] == step.visible[1]  # otherwise rows would be filled up
        drawn, _ = head.sample(
            z,
            noise=self.noise.maps[step.index],
            plan=self.plans[step.head_steps],
            temperature=step.temperature,
            guidance=step.guidance,
            tokens=state.tokens,
            known=state.known,
            unknown=state.unknown(step.stop, step.unknown) if even else None,
        )
        return Drawn(gather_rows(drawn, positions), None, drawn)
