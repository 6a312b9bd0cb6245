"""The savings of a diffusion head, and of the trunk, the sampler and the training in front of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mgen.bench.savings.compare import Comparison, look_up_by_nonzero, whole
from mgen.bench.standin import StandIn
from mgen.heads.chains import ChainSettings
from mgen.heads.diffusion import DiffusionHead, Plan
from mgen.nn.attention import gather_rows
from mgen.samplers import ParallelSampler


class PlainHead(StandIn):
    """Draws of a DiffusionHead the plain way, with single savings switched on.

    Args:
        time_once: time embeddings once per run. cond_once: the projected condition once per draw. Otherwise both in every step.
        one_state: one state for both halves of the guidance.
    """

    def __init__(
        self, head: DiffusionHead, *, time_once: bool = False, cond_once: bool = False, one_state: bool = False
    ) -> None:
        super().__init__(head, time_once=time_once, cond_once=cond_once, one_state=one_state)

    def sample(
        self, z: Tensor, *, noise: Tensor, plan: Plan, temperature: float = 1.0, guidance: float | None = None
    ) -> tuple[Tensor, None]:
        """As DiffusionHead.sample."""
        head, chain, shape = self._inner, plan.chain, noise.shape[1:3]
        z, draws = z.flatten(0, 1), noise.flatten(1, 2)
        n, twice = draws.shape[1], guidance is not None
        halves = 2 if twice and not self.one_state else 1
        x = draws[0].repeat(halves, 1)
        cond = head.cond(z) if self.cond_once else None
        chain.begin()
        for j, t in enumerate(chain.timesteps):
            rows = x[:n].repeat(2, 1) if twice else x
            time = plan.embedding[j] if self.time_once else head.time(torch.full((len(rows),), t, device=x.device))
            y = time + (head.cond(z) if cond is None else cond)
            eps, v = head.answer(head.input(rows), head.modulations(y)).float().chunk(2, dim=-1)
            if guidance is not None:
                conditional, null = eps.chunk(2)
                eps = torch.lerp(null, conditional, guidance).repeat(halves, 1)
                v = v[: len(eps)]
            added = draws[j + 1].repeat(halves, 1) if len(draws) > 1 and j + 1 < len(chain.timesteps) else None
            x = chain.step(j, x, eps, v, added, temperature)
        return x[:n].unflatten(0, shape), None


class PlainGenerator(StandIn):
    """A generator whose trunk computes the context at every position and looks the asked ones up afterwards."""

    def __init__(self, generator: Any) -> None:
        super().__init__(generator, head=PlainHead(generator.head))

    def context(self, tokens: Tensor, known: Tensor, condition: Tensor, *, positions: Tensor, **_: Any) -> Tensor:
        z = self._inner.context(tokens, known, condition)
        look_up_by_nonzero(positions, z.shape[1])  # the plain form's way to the rows; ours come in the order asked for
        return gather_rows(z, positions)


@torch.no_grad()
def spread(head: DiffusionHead) -> None:
    """Give a new head weights under which draws depend on the context and neither explode nor all end at a bound.

    ε points along x with the length of a Gaussian vector, which is what an almost pure noise calls for; to this the
    modulations add what depends on time and context.
    """
    for module in head.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1 * module.in_features**-0.5)
    along = head.input.weight.T  # (C, W); LN(input(x)) is input(x) over its root mean square
    root_mean_square = along.square().mean().sqrt()
    head.out.weight[: head.channels] += along * (head.channels**0.5 / (along.shape[1] * root_mean_square))


def rows(table: Comparison, generator: Any, sampler: ParallelSampler, batch_size: int, dtype: str) -> None:
    """All rows of a generator whose head is a diffusion head."""
    with torch.inference_mode():
        single(table, generator, sampler, batch_size)
    _training(table, generator, batch_size)
    with torch.inference_mode():
        name = f"{sampler.config.steps} steps × {ChainSettings.of(sampler.config.head or {}).steps} head steps"
        whole(table, generator, sampler, batch_size, dtype, plain=PlainGenerator(generator), name=name)


def _state(generator: Any, batch_size: int, share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random tokens, known mask of `share`, class ids, and the order (B, L) that made the mask."""
    length, device, rng = generator.unit_spec.length, generator.device, torch.Generator().manual_seed(0)
    tokens = torch.randn(batch_size, length, generator.unit_spec.channels, generator=rng).to(device)
    order = torch.rand(batch_size, length, generator=rng).argsort(1).to(device)
    known = torch.zeros(batch_size, length, dtype=torch.bool, device=device)
    known.scatter_(1, order[:, : round(share * length)], True)
    return tokens, known, torch.arange(batch_size, device=device) % generator.num_classes, order


def single(table: Comparison, generator: Any, sampler: ParallelSampler, batch_size: int) -> None:
    """Each saving of the sampling loop on its own."""
    length, head = generator.unit_spec.length, generator.head
    tokens, known, label, order = _state(generator, batch_size, 0.5)
    each, half = max(1, round(length / sampler.config.steps)), round(0.5 * length)
    positions = order[:, half : half + each]  # (B, M)
    both = torch.cat([label, torch.full_like(label, generator.null_class)])
    twice, asked = (torch.cat([tokens, tokens]), known.repeat(2, 1), both), positions.repeat(2, 1)
    noise = sampler.draw(generator, range(batch_size)).to(generator.device)
    plan = head.plan(sampler.config.head or {})
    z = generator.context(*twice, positions=asked)
    draw: dict[str, Any] = {"noise": noise.at(0, positions), "plan": plan, "guidance": 2.0}

    def by(**switches: bool) -> Callable[[], Tensor]:
        return lambda: PlainHead(head, **switches).sample(z, **draw)[0]

    def ours() -> Tensor:
        return head.sample(z, **draw)[0]

    table.add("head: projection of the condition out of the chain", by(), by(cond_once=True))
    table.add("head: time embeddings once per run", by(), by(time_once=True))
    table.add("head: one state instead of two", by(), by(one_state=True))
    first = by(time_once=True, cond_once=True, one_state=True)
    table.add("head: modulations of many steps in one product, ahead of them", first, ours)
    table.add("head: all of these", by(), ours)
    table.add(
        "trunk: last block only at the positions that are read",
        lambda: gather_rows(generator.context(*twice), asked),
        lambda: generator.context(*twice, positions=asked, visible=(half, half)),
    )
    table.add(
        "sampler: positions as a slice of the order, not by nonzero",
        lambda: [look_up_by_nonzero(order[:, s : s + each], length) for s in range(0, length - each, each)] and None,
        lambda: [order[:, s : s + each] for s in range(0, length - each, each)] and None,
    )


def _training(table: Comparison, generator: Any, batch_size: int) -> None:
    """Loss and gradient of one batch at MAR's mean mask ratio, 0.867."""
    tokens, known, label, _ = _state(generator, batch_size, 1 - 0.867)
    rng = torch.Generator().manual_seed(0)
    made = [generator.head.draw(generator.unit_spec.length, 4, rng) for _ in range(batch_size)]
    draws = {name: torch.stack([one[name] for one in made]).to(generator.device) for name in made[0]}

    def step(which: str) -> Tensor:
        generator.zero_grad(set_to_none=True)
        loss = generator(tokens, label, known, head_tokens=which, **draws)[0].mean()
        loss.backward()
        return loss.detach()

    table.add("training: head on masked tokens only", lambda: step("all"), lambda: step("masked"), 2)
    generator.zero_grad(set_to_none=True)
