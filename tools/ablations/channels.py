"""Ablations of a channel head. Ids stay the same.

The plain form computes all ids up to the one it draws again for every id, modulations included, and passes both halves of the
guidance one after the other, in the trunk and, where it mixes logits, in the head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mgen.bench.proxy import Proxy
from mgen.generators.generator import Generator
from mgen.heads.channels import ChannelHead, ChannelSettings
from mgen.heads.head import Draw, mix
from mgen.heads.logit_filter import choose, keep_likeliest
from mgen.nn.attention import gather_rows
from mgen.samplers import ParallelSampler
from tools.ablations.compare import AblationTable, complete_run, look_up_by_nonzero

# What the ids of a draw share: cond(z) (R, E), and if switched on, the modulations (R, C, …) of all ids and the keys and values
# (2, R, H, C, d) of every block.
Shared = tuple[Tensor, list[Tensor] | None, list[Tensor] | None]


class PlainChannelHead(Proxy):
    """Draws of a ChannelHead the plain way, with single optimizations switched on.

    Args:
        cached: keys and values are kept, so that a slot computes its own row alone.
        ahead: modulations of all ids in one product per block, ahead of them.
        together: one pass for both halves, where guidance mixes logits.
    """

    cached = ahead = together = False

    def sample(
        self,
        z: Tensor,
        *,
        noise: Tensor,
        plan: ChannelSettings = ChannelSettings(),  # noqa: B008  (frozen)
        temperature: float = 1.0,
        guidance: float | None = None,
    ) -> Draw:
        """See ChannelHead.sample."""
        head: ChannelHead = self._inner
        if plan.guide == "context":
            z, guidance = mix(z, guidance), None
        passes = z.chunk(2) if guidance is not None and not self.together else (z,)
        parts = [self._begin(part.flatten(0, 1)) for part in passes]
        ids = torch.zeros(*noise.shape[:2], head.channels, dtype=torch.int64, device=z.device)
        score = torch.zeros(noise.shape[:2], device=z.device)
        for slot, channel in enumerate(head.order):
            before = ids[..., list(head.order[:slot])].flatten(0, 1)  # (n, slot)
            logits = mix(torch.cat([self._logits(*part, before, slot) for part in parts]), guidance)
            logits = logits.view(*ids.shape[:2], -1)  # (B, M, Q)
            scaled = keep_likeliest(logits / max(temperature, 1e-4), top_k=plan.top_k, top_p=plan.top_p)
            ids[..., channel] = choose(scaled, noise[:, :, channel])
            score = score + logits.log_softmax(-1).gather(-1, ids[..., channel, None]).squeeze(-1)
        return Draw(ids, score)

    def _begin(self, z: Tensor) -> Shared:
        """What the ids of context z (R, D) share."""
        head: ChannelHead = self._inner
        cond, modulations, kept = head.cond(z), None, None
        if self.ahead:
            modulations = head.modulations(cond.unsqueeze(1) + head.slot_condition)  # (R, C, …)
        if self.cached:
            shape = 2, len(z), head.heads, head.channels, head.inner // head.heads
            kept = [cond.new_empty(shape) for _ in head.blocks]
        return cond, modulations, kept

    def _logits(
        self, cond: Tensor, ahead: list[Tensor] | None, kept: list[Tensor] | None, before: Tensor, slot: int
    ) -> Tensor:
        """Logits (R, Q) of a slot, given the ids (n, slot) of those before it."""
        head: ChannelHead = self._inner
        start = slot if self.cached else 0
        rows = before + head.levels * torch.arange(slot, device=before.device)
        tokens = head.tokens(rows.repeat(len(cond) // len(before), 1))  # (R, slot, E)
        first = head.first_input(cond, sampling=True).unsqueeze(1)
        x = (torch.cat([first, tokens], dim=1) + head.slot_position[: slot + 1])[:, start:]
        if ahead is not None:
            modulations = [m[:, start : slot + 1] for m in ahead]
        else:
            modulations = head.modulations(cond.unsqueeze(1) + head.slot_condition[start : slot + 1])
        for i, (block, modulation) in enumerate(zip(head.blocks, modulations)):
            x = block(x, modulation, None if kept is None else kept[i], slot)
        x = head.final_norm(x[:, -1], modulations[-1][:, -1])
        own = slice(slot * head.levels, (slot + 1) * head.levels)
        return nn.functional.linear(x, head.out.weight[own], head.out.bias[own]).float()


class PlainTrunk(Proxy):
    """A generator that computes the context at every position, one half of the guidance after the other, and looks rows up."""

    def __init__(self, generator: Generator, *, guided: bool) -> None:
        head = generator.head
        assert isinstance(head, ChannelHead)
        plain = PlainChannelHead(head)
        super().__init__(generator, head=plain, guided_head=plain, guided=guided)

    def context(self, tokens: Tensor, known: Tensor, class_ids: Tensor, *, positions: Tensor, **_: Any) -> Tensor:
        """See Generator.context."""
        halves = zip(*(x.chunk(2 if self.guided else 1) for x in (tokens, known, class_ids)))
        z = torch.cat([self._inner.context(*half) for half in halves])
        look_up_by_nonzero(positions, z.shape[1])
        return gather_rows(z, positions)


@torch.no_grad()
def randomize(head: ChannelHead) -> None:
    """Give a new head weights with which draws depend on contexts and on ids before: modulations start at zero."""
    rng = torch.Generator().manual_seed(0)
    for module in head.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            module.weight.copy_(torch.randn(module.weight.shape, generator=rng) * 0.3 * module.in_features**-0.5)


def add_rows(table: AblationTable, generator: Generator, sampler: ParallelSampler, batch_size: int, dtype: str) -> None:
    """Add a row for each optimization of a draw, on contexts drawn at random, and one for a complete run.

    Args:
        generator: with a ChannelHead. sampler: says how many positions are drawn at once (the mean of its steps) and how.
    """
    head = generator.head
    assert isinstance(head, ChannelHead)
    count = max(1, round(generator.tokens.length / sampler.config.steps))
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(2 * batch_size, count, head.width, generator=rng).to(table.device)
    noise = torch.rand(batch_size, count, head.channels, generator=rng).to(table.device)
    plan = head.plan(sampler.longest_head)

    def by(**switches: bool) -> Callable[[], Tensor]:
        return lambda: PlainChannelHead(head, **switches).sample(z, noise=noise, plan=plan, guidance=2.0).tokens

    def ours() -> Tensor:
        return head.sample(z, noise=noise, plan=plan, guidance=2.0).tokens

    words = f"channel head, {batch_size * count} tokens"
    table.add(f"{words}: keys and values kept", by(), by(cached=True))
    table.add(f"{words}: modulations of all channels ahead of them", by(), by(ahead=True))
    if plan.guide == "logits":
        table.add(f"{words}: both halves of the guidance in one pass", by(), by(together=True))
    table.add(f"{words}: all of these", by(), ours)
    units = generator.units
    guided = any(sampler.guided(units.length, units.global_tokens))
    name = f"{sampler.config.steps} steps, {head.channels} channels"
    plain = PlainTrunk(generator, guided=guided)
    complete_run(table, generator, sampler, batch_size, dtype, plain=plain, name=name)
