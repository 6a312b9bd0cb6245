"""Ablations of a masked generator of ids. Ids stay the same.

The plain form passes the halves of the guidance one after the other, as TiTok's official code does, and its last block runs at every
position, of which the unknown ones are then taken.
"""

from typing import Any

import torch
from torch import Tensor

from mgen.bench.proxy import Proxy
from mgen.generators.generator import Generator
from mgen.nn.attention import gather_rows
from mgen.nn.cache import Cache
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from tools.ablations.compare import AblationTable, complete_run


class PlainCache(Cache):
    """One cache for each pass: with guidance for the class, and for the null class."""

    def __init__(self, passes: list[Cache]) -> None:
        super().__init__()
        self.passes = passes


class PlainMasked(Proxy):
    """A masked generator the plain way, with single optimizations switched on.

    Args:
        batch_size: images of a run. together: both halves of the guidance in one pass.
        asked: only the positions that are asked for pass the end of the last block.
    """

    def __init__(self, generator: Generator, *, batch_size: int, together: bool = False, asked: bool = False) -> None:
        super().__init__(generator, batch_size=batch_size, together=together, asked=asked)

    def _passes(self, class_ids: Tensor) -> int:
        return 1 if self.together else len(class_ids) // self.batch_size

    def start(self, class_ids: Tensor, **options: Any) -> PlainCache:
        """See Generator.start."""
        return PlainCache([self._inner.start(ids, **options) for ids in class_ids.chunk(self._passes(class_ids))])

    def context(
        self,
        tokens: Tensor,
        known: Tensor,
        class_ids: Tensor,
        *,
        positions: Tensor,
        cache: PlainCache,
        **options: Any,
    ) -> Tensor:
        """See Generator.context."""
        out, count = [], self._passes(class_ids)  # one in a step without guidance
        for *rows, at, own in zip(*(x.chunk(count) for x in (tokens, known, class_ids, positions)), cache.passes):
            z = self._inner.context(*rows, positions=at if self.asked else None, cache=own, **options)
            out.append(z if self.asked else gather_rows(z, at))
        return torch.cat(out)


def add_rows(table: AblationTable, generator: Generator, sampler: ParallelSampler, batch_size: int, dtype: str) -> None:
    """Add a row for each optimization at one pass with half of the tokens known, and one for a complete run."""
    if sampler.reuse.cached:
        raise MgenError("ablations of a masked generator of ids are for full passes: set reuse.cached=0")
    units = generator.units
    guided = any(sampler.guided(units.length, units.global_tokens))
    class_ids = torch.arange(batch_size, device=table.device) % generator.num_classes
    known = torch.arange(units.length, device=table.device).expand(batch_size, -1) % 2 == 0
    positions = (~known).nonzero()[:, 1].view(batch_size, -1)
    tokens = torch.zeros(batch_size, *units.shape, dtype=torch.int64, device=table.device)
    rows = [tokens, known, class_ids, positions]
    if guided:
        rows = [torch.cat([x, x]) for x in rows]
        rows[2][batch_size:] = generator.null_class or 0

    def one(net: Any) -> Any:
        def run() -> Tensor:
            return net.context(*rows[:3], positions=rows[3], cache=net.start(rows[2]))

        return run

    plain, words = one(PlainMasked(generator, batch_size=batch_size)), f"one pass of {units.length} tokens"
    if guided:
        together = PlainMasked(generator, batch_size=batch_size, together=True)
        table.add(f"{words}: both halves of the guidance together", plain, one(together))
    asked = PlainMasked(generator, batch_size=batch_size, asked=True)
    table.add(f"{words}: last block at the unknown ones alone", plain, one(asked))
    table.add(f"{words}: all of these", plain, one(generator))
    name = f"{sampler.config.steps} steps of {units.length} tokens"
    complete_run(
        table,
        generator,
        sampler,
        batch_size,
        dtype,
        plain=PlainMasked(generator, batch_size=batch_size),
        name=name,
    )
