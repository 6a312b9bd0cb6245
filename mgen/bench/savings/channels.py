"""The savings of a head over channels. Ids stay the same.

The plain form computes all slots up to the one it draws anew for every slot, modulations included, and passes both halves of
the guidance one after the other, in the trunk and, where it mixes logits, in the head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mgen.bench.savings.compare import Comparison, look_up_by_nonzero, whole
from mgen.bench.standin import StandIn
from mgen.heads.channels import ChannelHead, ChannelSettings
from mgen.heads.choice import choose, keep_likeliest
from mgen.nn.attention import gather_rows


class PlainChannelHead(StandIn):
    """Draws of a ChannelHead the plain way, with single savings switched on.

    Args:
        cached: keys and values are kept, so that a slot computes its own row alone.
        ahead: modulations of all slots in one product per block, ahead of them.
        together: one pass for both halves, where guidance mixes logits.
    """

    def __init__(self, head: ChannelHead, *, cached: bool = False, ahead: bool = False, together: bool = False) -> None:
        super().__init__(head, cached=cached, ahead=ahead, together=together)

    def sample(
        self,
        z: Tensor,
        *,
        noise: Tensor,
        plan: ChannelSettings = ChannelSettings(),  # noqa: B008  (frozen)
        temperature: float = 1.0,
        guidance: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As ChannelHead.sample."""
        head: ChannelHead = self._inner
        if guidance is not None and plan.guide == "context":
            conditional, null = z.chunk(2)
            z, guidance = torch.lerp(null, conditional, guidance), None
        passes = z.chunk(2) if guidance is not None and not self.together else (z,)
        parts = [self._begin(part.flatten(0, 1)) for part in passes]
        ids = torch.zeros(*noise.shape[:2], head.channels, dtype=torch.int64, device=z.device)
        score = torch.zeros(noise.shape[:2], device=z.device)
        for slot, channel in enumerate(head.order):
            before = ids[..., list(head.order[:slot])].flatten(0, 1)  # (n, slot)
            logits = torch.cat([self._logits(part, before, slot) for part in parts])
            if guidance is not None:
                conditional, null = logits.chunk(2)
                logits = torch.lerp(null, conditional, guidance)
            logits = logits.view(*ids.shape[:2], -1)  # (B, M, Q)
            scaled = keep_likeliest(logits / max(temperature, 1e-4), top_k=plan.top_k, top_p=plan.top_p)
            ids[..., channel] = choose(scaled, noise[:, :, channel])
            score = score + logits.log_softmax(-1).gather(-1, ids[..., channel, None]).squeeze(-1)
        return ids, score

    def _begin(self, z: Tensor) -> dict[str, Any]:
        """What the slots of context z (R, D) share."""
        head: ChannelHead = self._inner
        cond = head.cond(z)
        part: dict[str, Any] = {"cond": cond}
        if self.ahead:
            part["modulations"] = head.modulations(cond.unsqueeze(1) + head.slot_condition)  # (R, C, …)
        if self.cached:
            shape = 2, len(z), head.heads, head.channels, head.inner // head.heads
            part["kept"] = [cond.new_empty(shape) for _ in head.blocks]
        return part

    def _logits(self, part: dict[str, Any], before: Tensor, slot: int) -> Tensor:
        """Logits (R, Q) of a slot, given the ids (n, slot) of those before it."""
        head: ChannelHead = self._inner
        cond, start = part["cond"], slot if self.cached else 0
        rows = before + head.levels * torch.arange(slot, device=before.device)
        tokens = head.tokens(rows.repeat(len(cond) // len(before), 1))  # (R, slot, E)
        x = (
            torch.cat([head.first_input(cond, sampling=True).unsqueeze(1), tokens], dim=1)
            + head.slot_position[: slot + 1]
        )
        x = x[:, start:]
        if self.ahead:
            modulations = [m[:, start : slot + 1] for m in part["modulations"]]
        else:
            modulations = head.modulations(cond.unsqueeze(1) + head.slot_condition[start : slot + 1])
        kept = part["kept"] if self.cached else [None] * len(head.blocks)
        for block, modulation, layer in zip(head.blocks, modulations, kept):
            x = block(x, modulation, layer, slot)
        x = head.finish(x[:, -1], modulations[-1][:, -1])
        own = slice(slot * head.levels, (slot + 1) * head.levels)
        return nn.functional.linear(x, head.out.weight[own], head.out.bias[own]).float()


class PlainTrunk(StandIn):
    """A generator that computes the context at every position, for each half of the guidance by itself, and looks rows up."""

    def __init__(self, generator: Any, *, guided: bool) -> None:
        super().__init__(generator, head=PlainChannelHead(generator.head), guided=guided)

    def context(self, tokens: Tensor, known: Tensor, condition: Tensor, *, positions: Tensor, **_: Any) -> Tensor:
        halves = zip(*(x.chunk(2 if self.guided else 1) for x in (tokens, known, condition)))
        z = torch.cat([self._inner.context(*half) for half in halves])
        look_up_by_nonzero(positions, z.shape[1])
        return gather_rows(z, positions)


@torch.no_grad()
def spread(head: ChannelHead) -> None:
    """Give a new head weights under which draws depend on contexts and on ids before: modulations start at zero."""
    rng = torch.Generator().manual_seed(0)
    for module in head.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            module.weight.copy_(torch.randn(module.weight.shape, generator=rng) * 0.3 * module.in_features**-0.5)


def rows(table: Comparison, generator: Any, sampler: Any, batch_size: int, dtype: str = "fp32") -> None:
    """Add a row for each saving of a draw, measured on contexts drawn at random, and one for a complete run.

    Args:
        generator: with a ChannelHead. sampler: says how many positions are drawn at once (the mean of its steps) and how.
        dtype: as in mgen.bench.savings.savings.
    """
    head: ChannelHead = generator.head
    count, rng = max(1, round(generator.spec.length / sampler.config.steps)), torch.Generator().manual_seed(0)
    z = torch.randn(2 * batch_size, count, head.width, generator=rng).to(table.device)
    noise = torch.rand(batch_size, count, head.channels, generator=rng).to(table.device)
    draw: dict[str, Any] = {"noise": noise, "plan": head.plan(sampler.config.head or {}), "guidance": 2.0}

    def by(**switches: bool) -> Callable[[], Tensor]:
        return lambda: PlainChannelHead(head, **switches).sample(z, **draw)[0]

    words = f"{batch_size * count} tokens"
    table.add(f"channel head, {words}: keys and values kept", by(), by(cached=True))
    table.add(f"channel head, {words}: modulations of all slots ahead of them", by(), by(ahead=True))
    if draw["plan"].guide == "logits":
        table.add(f"channel head, {words}: both halves of the guidance in one pass", by(), by(together=True))
    table.add(f"channel head, {words}: all of these", by(), lambda: head.sample(z, **draw)[0])
    guided = any(sampler.guided(generator.unit_spec.length))
    plain, name = PlainTrunk(generator, guided=guided), f"{sampler.config.steps} steps, {head.channels} channels"
    whole(table, generator, sampler, batch_size, dtype, plain=plain, name=name)
