"""Ablations of the permuted causal generator (RAR). Ids stay the same.

The plain form passes the halves of the guidance one after the other and makes the modulations of a row in every step, for every image.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mgen.bench.proxy import Proxy
from mgen.generators.generator import Generator
from mgen.generators.trunks.permuted import Permuted, PermutedBlock, PermutedCache, PermutedNorm
from mgen.nn.cache import Cache
from mgen.samplers import ParallelSampler
from tools.ablations import causal
from tools.ablations.compare import AblationTable, complete_run


class PlainCache(Cache):
    """One cache for each pass: with guidance for the class, and for the null class."""

    def __init__(self, passes: list[PermutedCache]) -> None:
        super().__init__()
        self.passes = passes


class PlainPermuted(Proxy):
    """A permuted generator the plain way, with single optimizations switched on.

    Args:
        guided: whether passes have null rows after those of the class.
        together: both halves of the guidance in one pass. once: modulations for distinct classes, once for the run where they are few.
    """

    def __init__(self, generator: Generator, *, guided: bool, together: bool = False, once: bool = False) -> None:
        super().__init__(generator, once=once, halves=2 if guided and not together else 1)

    def start(self, class_ids: Tensor, **options: Any) -> PlainCache:
        """See Generator.start."""
        net: Generator = self._inner
        return PlainCache([self._cache(net, ids, **options) for ids in class_ids.chunk(self.halves)])

    def _cache(self, net: Generator, class_ids: Tensor, **options: Any) -> PermutedCache:
        if self.once:
            made = net.start(class_ids, **options)
            assert isinstance(made, PermutedCache)
            return made
        trunk, index = net.trunk, torch.arange(len(class_ids), device=class_ids.device)
        assert isinstance(trunk, Permuted)
        return PermutedCache(trunk.kept_rows(), classes=net.classes(class_ids), index=index, modulations=None)

    def context(
        self,
        tokens: Tensor,
        known: Tensor,
        class_ids: Tensor,
        *,
        positions: Tensor,
        cache: PlainCache,
        visible: tuple[int, int],
        **_: Any,
    ) -> Tensor:
        """See Generator.context."""
        net: Generator = self._inner
        halves = zip(*(x.chunk(self.halves) for x in (tokens, known, class_ids, positions)), cache.passes)
        return torch.cat([net.context(*half, positions=at, cache=own, visible=visible) for *half, at, own in halves])


@torch.no_grad()
def randomize(generator: Generator) -> None:
    """Give a new generator weights with which draws differ: its output table and its modulations start at zero."""
    causal.randomize(generator)
    for module in generator.trunk.modules():
        if isinstance(module, PermutedBlock | PermutedNorm) and not module.adaln.weight.any():
            nn.init.normal_(module.adaln.weight, std=0.02)


def add_rows(table: AblationTable, generator: Generator, sampler: ParallelSampler, batch_size: int, dtype: str) -> None:
    """Add a row for each optimization at one token in the middle of the order, and one for a complete run."""
    units = generator.units
    middle, guided = units.length // 2, any(sampler.guided(units.length, units.global_tokens))
    rng = torch.Generator().manual_seed(0)
    assert units.vocab_size is not None
    tokens = torch.randint(units.vocab_size, (batch_size, *units.shape), generator=rng).to(table.device)
    class_ids = torch.arange(batch_size, device=table.device) % generator.num_classes
    if guided:
        null = torch.full_like(class_ids, generator.null_class or 0)
        tokens, class_ids = torch.cat([tokens, tokens]), torch.cat([class_ids, null])
    places = torch.arange(units.length, device=table.device).expand(len(tokens), -1)
    noise = torch.full((batch_size, 1, *units.shape[1:]), 0.5, device=table.device)
    draw: dict[str, Any] = {"plan": generator.head.plan(sampler.longest_head), "guidance": 2.0 if guided else None}
    if units.global_tokens:
        draw["part"] = 1

    def one(net: Any) -> Callable[[], Tensor]:
        cache = net.start(class_ids)

        def context(at: int) -> Tensor:
            where = {"positions": places[:, at : at + 1], "visible": (at, at)}
            return net.context(tokens, places < at, class_ids, cache=cache, **where)

        context(middle - 1)  # the rows before

        def token() -> Tensor:
            for part in cache.passes if isinstance(cache, PlainCache) else [cache]:  # the same row again
                part.done, part.last = middle + 1, places[: len(part.index), middle - 1 : middle]
            return net.head.sample(context(middle), noise=noise, **draw).tokens

        return token

    plain, words = one(PlainPermuted(generator, guided=guided)), f"token {middle} of {units.length}"
    if guided:
        together = PlainPermuted(generator, guided=guided, together=True)
        table.add(f"{words}: both halves of the guidance in one pass", plain, one(together))
    once = PlainPermuted(generator, guided=guided, once=True)
    table.add(f"{words}: modulations once for the run, of distinct classes", plain, one(once))
    with torch.inference_mode(False):  # the layout of weights made in inference mode could not be changed
        optimized = copy.deepcopy(generator)
    optimized.optimize_layout(len(class_ids))
    table.add(f"{words}: all of these", plain, one(optimized))
    whole = PlainPermuted(generator, guided=guided)
    complete_run(table, optimized, sampler, batch_size, dtype, plain=whole, name=f"{units.length} tokens")
