"""The savings of a causal generator. Ids stay the same.

The plain form lays out keys and values for the whole sequence, copies and reads all of them at every token under a mask, passes the
halves of the guidance one after the other, and asks the heads of both parts of the tokens.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.bench.savings.compare import Comparison, whole
from mgen.bench.standin import StandIn
from mgen.generators.causal import CausalGenerator
from mgen.heads.parted import PartedHead
from mgen.nn.causal import CausalBlock, LiveKeys, Rows
from mgen.nn.memory import Memory


class PlainParts(StandIn):
    """A PartedHead that computes the logits of both parts."""

    def sample(self, z: Tensor, *, part: int, **options: Any) -> tuple[Tensor, Tensor]:
        """As PartedHead.sample."""
        self._inner.parts[1 - part].logits(z)
        return self._inner.sample(z, part=part, **options)


class PlainCausal(StandIn):
    """A CausalGenerator the plain way, with single savings switched on.

    Args:
        live: only the keys and values that are there are read, in place. together: both halves of the guidance in one pass.
        own: the head of the token's part alone.
    """

    def __init__(
        self, generator: Any, *, guided: bool, live: bool = False, together: bool = False, own: bool = False
    ) -> None:
        parted = isinstance(generator.head, PartedHead) and not own
        head = PlainParts(generator.head) if parted else generator.head
        super().__init__(generator, head=head, live=live, halves=2 if guided and not together else 1)

    def memory(self, condition: Tensor) -> Memory:
        """One for each pass; keys and values of the whole sequence are there from the beginning."""
        memory = Memory()
        memory.values["passes"] = [self._inner.memory(c) for c in condition.chunk(self.halves)]
        return memory

    def context(self, tokens: Tensor, known: Tensor, condition: Tensor, *, memory: Memory, **options: Any) -> Tensor:
        """As CausalGenerator.context."""
        halves = zip(*(x.chunk(self.halves) for x in (tokens, known, condition)), memory.values["passes"])
        return torch.cat([self._pass(*half, **options) for half in halves])

    def _pass(
        self, tokens: Tensor, known: Tensor, condition: Tensor, memory: Memory, *, visible: tuple[int, int], **_: Any
    ) -> Tensor:
        net: CausalGenerator = self._inner
        if self.live:
            return net.context(tokens, known, condition, visible=visible, memory=memory)
        length, rows = net.unit_spec.length, net.rows(memory.values["done"], visible[1] + 1)
        mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()[rows.first : rows.stop]
        x = net.embed(tokens, condition, rows.first, rows.stop, sampling=True)
        for block, kept in zip(net.blocks, memory.values["layers"]):
            assert isinstance(block, CausalBlock)
            x = _block(block, x, rows, kept, mask)
        memory.values["done"] = rows.stop
        return net.norm(x[:, -1:])


def _block(block: CausalBlock, x: Tensor, rows: Rows, kept: LiveKeys, mask: Tensor) -> Tensor:
    """As CausalBlock, on all keys and values of the sequence, those that are not there yet masked."""
    q, k, v = block.attn.project(block.norm1(x), 0, 3)
    k = rows.place(k)
    if kept.k is None:
        kept.k, kept.v = (n.new_zeros(*n.shape[:2], len(mask[0]), n.shape[3]) for n in (k, v))
    kept.add(k, v, rows)
    out = F.scaled_dot_product_attention(rows.place(q), kept.k.clone(), kept.v.clone(), attn_mask=mask)
    x = x + block.attn.proj(out.transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


@torch.no_grad()
def spread(generator: Any) -> None:
    """Give a new generator an output by which draws differ: it starts at zero."""
    if not generator.output.weight.any():
        nn.init.normal_(generator.output.weight, std=0.02)


def rows(table: Comparison, generator: Any, sampler: Any, batch_size: int, dtype: str = "fp32") -> None:
    """Add a row for each saving at one token in the middle of the sequence, and one for a complete run."""
    spec = generator.unit_spec
    middle, guided = spec.length // 2, any(sampler.guided(spec.length, spec.global_tokens))
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(spec.vocab_size, (batch_size, *spec.shape), generator=rng).to(table.device)
    label = torch.arange(batch_size, device=table.device) % generator.num_classes
    if guided:
        tokens, label = torch.cat([tokens, tokens]), torch.cat([label, torch.full_like(label, generator.null_class)])
    known = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=table.device)
    noise = torch.full((batch_size, 1, *spec.shape[1:]), 0.5, device=table.device)
    plan: dict[str, Any] = {"plan": generator.head.plan(sampler.config.head or {}), "guidance": 2.0 if guided else None}
    if spec.global_tokens:
        plan["part"] = 1

    def one(net: Any) -> Callable[[], Tensor]:
        memory = net.memory(label)
        net.context(tokens, known, label, visible=(middle, middle), memory=memory)  # the rows before

        def token() -> Tensor:
            for part in memory.values.get("passes", [memory]):  # the same row again
                part.values["done"] = middle
            z = net.context(tokens, known, label, visible=(middle, middle), memory=memory)
            return net.head.sample(z, noise=noise, **plan)[0]

        return token

    plain, words = one(PlainCausal(generator, guided=guided)), f"token {middle} of {spec.length}"
    table.add(f"{words}: live keys and values, in place", plain, one(PlainCausal(generator, guided=guided, live=True)))
    if guided:
        together = PlainCausal(generator, guided=guided, together=True)
        table.add(f"{words}: both halves of the guidance in one pass", plain, one(together))
    with torch.inference_mode(False):  # weights made in it could not be laid out
        arranged = copy.deepcopy(generator)
    arranged.lay_out(len(label))
    if not all(weight.is_contiguous() for weight in arranged.parameters()):
        columns = PlainCausal(arranged, guided=guided, together=True)
        table.add(f"{words}: both in one pass, weights by columns", plain, one(columns))
    if spec.global_tokens:
        own = PlainCausal(generator, guided=guided, own=True)
        table.add(f"{words}: head of the token's part alone", plain, one(own))
    table.add(f"{words}: all of these", plain, one(arranged))
    run = f"{spec.length} tokens"
    whole(table, arranged, sampler, batch_size, dtype, plain=PlainCausal(generator, guided=guided), name=run)
