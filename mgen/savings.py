"""What the exact savings of a generator with a diffusion head are worth: each against the plain form, in one run.

The plain form is the computation as one writes it down first: every step of the chain asks the whole network, embeddings of
time and condition included, for both halves of the guidance, each half with a state of its own; the trunk's last block runs at
every position; tokens to draw are looked up with `nonzero`; in training every token passes the head.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mgen.heads.diffusion import DiffusionHead, Plan
from mgen.layers.attention import gather_rows
from mgen.samplers import Noise, ParallelSampler


class PlainHead:
    """Draws of a DiffusionHead the plain way, with single savings switched on.

    Args:
        embed_once: time embeddings once per run and the projected condition once per draw, instead of in every step.
        one_state: one state for both halves of the guidance.
    """

    def __init__(self, head: DiffusionHead, *, embed_once: bool = False, one_state: bool = False) -> None:
        self.head, self.embed_once, self.one_state = head, embed_once, one_state
        self.plan = head.plan

    def sample(
        self, z: Tensor, *, noise: Tensor, plan: Plan, temperature: float = 1.0, guidance: float | None = None
    ) -> tuple[Tensor, None]:
        """As DiffusionHead.sample."""
        head, chain, shape = self.head, plan.chain, noise.shape[1:3]
        z, draws = z.flatten(0, 1), noise.flatten(1, 2)
        n, twice = draws.shape[1], guidance is not None
        halves = 2 if twice and not self.one_state else 1
        x = draws[0].repeat(halves, 1)
        cond = head.cond(z) if self.embed_once else None
        chain.begin()
        for j, t in enumerate(chain.timesteps):
            rows = x[:n].repeat(2, 1) if twice else x
            if cond is not None:
                y = plan.embedding[j] + cond
            else:
                y = head.time(torch.full((len(rows),), t, device=x.device)) + head.cond(z)
            eps, v = head.answer(head.input(rows), head.modulations(y)).float().chunk(2, dim=-1)
            if guidance is not None:
                conditional, null = eps.chunk(2)
                eps = torch.lerp(null, conditional, guidance).repeat(halves, 1)
                v = v[: len(eps)]
            added = draws[j + 1].repeat(halves, 1) if len(draws) > 1 and j + 1 < len(chain.timesteps) else None
            x = chain.step(j, x, eps, v, added, temperature)
        return x[:n].unflatten(0, shape), None


class PlainGenerator:
    """A generator whose trunk computes the context at every position and looks the asked ones up afterwards."""

    def __init__(self, generator: Any) -> None:
        self.generator, self.spec, self.null_class = generator, generator.spec, generator.null_class
        self.head = PlainHead(generator.head)

    def context(self, tokens: Tensor, known: Tensor, condition: Tensor, *, positions: Tensor, **_: Any) -> Tensor:
        z = self.generator.context(tokens, known, condition)
        look_up_by_nonzero(positions, z.shape[1])  # the plain form's way to the rows; ours come in the order asked for
        return gather_rows(z, positions)


def look_up_by_nonzero(positions: Tensor, length: int) -> tuple[Tensor, ...]:
    """Rows and places to draw, as a mask of tokens is searched for them; on a GPU this waits for the device."""
    wanted = torch.zeros(len(positions), length, dtype=torch.bool, device=positions.device)
    return wanted.scatter_(1, positions, True).nonzero(as_tuple=True)


def spread(generator: Any) -> None:
    """Give the head's zero weights values, so that its answers are of order 1 and depend on the context."""
    for name, module in generator.head.named_modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=(0.3 if "adaln" in name else 1.0) * module.in_features**-0.5)


def savings(
    generator: Any, sampler: ParallelSampler, *, batch_size: int, repeats: int, whole: bool = True
) -> list[dict[str, Any]]:
    """One row per saving: its name, seconds of the plain form and with it, their ratio, and the largest difference of the results
    over the largest result.

    Single savings are measured at half of the decoding; `whole` adds the complete sampling run with all of them.
    """
    length, c, device = generator.spec.length, sampler.config, generator.device
    rng = torch.Generator().manual_seed(0)
    noise = sampler.draw(generator, range(batch_size)).to(device)
    label = torch.arange(batch_size, device=device) % generator.config.num_classes
    tokens = torch.randn(batch_size, length, generator.spec.channels, generator=rng).to(device)
    ranking = torch.rand(batch_size, length, generator=rng).argsort(1).to(device)
    known = torch.zeros(batch_size, length, dtype=torch.bool, device=device).scatter_(
        1, ranking[:, : length // 2], True
    )
    each = max(1, round(length / c.steps))
    positions = ranking[:, length // 2 : length // 2 + each]  # (B, M)
    both = torch.cat([label, torch.full_like(label, generator.null_class)])
    twice = (torch.cat([tokens, tokens]), known.repeat(2, 1), both)
    asked = positions.repeat(2, 1)
    strength = sampler.values("guidance", length)[-1]
    head, plan = generator.head, generator.head.plan(c.head or {})
    rows: list[dict[str, Any]] = []

    def compare(name: str, plain: Callable[[], Any], ours: Callable[[], Any], times: int = repeats) -> None:
        best = [float("inf")] * 2
        results: list[Any] = [None, None]
        for _ in range(times):  # in turn, so that both see the same machine
            for i, function in enumerate((plain, ours)):
                start = time.perf_counter()
                results[i] = function()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                best[i] = min(best[i], time.perf_counter() - start)
        row = {"saving": name, "plain_seconds": best[0], "seconds": best[1], "ratio": best[0] / best[1]}
        if isinstance(results[0], Tensor):
            row["difference"] = ((results[0] - results[1]).abs().max() / results[0].abs().max()).item()
        rows.append(row)

    with torch.inference_mode():
        z = generator.context(*twice, positions=asked)
        draw = dict(noise=noise.at(0, positions), plan=plan, guidance=strength if strength != 1 else 2.0)

        def by(**switches: bool) -> Callable[[], Tensor]:
            return lambda: PlainHead(head, **switches).sample(z, **draw)[0]

        compare("head: embeddings of time and condition out of the chain", by(), by(embed_once=True))
        compare("head: one state instead of two", by(), by(one_state=True))
        compare(
            "head: modulations of many steps in one product, ahead of them",
            by(embed_once=True, one_state=True),
            lambda: head.sample(z, **draw)[0],
        )
        compare("head: all of these", by(), lambda: head.sample(z, **draw)[0])
        counts = (length // 2, length // 2)
        compare(
            "trunk: last block only at the positions that are read",
            lambda: gather_rows(generator.context(*twice), asked),
            lambda: generator.context(*twice, positions=asked, visible=counts),
        )
        ahead = ranking.contiguous()
        compare(
            "sampler: positions as a slice of the order, not by nonzero",
            lambda: (
                [look_up_by_nonzero(ahead[:, s : s + each], length) for s in range(0, length - each, each)] and None
            ),
            lambda: [ahead[:, s : s + each] for s in range(0, length - each, each)] and None,
        )
    made = [head.draw(length, 4, rng) for _ in range(batch_size)]
    draws = {name: torch.stack([one[name] for one in made]).to(device) for name in made[0]}
    few = torch.zeros_like(known).scatter_(
        1, ranking[:, : length - round(0.867 * length)], True
    )  # MAR's mean mask ratio

    def step(which: str) -> Tensor:
        generator.zero_grad(set_to_none=True)
        loss = generator(tokens, label, few, head_tokens=which, **draws)[0].mean()
        loss.backward()
        return loss.detach()

    compare("training: head on masked tokens only", lambda: step("all"), lambda: step("masked"), 2)
    generator.zero_grad(set_to_none=True)
    if whole:

        def run(model: Any, draws: Noise) -> Tensor:
            *_, last = sampler(model, label, noise=draws)
            return last.tokens

        with torch.inference_mode():
            compare(
                f"all together: {c.steps} steps × {len(plan.chain.timesteps)} head steps, batch {batch_size}",
                lambda: run(PlainGenerator(generator), noise),
                lambda: run(generator, noise),
                1,
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a person."""
    width = max(len(row["saving"]) for row in rows)
    lines = [f"{'saving':<{width}} {'plain s':>9} {'s':>9} {'ratio':>6} {'rel. difference':>16}"]
    for row in rows:
        times = f"{row['plain_seconds']:>9.4f} {row['seconds']:>9.4f} {row['ratio']:>6.2f}"
        difference = f"{row['difference']:.1e}" if "difference" in row else ""
        lines.append(f"{row['saving']:<{width}} {times} {difference:>16}")
    return "\n".join(lines)
