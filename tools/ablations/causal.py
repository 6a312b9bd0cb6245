"""Ablations of a causal generator. Ids stay the same.

The plain form allocates keys and values for the whole sequence, copies and reads all of them at every token under a mask, passes the
halves of the guidance one after the other, and computes the logits of both codebooks.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.bench.proxy import Proxy
from mgen.generators.generator import Generator
from mgen.generators.trunks.causal import Causal, CausalCache
from mgen.heads.categorical import OwnTable
from mgen.heads.composite import PerCodebookHead
from mgen.heads.head import Draw
from mgen.nn.cache import Cache
from mgen.nn.causal import CausalBlock, CausalRows, LiveKV
from mgen.samplers import ParallelSampler
from tools.ablations.compare import AblationTable, complete_run


class PlainPerCodebookHead(Proxy):
    """A PerCodebookHead that computes the logits of both codebooks."""

    def sample(self, z: Tensor, *, part: int, **options: Any) -> Draw:
        """See PerCodebookHead.sample."""
        self._inner.parts[1 - part].logits(z)
        return self._inner.sample(z, part=part, **options)


class PlainCache(Cache):
    """One cache for each pass: with guidance for the class, and for the null class."""

    def __init__(self, passes: list[CausalCache]) -> None:
        super().__init__()
        self.passes = passes


class PlainCausal(Proxy):
    """A causal generator the plain way, with single optimizations switched on.

    Args:
        guided: whether passes have null rows after those of the class.
        live: only the filled rows of the KV cache are read, in place. together: both halves of the guidance in one pass.
        own: the head of the token's codebook alone.
    """

    def __init__(
        self, generator: Generator, *, guided: bool, live: bool = False, together: bool = False, own: bool = False
    ) -> None:
        both = isinstance(generator.head, PerCodebookHead) and not own
        head = PlainPerCodebookHead(generator.head) if both else generator.head
        super().__init__(generator, head=head, guided_head=head, live=live, halves=2 if guided and not together else 1)

    def start(self, class_ids: Tensor, **options: Any) -> PlainCache:
        """See Generator.start."""
        return PlainCache([self._inner.start(ids, **options) for ids in class_ids.chunk(self.halves)])

    def context(self, tokens: Tensor, known: Tensor, class_ids: Tensor, *, cache: PlainCache, **options: Any) -> Tensor:
        """See Generator.context."""
        halves = zip(*(x.chunk(self.halves) for x in (tokens, known, class_ids)), cache.passes)
        return torch.cat([self._pass(*half, **options) for half in halves])

    def _pass(
        self,
        tokens: Tensor,
        known: Tensor,
        class_ids: Tensor,
        cache: CausalCache,
        *,
        visible: tuple[int, int],
        **_: Any,
    ) -> Tensor:
        net: Generator = self._inner
        if self.live:
            return net.context(tokens, known, class_ids, visible=visible, cache=cache)
        trunk = net.trunk
        assert isinstance(trunk, Causal)
        length, at = trunk.length, trunk.rows(cache.done, visible[1] + 1)
        mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()[at.first : at.stop]
        x = trunk.inputs(net.rows(tokens, known, sampling=True), net.classes(class_ids), at.first, at.stop)
        for block, kept in zip(trunk.blocks, cache.live):
            assert isinstance(block, CausalBlock)
            x = _block(block, x, at, kept, mask)
        cache.done = at.stop
        return trunk.norm(x[:, -1:])


def _block(block: CausalBlock, x: Tensor, at: CausalRows, kept: LiveKV, mask: Tensor) -> Tensor:
    """A CausalBlock on all keys and values of the sequence; a mask hides those that are not there yet."""
    q, k, v = block.attn.project(block.norm1(x), 0, 3)
    k = at.place(k)
    if kept.k is None:
        kept.k, kept.v = (n.new_zeros(*n.shape[:2], len(mask[0]), n.shape[3]) for n in (k, v))
    kept.add(k, v, at)
    out = F.scaled_dot_product_attention(at.place(q), kept.k.clone(), kept.v.clone(), attn_mask=mask)
    x = x + block.attn.proj(out.transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


@torch.no_grad()
def randomize(generator: Generator) -> None:
    """Give a new generator output weights with which draws differ: a table of its own starts at zero."""
    for module in generator.head.modules():
        if isinstance(module, OwnTable) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)


def add_rows(table: AblationTable, generator: Generator, sampler: ParallelSampler, batch_size: int, dtype: str) -> None:
    """Add a row for each optimization at one token in the middle of the sequence, and one for a complete run."""
    units = generator.units
    middle, guided = units.length // 2, any(sampler.guided(units.length, units.global_tokens))
    rng = torch.Generator().manual_seed(0)
    assert units.vocab_size is not None
    tokens = torch.randint(units.vocab_size, (batch_size, *units.shape), generator=rng).to(table.device)
    class_ids = torch.arange(batch_size, device=table.device) % generator.num_classes
    if guided:
        null = torch.full_like(class_ids, generator.null_class or 0)
        tokens, class_ids = torch.cat([tokens, tokens]), torch.cat([class_ids, null])
    known = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=table.device)
    noise = torch.full((batch_size, 1, *units.shape[1:]), 0.5, device=table.device)
    draw: dict[str, Any] = {"plan": generator.head.plan(sampler.longest_head), "guidance": 2.0 if guided else None}
    if units.global_tokens:
        draw["part"] = 1

    def one(net: Any) -> Callable[[], Tensor]:
        cache = net.start(class_ids)
        net.context(tokens, known, class_ids, visible=(middle, middle), cache=cache)  # the rows before

        def token() -> Tensor:
            for part in cache.passes if isinstance(cache, PlainCache) else [cache]:  # the same row again
                part.done = middle
            z = net.context(tokens, known, class_ids, visible=(middle, middle), cache=cache)
            return net.head.sample(z, noise=noise, **draw).tokens

        return token

    plain, words = one(PlainCausal(generator, guided=guided)), f"token {middle} of {units.length}"
    table.add(f"{words}: KV cache of live rows, in place", plain, one(PlainCausal(generator, guided=guided, live=True)))
    if guided:
        together = PlainCausal(generator, guided=guided, together=True)
        table.add(f"{words}: both halves of the guidance in one pass", plain, one(together))
    with torch.inference_mode(False):  # the layout of weights made in inference mode could not be changed
        optimized = copy.deepcopy(generator)
    optimized.optimize_layout(len(class_ids))
    if not all(weight.is_contiguous() for weight in optimized.parameters()):
        columns = PlainCausal(optimized, guided=guided, together=True)
        table.add(f"{words}: both in one pass, weights by columns", plain, one(columns))
    if units.global_tokens:
        own = PlainCausal(generator, guided=guided, own=True)
        table.add(f"{words}: head of the token's part alone", plain, one(own))
    table.add(f"{words}: all of these", plain, one(optimized))
    whole = PlainCausal(generator, guided=guided)
    complete_run(table, optimized, sampler, batch_size, dtype, plain=whole, name=f"{units.length} tokens")
