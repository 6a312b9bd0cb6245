"""A generator guided by another one, in the place of its null class: autoguidance.

Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself" (arXiv 2406.02507): u + s·(c − u) with u of a weaker model of
the same tokens, such as a smaller or less trained one, for the image's own class. The pair is a generator to whoever samples: rows of
the images go to the one, the rows behind, which are of the null class elsewhere, to the other; each has a cache of its own.

Contexts of the two stand in one tensor (mgen.nn.halves), also where their widths differ; the head answers each half by its own weights.

Notation: B images, R rows of a pass (B, or 2B with those of the guide behind), L positions, S tokens of a first stage, D, E widths.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mgen.generators.cascade import Cascade
from mgen.generators.generator import Composed, Generator
from mgen.generators.trunk import Capabilities
from mgen.heads.head import Head
from mgen.nn import Cache, CachedStep, LazyStep
from mgen.nn.denoising import Denoiser, Network
from mgen.nn.halves import join, networks_by_halves
from mgen.utils.errors import MgenError

NOT_SAVED = "a generator and its guide are saved as two models, not as one: save each by itself"


def guided(generator: Generator | Cascade, guide: Generator | Cascade) -> Generator | Cascade:
    """The generator, guided by another one of the same kind of tokens.

    Raises:
        MgenError: tokens, classes, stages or heads of the two don't fit each other.
    """
    if isinstance(generator, Cascade) and isinstance(guide, Cascade):
        return GuidedCascade(generator, guide)
    if isinstance(generator, Cascade) or isinstance(guide, Cascade):
        stages = [len(net.stages()) for net in (guide, generator)]
        raise MgenError(
            f"the guide has {stages[0]} stages, this model {stages[1]}: a guide needs the stages of the model it guides"
        )
    return GuidedGenerator(generator, guide)


class PairCache(Cache):
    """The caches of both for a run of so many images; `guide` is None where no row is of the guide."""

    def __init__(self, own: Cache, guide: Cache | None, *, images: int) -> None:
        super().__init__()
        self.own, self.guide, self.images = own, guide, images

    def free(self) -> None:
        for cache in (self.own, self.guide):
            if cache is not None:
                cache.free()

    def bytes(self) -> int:
        return sum(cache.bytes() for cache in (self.own, self.guide) if cache is not None)


class PairDenoiser(Denoiser):
    """The denoisers of both, for rows of the images and as many of the guide."""

    def __init__(self, own: Denoiser, guide: Denoiser, *, images: int) -> None:
        self.own, self.guide, self.images = own, guide, images

    def at(self, times: Tensor) -> Network:
        """See Denoiser.at."""
        return networks_by_halves(self.own.at(times), self.guide.at(times), rows=self.images)


class GuidedGenerator(Generator):
    """A generator whose rows behind those of the images are computed by `guide`, for the images' own classes.

    It has the parts of `generator`; `start` and the passes are of both. It samples, and is neither trained nor saved.
    """

    def __init__(self, generator: Generator, guide: Generator) -> None:
        Composed.__init__(self)  # not of Generator: the parts are there, with their weights
        check_pair(generator, guide)
        self.generator, self.guide = generator, guide
        self.tokens, self.embedder, self.trunk = generator.tokens, generator.embedder, generator.trunk
        self.head, self.classes = generator.head, generator.classes

    def check_savable(self) -> None:
        raise MgenError(NOT_SAVED)

    @property
    def capabilities(self) -> Capabilities:
        able, other = self.generator.capabilities, self.guide.capabilities
        cached, lazy = able.cached_steps and other.cached_steps, min(able.lazy_layers, other.lazy_layers)
        return replace(able, guided_by="guide", cached_steps=cached, lazy_layers=lazy)

    @property
    def guided_head(self) -> Head[Any]:
        return self.generator.head.guided_by(self.guide.head)

    def null_ids(self, class_ids: Tensor) -> Tensor:
        return class_ids

    def optimize_layout(self, images: int, *, guided: bool = False) -> None:
        for net in (self.generator, self.guide):
            net.optimize_layout(images)

    def start(
        self, class_ids: Tensor, *, prefix: Tensor | None = None, carry: bool = False, null_rows: int = 0
    ) -> PairCache:
        """See Generator.start. prefix: (2 or 2B, S, …), the rows of each of both (GuidedCascade.prefix)."""
        images = len(class_ids) - null_rows
        parts = (None, None) if prefix is None else prefix.chunk(2)
        # Where a guide's second stage is narrower, what its rows were filled up with is left out.
        own, other = (
            None if part is None else part[..., : net.trunk.width]
            for part, net in zip(parts, (self.generator, self.guide))
        )
        return PairCache(
            self.generator.start(class_ids[:images], prefix=own, carry=carry),
            self.guide.start(class_ids[images:], prefix=other, carry=carry) if null_rows else None,
            images=images,
        )

    def context(
        self,
        tokens: Tensor,
        known: Tensor,
        class_ids: Tensor,
        *,
        positions: Tensor | None = None,
        visible: tuple[int, int] | None = None,
        cache: Cache | None = None,
        keep: int | None = None,
        keep_images: int | None = None,
        finished: bool = True,
    ) -> Tensor:
        """Context vectors (R, M, D) or (R, L, D) of a full pass, with those of the guide behind; arguments as in Generator.context."""
        assert isinstance(cache, PairCache)

        def one(net: Generator, own: Cache, rows: slice) -> Tensor:
            where = None if positions is None else positions[rows]
            kept = keep if own is cache.own or keep_images is None else None  # of the images alone
            options: dict[str, Any] = dict(positions=where, visible=visible, cache=own, keep=kept, finished=finished)
            return net.context(tokens[rows], known[rows], class_ids[rows], **options)

        return self._of_both(one, cache, len(tokens))

    def cached_step(self, tokens: Tensor, class_ids: Tensor, cache: Cache, step: CachedStep) -> Tensor:
        """Context (R, asked, D) of the positions a cached step asks for; see Generator.cached_step."""
        assert isinstance(cache, PairCache)

        def one(net: Generator, own: Cache, rows: slice) -> Tensor:
            return net.cached_step(tokens[rows], class_ids[rows], own, replace(step, group=step.group[rows]))

        return self._of_both(one, cache, len(tokens))

    def lazy_step(self, tokens: Tensor, known: Tensor, class_ids: Tensor, cache: Cache, step: LazyStep) -> Tensor:
        """Context (R, n, D) of the positions that a lazy step draws; see Generator.lazy_step. Each drops rows of its own."""
        assert isinstance(cache, PairCache)

        def one(net: Generator, own: Cache, rows: slice) -> Tensor:
            part = replace(step, latest=step.latest[rows], drawn=step.drawn[rows])
            return net.lazy_step(tokens[rows], known[rows], class_ids[rows], own, part)

        return self._of_both(one, cache, len(tokens))

    def _of_both(self, one: Callable[[Generator, Cache, slice], Tensor], cache: PairCache, rows: int) -> Tensor:
        """What `one` gives for the images' rows, joined with what it gives for those of the guide where there are some."""
        own = one(self.generator, cache.own, slice(cache.images))
        if rows == cache.images:
            return own
        assert cache.guide is not None
        return join(own, one(self.guide, cache.guide, slice(cache.images, None)))

    def denoiser(
        self, tokens: Tensor, known: Tensor, class_ids: Tensor, *, visible: tuple[int, int] | None = None, cache: Cache
    ) -> Denoiser:
        """The network of both; its context is (R, 1, s, D). See Generator.denoiser."""
        assert isinstance(cache, PairCache)
        n = cache.images
        own = self.generator.denoiser(tokens[:n], known[:n], class_ids[:n], visible=visible, cache=cache.own)
        if len(tokens) == n:
            return own
        assert cache.guide is not None
        other = self.guide.denoiser(tokens[n:], known[n:], class_ids[n:], visible=visible, cache=cache.guide)
        return PairDenoiser(own, other, images=n)

    def carry(
        self, tokens: Tensor, known: Tensor, class_ids: Tensor, *, visible: tuple[int, int] | None = None, cache: Cache
    ) -> None:
        """A carry-only step of both; see Generator.carry."""
        assert isinstance(cache, PairCache)
        n = cache.images
        self.generator.carry(tokens[:n], known[:n], class_ids[:n], visible=visible, cache=cache.own)
        if len(tokens) > n:
            assert cache.guide is not None
            self.guide.carry(tokens[n:], known[n:], class_ids[n:], visible=visible, cache=cache.guide)


class GuidedCascade(Cascade):
    """A cascade whose stages are guided by those of another one; the guide's second stage reads the context of its own first stage."""

    def __init__(self, generator: Cascade, guide: Cascade) -> None:
        Composed.__init__(self)  # not of Cascade: the parts are there, with their weights
        self.generator, self.guide, self.classes = generator, guide, generator.classes
        self._stages = [GuidedGenerator(own, other) for own, other in zip(generator.stages(), guide.stages())]

    def check_savable(self) -> None:
        raise MgenError(NOT_SAVED)

    @property
    def guided_head(self) -> Head[Any]:
        return self.second.guided_head

    def prefix(self, features: Tensor | None = None, shown: Tensor | None = None, *, guided: bool = False) -> Tensor:
        """The rows (2 or 2B, S, max(D, E)) that the second stages read of the first: those of the generator, then those of the guide.

        Arguments as in Cascade.prefix; features (2B, S, max(D, E)) if `guided`. Nobody reads the guide's rows if not.
        """
        if features is None:
            own, other = self.generator.prefix(), self.guide.prefix() if guided else None
        elif not guided:
            own, other = self.generator.prefix(features, shown), None
        else:
            first, second = features.chunk(2)
            own = self.generator.prefix(first[..., : self.generator.first.head.width], shown)
            other = self.guide.prefix(second[..., : self.guide.first.head.width], shown)
        return join(own, torch.zeros_like(own) if other is None else other)


def check_pair(generator: Generator, guide: Generator) -> None:
    """Raise MgenError unless the guide draws the same tokens of as many classes, in a way that the sampler of the other can use."""
    own, other = generator.tokens, guide.tokens
    if own.kind != other.kind or own.sizes() != other.sizes() or own.grid != other.grid:
        found, needed = (f"{x.sizes()} ({x.kind}, grid {x.grid and list(x.grid)})" for x in (other, own))
        raise MgenError(f"the guide draws {found}, this model {needed}: a guide needs the same tokens")
    if own.levels and other.levels and str(own.levels) != str(other.levels):
        raise MgenError(
            f"the guide's levels are {other.levels}, this model's {own.levels}: a guide needs the same tokens"
        )
    if own.scale and other.scale and abs(own.scale / other.scale - 1) > 5e-4:  # the slack of TokenSpec.require
        raise MgenError(
            f"the guide was trained on latents times {other.scale}, this model on latents times {own.scale}: a guide needs the same tokens"
        )
    if generator.windows != guide.windows:
        raise MgenError(
            f"the guide draws {_together(guide)}, this model {_together(generator)}: a guide needs the same tokens"
        )
    if (generator.conditional, generator.num_classes) != (guide.conditional, guide.num_classes):
        counts = [net.num_classes if net.conditional else 0 for net in (guide, generator)]
        raise MgenError(f"the guide has {counts[0]} classes, this model {counts[1]}: a guide needs the same classes")
    for name, what in (
        ("order", "order of tokens"),
        ("denoises", "trunk reading noisy tokens"),
        ("carried_features", "carried features"),
    ):
        pair = [getattr(net.capabilities, name) for net in (guide, generator)]
        if pair[0] != pair[1]:
            raise MgenError(
                f"{what}: the guide has {pair[0]}, this model {pair[1]}: a guide needs a trunk that is sampled the same way"
            )
    generator.head.guided_by(guide.head)


def _together(generator: Generator) -> str:
    """What is drawn as one, in words."""
    windows = generator.windows
    return "tokens one by one" if windows is None else f"{windows.name}s of {'×'.join(map(str, windows.shape))} tokens"
