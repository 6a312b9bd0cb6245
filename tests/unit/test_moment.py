"""Order moment: positions by their whole distributions, then tokens there alone. Its exact law, and MaskGIT's for many positions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.bench.flops import count_run
from mgen.bench.proxy import Proxy
from mgen.samplers import Noise, ParallelSampler
from mgen.utils.errors import MgenError
from tests.helpers import tiny_generator, tiny_mar, tiny_net, tiny_pipeline, tiny_tokens

V, IMAGES = 4, 20_000
P = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25], [0.05, 0.05, 0.3, 0.6]])


def toy(side: int) -> Any:
    """A generator whose position i has the distribution P[i % 4], whatever is known."""
    head = {"table": "own", "transform": False, "bias": False}
    net = tiny_net("uvit", tokens=tiny_tokens(side=side, vocab_size=V), head=head)
    with torch.no_grad():
        net.head.table.weight.copy_(torch.eye(V, 32))
    logits = torch.nn.functional.pad(P.log(), (0, 28)).repeat(side * side // len(P), 1)  # (L, D)
    return Proxy(net, context=lambda tokens, *_, positions, **__: logits[positions])


def first_pairs(net: Any, order: str, a: float, images: int = IMAGES, **settings: Any) -> Tensor:
    """How often (4, V) the first token that is revealed is this one, at a position of this kind."""
    length = net.units.length
    rng = torch.Generator().manual_seed(3)
    uniform = torch.rand(3, images, length, generator=rng)
    noise = Noise(order=uniform[0], tokens=uniform[1:2], confidence=-(-uniform[2:].clamp(1e-20, 1 - 1e-7).log()).log())
    schedule = [1 - 1 / length]
    sampler = ParallelSampler(steps=2, order=order, schedule=schedule, confidence_temperature=[a, a], **settings)
    step = next(iter(sampler(net, torch.zeros(images, dtype=torch.int64), noise=noise)))
    assert (step.known.sum(1) == 1).all()
    where = step.known.to(torch.uint8).argmax(1, keepdim=True)
    pairs = where.squeeze(1) % 4 * V + step.tokens.gather(1, where).squeeze(1)
    return torch.bincount(pairs, minlength=4 * V).view(4, V) / images


def law(a: float) -> Tensor:
    """p^(1 + 1/a), of all positions together."""
    powers = P.double() ** (1 + 1 / a)
    return powers / powers.sum()


@pytest.mark.parametrize("a", [0.3, 1.0, 4.5])
@pytest.mark.parametrize("side", [2, 4])
def test_the_first_token_has_the_law_of_the_formula(side: int, a: float) -> None:
    got, wanted = first_pairs(toy(side), "moment", a), law(a)
    assert ((got - wanted).abs() < 4.5 * (wanted * (1 - wanted) / IMAGES).sqrt() + 1e-5).all()


def test_confidence_has_this_law_for_many_positions() -> None:
    """MaskGIT's order keeps one of the draws: among 4 positions it has another law; among 64 no difference is seen in 20,000 images."""
    few, many = (0.5 * float((first_pairs(toy(side), "confidence", 1.0) - law(1.0)).abs().sum()) for side in (2, 8))
    assert few > 0.03 and many < 0.015, (few, many)  # 0.01 is the noise


def test_settings_of_the_draw() -> None:
    """Temperature and filters change what is drawn, not what positions are ranked by: q · p^(1/a)."""
    q = (P.double().log() / 0.5).softmax(-1)
    q = torch.where(q >= q.sort(dim=-1, descending=True).values[:, 1:2], q, 0.0)  # ties stay
    wanted = q / q.sum(-1, keepdim=True) * P.double() ** (1 / 2.0)
    wanted = wanted / wanted.sum()
    got = first_pairs(toy(2), "moment", 2.0, temperature=0.5, head={"top_k": 2})
    assert ((got - wanted).abs() < 4.5 * (wanted * (1 - wanted) / IMAGES).sqrt() + 1e-5).all()


def test_without_confidence_temperature_the_likeliest_tokens_come_first() -> None:
    got = first_pairs(toy(2), "moment", 0.0, images=50)
    assert got[0, 0] == 1
    sampler = ParallelSampler(steps=4, order="moment", schedule="linear", confidence_temperature=0.0)
    net = toy(2)
    noise = sampler.make_noise(net, [0, 1, 2])
    shown = [step.known.clone() for step in sampler(net, torch.zeros(3, dtype=torch.int64), noise=noise)]
    ranks = torch.stack(shown).int().sum(0)  # steps since which a position is known
    assert (ranks == torch.tensor([4, 2, 1, 3])).all()


@pytest.mark.parametrize("name", ["uvit", "bert", "mage", "enat", "adaln", "mae", "global tokens", "windows"])
def test_every_trunk(name: str) -> None:
    """All is drawn, also with cached steps, and an image does not depend on its batch."""
    made = {
        "global tokens": lambda: tiny_generator(tokens=tiny_tokens(side=3, global_tokens=7)),
        "windows": lambda: tiny_generator(tokens=tiny_tokens(side=8), windows={"side": 2}),
    }
    net = made[name]() if name in made else tiny_net(name)
    for reuse in (None, {"cached": 1, "full_first": 2}):
        sampler = ParallelSampler(steps=6, order="moment", guidance=2.0, reuse=reuse)
        drawn = [last(net, sampler, seeds) for seeds in ([4, 5], [5])]
        assert torch.equal(drawn[0][1:], drawn[1]) and not torch.equal(drawn[0][:1], drawn[1])


def last(net: Any, sampler: ParallelSampler, seeds: list[int]) -> Tensor:
    *_, step = sampler(net, torch.tensor(seeds) % 3, noise=sampler.make_noise(net, seeds))
    assert step.known.all() and int(step.tokens.max()) < net.tokens.vocab_size
    return step.tokens


def test_only_the_revealed_positions_are_drawn() -> None:
    """The head scores all unknown positions, then draws those of the step: as many operations as two calls of it."""
    pipe = tiny_pipeline(guidance=1.0)
    sampler = ParallelSampler(steps=5, order="moment", schedule="linear")
    counts = {
        name: count_run(pipe, sampler.override(order=name), decode=False) for name in ("moment", "random", "confidence")
    }
    flops = {name: count.flops["head"] for name, count in counts.items()}
    assert flops["moment"] == flops["confidence"] + flops["random"]
    positions = [
        step.positions.shape[1]
        for step in sampler(pipe.transformer, torch.tensor([0]), noise=sampler.make_noise(pipe.transformer, [0]))
    ]
    assert sum(positions) == pipe.transformer.units.length


def test_heads_that_draw_part_by_part_have_no_moments() -> None:
    sampler = ParallelSampler(steps=4, order="moment")
    with pytest.raises(MgenError, match="part by part: use order confidence"):
        sampler.check(tiny_mar(tokens=tiny_tokens("multi-index")))
    with pytest.raises(MgenError, match="use order random"):
        sampler.check(tiny_mar())
