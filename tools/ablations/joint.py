"""Ablations of a head that denoises the whole token map (a joint head).

The plain form runs the whole network in every step of the chain, embeddings of time and contexts included, for both halves of the
guidance with a state of its own each; coefficients are looked up in tables and known tokens are written by boolean indexing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mgen.bench.proxy import Proxy
from mgen.generators.cascade import Cascade
from mgen.heads.chains import ChainSettings, Tables
from mgen.heads.diffusion import ChainPlan
from mgen.heads.diffusion_transformer import DiffusionTransformerHead
from mgen.heads.head import Draw, Settings, mix
from mgen.samplers import ParallelSampler
from tools.ablations.compare import AblationTable
from tools.ablations.diffusion import PlainGenerator

MOST_STEPS = 10  # of a measured chain: all its steps cost the same


class PlainJointHead(Proxy):
    """Draws of a DiffusionTransformerHead the plain way, with single optimizations switched on.

    Args:
        time_once: time embeddings once per run. cond_once: the projected contexts once per draw. Otherwise both in every step.
        one_state: one state, embedded once, for both halves of the guidance.
        by_where: known tokens by torch.where on two maps, with coefficients as numbers.
        unknown_only: last block and output only at unknown positions.
    """

    time_once = cond_once = one_state = by_where = unknown_only = False

    def sample(
        self,
        z: Tensor,
        *,
        noise: Tensor,
        plan: ChainPlan,
        tokens: Tensor,
        known: Tensor,
        temperature: float = 1.0,
        guidance: float | None = None,
        unknown: Tensor | None = None,
    ) -> Draw:
        """See DiffusionTransformerHead.sample."""
        head, chain, b = self._inner, plan.chain, len(known)
        guided = guidance is not None
        halves = 2 if guided and not self.one_state else 1
        x, start = noise[0].repeat(halves, 1, 1), noise[0].repeat(halves, 1, 1)
        given, visible = tokens.repeat(halves, 1, 1), known.repeat(halves, 1)
        asked = unknown if self.unknown_only else None
        cond = head.cond(z) if self.cond_once else None
        chain.begin()
        for j, t in enumerate(chain.timesteps):
            x = self._overwrite(chain.tables, len(chain.timesteps) - 1 - j, x, given, start, visible)
            # (R, 1, W), or (W,)
            time = plan.embedding[j] if self.time_once else head.time(torch.full((len(z), 1), t, device=z.device))
            y = time + (head.cond(z) if cond is None else cond)  # (R, L, W)
            if self.one_state and guided:
                h = head.embed(x).repeat(2, 1, 1)
            else:
                h = head.embed(x[:b].repeat(2, 1, 1) if guided else x)
            eps = head.answer(h, y, asked if asked is None or not guided else asked.repeat(2, 1)).float()
            eps = mix(eps, guidance)
            if asked is not None:  # known tokens are overwritten whatever the chain makes of them
                eps = torch.zeros_like(noise[0]).scatter_(1, asked.unsqueeze(-1).expand_as(eps), eps)
            added = noise[j + 1].repeat(halves, 1, 1) if len(noise) > 1 and j + 1 < len(chain.timesteps) else None
            x = chain.step(j, x, eps.repeat(halves, 1, 1), None, added, temperature)
        x = x[:b].clone()
        x[known] = tokens[known]
        return Draw(x, None)

    def _overwrite(self, tables: Tables, k: int, x: Tensor, given: Tensor, start: Tensor, visible: Tensor) -> Tensor:
        """x with its known positions as the chain would have them at step k from the clean end: signal · token + noise · n0."""
        if self.by_where:
            return torch.where(visible.unsqueeze(-1), tables.signal[k] * given + tables.noise[k] * start, x)
        signal = torch.from_numpy(tables.signal).to(x.device)[k].float()
        scale = torch.from_numpy(tables.noise).to(x.device)[k].float()
        x = x.clone()
        x[visible] = signal * given[visible] + scale * start[visible]
        return x


def randomize(head: DiffusionTransformerHead) -> None:
    """Give a new head weights with which draws depend on the contexts and neither explode nor all end at a bound.

    The output is fitted to ε = x, which is right for almost pure noise; to this the modulations add what depends on time and contexts.
    """
    rng = torch.Generator().manual_seed(0)
    length, width = head.position.shape
    count = max(2, 4 * width // length)
    seen: list[Tensor] = []
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, nn.Linear) and not module.weight.any():
                module.weight.copy_(torch.randn(module.weight.shape, generator=rng) * 0.3 * module.in_features**-0.5)
        x = torch.randn(count, length, head.channels, generator=rng).to(head.position.device)
        z = torch.randn(count, length, head.width, generator=rng).to(x.device)
        t = torch.randint(head.config.train_steps, (count,), generator=rng).to(x.device)
        hook = head.out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        head(x, t, z)
        hook.remove()
        head.out.weight.copy_(torch.linalg.lstsq(seen[0].flatten(0, 1), x.flatten(0, 1)).solution.T)


def plain_stages(cascade: Cascade) -> Proxy:
    """A cascade whose trunk and heads compute the plain way."""
    head = cascade.second.head
    assert isinstance(head, DiffusionTransformerHead)
    plain = PlainJointHead(head)
    second = Proxy(cascade.second, head=plain, guided_head=plain)
    return Proxy(cascade, first=PlainGenerator(cascade.first), second=second, head=plain, guided_head=plain)


def settings_in_words(sampler: ParallelSampler) -> str:
    """Steps of a run and of its head's chain, of both stages."""
    own = [s for s in (sampler.first_stage, sampler) if s is not None]
    return " + ".join(f"{s.config.steps} steps × {ChainSettings.of(s.longest_head).steps} head steps" for s in own)


def add_rows(table: AblationTable, head: DiffusionTransformerHead, settings: Settings, batch_size: int) -> None:
    """Add a row for each optimization of the chain, with half of the tokens known and contexts drawn at random.

    Args:
        settings: of the chain, see ChainSettings; at most MOST_STEPS of its steps are measured.
    """
    short = {**settings, "steps": min(ChainSettings.of(settings).steps, MOST_STEPS)}
    length, rng = len(head.position), torch.Generator().manual_seed(0)
    count, channels = head.noise_spec(short).shape
    z = torch.randn(2 * batch_size, length, head.width, generator=rng).to(table.device)
    noise = torch.randn(count, batch_size, length, channels, generator=rng).to(table.device)
    tokens = torch.randn(batch_size, length, channels, generator=rng).to(table.device)
    order = torch.rand(batch_size, length, generator=rng).argsort(1).to(table.device)
    known = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, : length // 2], True)
    unknown = order[:, length // 2 :].sort(1).values  # (B, M)
    draw: dict[str, Any] = {"noise": noise, "plan": head.plan(short), "guidance": 2.0}
    draw |= {"tokens": tokens, "known": known, "unknown": unknown}

    def by(**switches: bool) -> Callable[[], Tensor]:
        return lambda: PlainJointHead(head, **switches).sample(z, **draw).tokens

    table.add("joint head: projection of the contexts out of the chain", by(), by(cond_once=True))
    table.add("joint head: time embeddings once per run", by(), by(time_once=True))
    table.add("joint head: one state, embedded once, instead of two", by(), by(one_state=True))
    table.add("joint head: known tokens by where, not by indexing", by(), by(by_where=True))
    table.add("joint head: last block only at unknown positions", by(), by(unknown_only=True))
    table.add("joint head: all of these", by(), lambda: head.sample(z, **draw).tokens)
