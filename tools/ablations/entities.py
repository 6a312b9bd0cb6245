"""Ablations of a trunk that denoises entities (xAR). Tokens stay the same up to rounding.

The plain form runs the whole network over all entities so far at every step, under the block-causal mask. The published form keeps the
keys and values of finished entities, concatenated anew with those of the current one in every layer and step; an entity's first step
computes the one before it too, under a mask. Both compute the null class of the first entity, which nothing reads, and the
modulations of every block in every step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.bench.proxy import Proxy
from mgen.generators.generator import Generator
from mgen.generators.trunks.block_causal import BlockCausal, EntityCache
from mgen.nn.attention import attend
from mgen.nn.causal import LiveKV, RowSpan
from mgen.nn.denoising import Denoiser, Network
from mgen.samplers import ParallelSampler
from tools.ablations.compare import AblationTable, complete_run


class JoinedKV(LiveKV):
    """Keys and values of finished entities, to which those at hand are joined; `kept` rows in front of the last entity stay."""

    kept = 0

    def add(self, k: Tensor, v: Tensor, rows: RowSpan) -> tuple[Tensor, Tensor]:
        if self.k is not None:
            k, v = torch.cat([self.k[: len(k)], k], dim=2), torch.cat([self.v[: len(v)], v], dim=2)
        if self.kept:
            self.k, self.v = k[:, :, : self.kept], v[:, :, : self.kept]
        self.joined = k, v
        return k, v

    def attend(self, q: Tensor, stop: int) -> Tensor:
        return attend(q, *self.joined)


@dataclass(frozen=True)
class PlainDenoiser(Denoiser):
    """The network of entity `number` in the plain or the published form, see `PlainEntities`."""

    net: Generator
    tokens: Tensor
    cache: EntityCache
    number: int
    form: "PlainEntities"

    def at(self, times: Tensor) -> Network:
        trunk, number, r = self.net.trunk, self.number, len(self.tokens)
        assert isinstance(trunk, BlockCausal)
        rows = r if self.form.skip else len(self.cache.classes)  # null rows too, though nothing may read them
        tokens = self.tokens.repeat(rows // r, 1, 1)
        ahead = self._modulations(trunk, rows, times) if self.form.ahead else None
        joined = [kv for kv in self.cache.live if isinstance(kv, JoinedKV)]
        for kv in joined:
            kv.kept = 0

        def network(x: Tensor, j: int) -> Tensor:
            x = x.repeat(rows // r, 1, 1)
            first = number if self.form.cached else 0
            if self.form.cached and j == 0 and number:
                first = number - 1
            x = torch.cat([tokens[:, first:number], x], dim=1)  # finished ones in front
            e = x.shape[1]
            now = ahead[j] if ahead else self._modulations(trunk, rows, times[j : j + 1])[0]
            every = [torch.cat([clean.expand(-1, e - 1, -1), own], dim=1) for clean, own in zip(*now)]
            h = self.net.embedder(x, sampling=True).unflatten(1, (e, -1))
            live, mask = (self.cache.live if self.form.cached and number else None), None
            if e > 1:
                of = torch.arange(e, device=x.device).repeat_interleave(trunk.entities.parts)
                mask = of.unsqueeze(1) >= of
                if live is not None:  # all those before are read by both
                    mask = F.pad(mask, (first * trunk.entities.parts, 0), value=True)
                    for kv in joined:
                        kv.kept = number * trunk.entities.parts
            z = trunk.hidden(h, every, first, live, mask)[:r, -1:]
            for kv in joined:
                kv.kept = 0
            return z

        return network

    def _modulations(self, trunk: BlockCausal, rows: int, times: Tensor) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Of each step those of finished entities and of the current one: (R, 1, 6D) of every block."""
        every = torch.cat([times.new_zeros(1), times])
        made = trunk.modulations_of(self.cache.classes[:rows], every, slice(0, len(every)))
        return [([part[0] for part in made], [part[j] for part in made]) for j in range(1, len(every))]


class PlainEntities(Proxy):
    """A generator the plain way, with single optimizations switched on.

    Args:
        cached: finished entities are computed once (the published form). skip: null rows only where they are read.
        ahead: modulations of all steps in one product.
    """

    def __init__(self, generator: Generator, *, cached: bool = True, skip: bool = False, ahead: bool = False) -> None:
        super().__init__(generator, cached=cached, skip=skip, ahead=ahead)

    def start(self, class_ids: Tensor, **options: Any) -> EntityCache:
        """See Generator.start."""
        cache = self._inner.start(class_ids, **options)
        cache.live = [JoinedKV(0) for _ in cache.live]
        return cache

    def denoiser(
        self, tokens: Tensor, known: Tensor, class_ids: Tensor, *, visible: tuple[int, int], cache: EntityCache
    ) -> Denoiser:
        """See Generator.denoiser."""
        return PlainDenoiser(self._inner, tokens, cache, visible[0], self)


def add_rows(table: AblationTable, generator: Generator, sampler: ParallelSampler, batch_size: int, dtype: str) -> None:
    """Add a row for each optimization at one entity, and for complete runs beside both forms."""
    units, device = generator.units, table.device
    middle, guided = units.length // 2, any(sampler.guided(units.length))
    tokens = torch.randn(batch_size, *units.shape, generator=torch.Generator().manual_seed(0)).to(device)
    class_ids = torch.arange(batch_size, device=device) % generator.num_classes
    rows = torch.cat([class_ids, torch.full_like(class_ids, generator.null_class or 0)]) if guided else class_ids
    plan = generator.head.plan(sampler.longest_head)
    noise = sampler.make_noise(generator, range(batch_size)).to(device)

    def entity(net: Any, number: int, null: bool) -> Callable[[], Tensor]:
        ids = rows if null else class_ids
        own = tokens.repeat(len(ids) // batch_size, 1, 1)
        known = torch.zeros(own.shape[:2], dtype=torch.bool, device=device)
        draws = noise.at(0, torch.full((batch_size, 1), number, device=device))

        def draw() -> Tensor:
            cache = net.start(rows)
            if isinstance(net, PlainEntities) and net.cached:
                _finish(generator, own, number - 1, cache, plan.times)
            denoiser = net.denoiser(own, known, ids, visible=(number, number), cache=cache)
            return net.head.denoise(denoiser, noise=draws, plan=plan, guidance=2.0 if null else None).tokens

        return draw

    words, plain = f"entity {middle} of {units.length}", PlainEntities(generator, cached=False)
    published = PlainEntities(generator)
    table.add(
        f"{words}: keys and values of finished ones kept", *(entity(n, middle, guided) for n in (plain, published))
    )
    table.add(
        f"{words}: and in place, not joined anew", entity(published, middle, guided), entity(generator, middle, guided)
    )
    ahead = PlainEntities(generator, ahead=True)
    table.add(f"{words}: modulations of all steps at once", *(entity(n, middle, guided) for n in (published, ahead)))
    if guided:
        skipped = PlainEntities(generator, skip=True)
        table.add("first entity: no null rows", entity(published, 0, False), entity(skipped, 0, False))
    name = f"{units.length} entities × {len(plan.times)} steps"
    complete_run(
        table, generator, sampler, batch_size, "fp32", plain=published, name=f"{name}, beside the published form"
    )
    complete_run(table, generator, sampler, batch_size, dtype, plain=plain, name=name)


def _finish(net: Generator, tokens: Tensor, count: int, cache: EntityCache, times: Tensor) -> None:
    """Keep the keys and values of the first `count` entities of tokens (R, E, s·C)."""
    trunk, embedded = net.trunk, net.embedder(tokens, sampling=True).unflatten(1, (tokens.shape[1], -1))
    assert isinstance(trunk, BlockCausal)
    clean = trunk.modulations_of(cache.classes[: len(tokens)], times.new_zeros(1), slice(0, 1))
    for number in range(count):
        for kv in cache.live:
            assert isinstance(kv, JoinedKV)
            kv.kept = (number + 1) * trunk.entities.parts
        trunk.hidden(embedded[:, number : number + 1], [part[0] for part in clean], number, cache.live)
