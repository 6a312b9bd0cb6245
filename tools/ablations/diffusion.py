"""Ablations of a diffusion head, and of the trunk, the sampler and the training around it."""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mgen.bench.proxy import Proxy
from mgen.generators.generator import Generator
from mgen.generators.losses import LossOptions
from mgen.heads.chains import ChainSettings
from mgen.heads.composite import VectorWindowHead
from mgen.heads.diffusion import ChainPlan, DiffusionHead
from mgen.heads.head import Draw, Head, HeadNoise, mix
from mgen.nn.attention import gather_rows
from mgen.samplers import ParallelSampler
from tools.ablations.compare import AblationTable, complete_run, look_up_by_nonzero

MASK_RATIO = 0.867  # mean of MAR's mask distribution


def diffusion_of(head: Head) -> DiffusionHead:
    """The diffusion head, or that inside a head of windows."""
    return cast(DiffusionHead, head.inner if isinstance(head, VectorWindowHead) else head)


class PlainHead(Proxy):
    """Draws of a DiffusionHead the plain way, with single optimizations switched on.

    Args:
        time_once: time embeddings once per run. cond_once: the projected condition once per draw. Otherwise both in every step.
        one_state: one state for both halves of the guidance.
    """

    time_once = cond_once = one_state = False

    def sample(
        self, z: Tensor, *, noise: Tensor, plan: ChainPlan, temperature: float = 1.0, guidance: float | None = None
    ) -> Draw:
        """See DiffusionHead.sample."""
        head, chain, shape = diffusion_of(self._inner), plan.chain, noise.shape[1:3]
        z = self._inner.blocks(z) if isinstance(self._inner, VectorWindowHead) else z
        z, numbers = z.flatten(0, 1), noise.flatten(1, 2)
        n, guided = numbers.shape[1], guidance is not None
        halves = 2 if guided and not self.one_state else 1
        x = numbers[0].repeat(halves, 1)
        cond = head.cond(z) if self.cond_once else None
        chain.begin()
        for j, t in enumerate(chain.timesteps):
            rows = x[:n].repeat(2, 1) if guided else x
            time = plan.embedding[j] if self.time_once else head.time(torch.full((len(rows),), t, device=x.device))
            y = time + (head.cond(z) if cond is None else cond)
            eps, v = head.answer(head.input(rows), head.modulations(y)).float().chunk(2, dim=-1)
            if guidance is not None:
                eps = mix(eps, guidance).repeat(halves, 1)
                v = v[: len(eps)]
            added = numbers[j + 1].repeat(halves, 1) if len(numbers) > 1 and j + 1 < len(chain.timesteps) else None
            x = chain.step(j, x, eps, v, added, temperature)
        return Draw(x[:n].unflatten(0, shape), None)


class PlainGenerator(Proxy):
    """A generator whose trunk computes the context at every position; the wanted ones are looked up afterwards."""

    def __init__(self, generator: Generator) -> None:
        head = PlainHead(generator.head)
        super().__init__(generator, head=head, guided_head=head)

    def context(self, tokens: Tensor, known: Tensor, class_ids: Tensor, *, positions: Tensor, **_: Any) -> Tensor:
        """See Generator.context."""
        z = self._inner.context(tokens, known, class_ids)
        look_up_by_nonzero(positions, z.shape[1])  # how the plain form finds its rows
        return gather_rows(z, positions)


@torch.no_grad()
def randomize(head: DiffusionHead) -> None:
    """Give a new head weights with which draws depend on the context and neither explode nor all end at a bound.

    ε points along x with the length of a Gaussian vector, which is right for almost pure noise; to this the modulations add what
    depends on time and context.
    """
    for module in head.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1 * module.in_features**-0.5)
    along = head.input.weight.T  # (C, W); LN(input(x)) is input(x) over its root mean square
    root_mean_square = along.square().mean().sqrt()
    head.out.weight[: head.channels] += along * (head.channels**0.5 / (along.shape[1] * root_mean_square))


def add_rows(table: AblationTable, generator: Generator, sampler: ParallelSampler, batch_size: int, dtype: str) -> None:
    """All rows of a generator with a diffusion head, whose cache is left out: it is not exact (see tools.ablations.head_cache)."""
    sampler = sampler.override(head={"cache": {}})
    add_single(table, generator, sampler, batch_size)
    with torch.inference_mode(False):
        _add_training(table, generator, batch_size)
    name = f"{sampler.config.steps} steps × {ChainSettings.of(sampler.longest_head).steps} head steps"
    complete_run(table, generator, sampler, batch_size, dtype, plain=PlainGenerator(generator), name=name)


def known_state(generator: Generator, batch_size: int, share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random tokens, a known mask of `share`, class ids, and the order (B, L) that made the mask."""
    units, device, rng = generator.units, generator.device, torch.Generator().manual_seed(0)
    tokens = torch.randn(batch_size, *units.shape, generator=rng).to(device)
    order = torch.rand(batch_size, units.length, generator=rng).argsort(1).to(device)
    known = torch.zeros(batch_size, units.length, dtype=torch.bool, device=device)
    known.scatter_(1, order[:, : round(share * units.length)], True)
    return tokens, known, torch.arange(batch_size, device=device) % generator.num_classes, order


def add_single(table: AblationTable, generator: Generator, sampler: ParallelSampler, batch_size: int) -> None:
    """Add each optimization of the sampling loop on its own."""
    length, head = generator.units.length, generator.head
    tokens, known, class_ids, order = known_state(generator, batch_size, 0.5)
    each, half = max(1, round(length / sampler.config.steps)), round(0.5 * length)
    positions = order[:, half : half + each]  # (B, M)
    both = torch.cat([class_ids, torch.full_like(class_ids, generator.null_class or 0)])
    guided, asked = (torch.cat([tokens, tokens]), known.repeat(2, 1), both), positions.repeat(2, 1)
    noise = sampler.make_noise(generator, range(batch_size)).to(generator.device)
    plan = head.plan({**sampler.longest_head, "cache": {}})
    z = generator.context(*guided, positions=asked)
    draw: dict[str, Any] = {"noise": noise.at(0, positions), "plan": plan, "guidance": 2.0}

    def by(**switches: bool) -> Callable[[], Tensor]:
        return lambda: PlainHead(head, **switches).sample(z, **draw).tokens

    def ours() -> Tensor:
        return head.sample(z, **draw).tokens

    table.add("head: projection of the condition out of the chain", by(), by(cond_once=True))
    table.add("head: time embeddings once per run", by(), by(time_once=True))
    table.add("head: one state instead of two", by(), by(one_state=True))
    first = by(time_once=True, cond_once=True, one_state=True)
    table.add("head: modulations of many steps in one product, ahead of them", first, ours)
    table.add("head: all of these", by(), ours)
    table.add(
        "trunk: last block only at the positions that are read",
        lambda: gather_rows(generator.context(*guided), asked),
        lambda: generator.context(*guided, positions=asked, visible=(half, half)),
    )

    def look_up() -> None:
        for start in range(0, length - each, each):
            look_up_by_nonzero(order[:, start : start + each], length)

    def cut() -> None:
        for start in range(0, length - each, each):
            order[:, start : start + each]

    table.add("sampler: positions as a slice of the order, not by nonzero", look_up, cut)


def _add_training(table: AblationTable, generator: Generator, batch_size: int) -> None:
    """Add loss and gradient of one batch at MASK_RATIO."""
    tokens, known, class_ids, _ = known_state(generator, batch_size, 1 - MASK_RATIO)
    rng = torch.Generator().manual_seed(0)
    made = [diffusion_of(generator.head).training_noise(generator.units.length, 4, rng) for _ in range(batch_size)]
    t, numbers = torch.stack([one.t for one in made]), torch.stack([one.noise for one in made])
    noise = HeadNoise(t.to(generator.device), numbers.to(generator.device))

    def step(which: Literal["masked", "all"]) -> Tensor:
        generator.zero_grad(set_to_none=True)
        options = LossOptions(head_tokens=which)
        loss = generator(tokens, class_ids, known, options=options, noise=noise)[0].mean()
        loss.backward()
        return loss.detach()

    table.add("training: head on masked tokens only", lambda: step("all"), lambda: step("masked"), 2)
    generator.zero_grad(set_to_none=True)
