"""What a sampling run promises, whatever its order, schedule and guidance."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mgen.bench.standin import StandIn
from mgen.samplers import (
    ORDERS,
    Noise,
    ParallelSampler,
    draw_noise,
    image_seed,
    mask_fraction,
    per_step,
    remaining_counts,
)
from mgen.samplers.order import halton, priorities
from mgen.utils.errors import MgenError
from tests.helpers import tiny_generator

GENERATOR = tiny_generator()
LENGTH = GENERATOR.spec.length
SCHEDULES = ["cosine", "arccos", "linear", "square", "pow2.5", "log", "exp", [0.9, 0.5, 0.45, 0.2, 0.1]]


def noise_for(count: int, steps: int, first: int = 0):
    return draw_noise([image_seed(0, first + i) for i in range(count)], steps=steps, length=LENGTH)


@pytest.mark.parametrize("order", sorted(ORDERS))
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_each_step_reveals_the_scheduled_count_and_none_is_left(order: str, schedule) -> None:
    sampler = ParallelSampler(steps=6, order=order, schedule=schedule, guidance=1.5)
    seen = [
        (LENGTH - step.known.sum(1)).tolist()
        for step in sampler(GENERATOR, torch.tensor([0, 2]), noise=noise_for(2, 6))
    ]
    assert seen == [[n, n] for n in sampler.counts(unknown=LENGTH, length=LENGTH)]
    assert seen[-1] == [0, 0]


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_known_tokens_never_change(order: str) -> None:
    given = torch.randint(0, 64, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    known = torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(2)) < torch.tensor([[0.2], [0.7], [1.0]])
    before = given.clone()
    sampler = ParallelSampler(steps=5, order=order, guidance=3.0)
    for step in sampler(GENERATOR, torch.tensor([0, 1, 2]), noise=noise_for(3, 5), tokens=given, known=known):
        assert torch.equal(step.tokens[known], before[known])
        assert bool(step.known[known].all())
        assert torch.equal(step.draft[step.known], step.tokens[step.known])
    assert bool(step.known.all())
    assert torch.equal(given, before), "the caller's tensor was changed"


def test_revealed_tokens_stay() -> None:
    last = None
    for step in ParallelSampler(steps=7, guidance=2.0)(GENERATOR, torch.tensor([1]), noise=noise_for(1, 7)):
        if last is not None:
            tokens, known = last
            assert torch.equal(step.tokens[known], tokens[known])
        last = step.tokens.clone(), step.known.clone()


def test_more_steps_than_tokens_still_ends() -> None:
    *_, step = ParallelSampler(steps=LENGTH + 9)(GENERATOR, torch.tensor([1]), noise=noise_for(1, LENGTH + 9))
    assert bool(step.known.all())


def test_guidance_one_equals_no_null_pass() -> None:
    """s = 1 in u + s·(c − u) is c: the run without null rows gives the same tokens as the one with them."""
    condition, noise = torch.tensor([0, 1]), noise_for(2, 6)
    *_, plain = ParallelSampler(steps=6, guidance=1.0)(GENERATOR, condition, noise=noise)
    *_, with_null = ParallelSampler(steps=6, guidance=1.0, guidance_tolerance=-1.0)(GENERATOR, condition, noise=noise)
    *_, strong = ParallelSampler(steps=6, guidance=8.0)(GENERATOR, condition, noise=noise)
    assert torch.equal(plain.tokens, with_null.tokens)
    assert not torch.equal(plain.tokens, strong.tokens)


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_an_image_depends_on_its_seed_not_on_its_batch(order: str) -> None:
    sampler = ParallelSampler(steps=6, order=order, guidance=2.0)
    condition = torch.tensor([0, 1, 2, 0, 1])
    *_, together = sampler(GENERATOR, condition, noise=noise_for(5, 6))
    for i in range(5):
        *_, alone = sampler(GENERATOR, condition[i : i + 1], noise=noise_for(1, 6, first=i))
        assert torch.equal(alone.tokens[0], together.tokens[i])


def test_only_unknown_positions_are_evaluated() -> None:
    asked = []
    context = GENERATOR.context

    def spy(
        tokens: Tensor, known: Tensor, condition: Tensor, *, positions: Tensor, visible: Any, memory: Any
    ) -> Tensor:
        asked.append(positions.shape[1])
        assert not known.gather(1, positions).any()
        assert visible == (known.sum(1).min(), known.sum(1).max())
        return context(tokens, known, condition, positions=positions, visible=visible)

    sampler = ParallelSampler(steps=6)
    list(sampler(StandIn(GENERATOR, context=spy), torch.tensor([0, 1]), noise=noise_for(2, 6)))
    assert asked == [LENGTH, *sampler.counts(unknown=LENGTH, length=LENGTH)[:-1]]
    asked.clear()
    list(
        ParallelSampler(steps=6, order="random")(
            StandIn(GENERATOR, context=spy), torch.tensor([0, 1]), noise=noise_for(2, 6)
        )
    )
    assert sum(asked) == LENGTH  # a fixed order evaluates each position once


def test_a_draw_follows_the_distribution() -> None:
    """Inverting the distribution function gives the softmax's frequencies."""
    head, z = GENERATOR.head, torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(3))
    uniform = torch.rand(1, 20000, generator=torch.Generator().manual_seed(4))
    ids, score = head.sample(z.expand(1, 20000, -1), noise=uniform, temperature=1.7)
    p = (head.logits(z) / 1.7).softmax(-1)[0, 0]
    found = torch.bincount(ids[0], minlength=64) / 20000
    assert (found - p).abs().max() < 0.015
    assert torch.allclose(score[0], head.logits(z).log_softmax(-1)[0, 0][ids[0]], atol=1e-5)


def test_gumbel_and_uniform_noise_pick_the_likeliest_at_temperature_zero() -> None:
    head, z = GENERATOR.head, torch.randn(2, 5, 32)
    best = head.logits(z).argmax(-1)
    assert torch.equal(head.sample(z, noise=torch.rand(2, 5), temperature=0.0)[0], best)
    assert torch.equal(head.sample(z, noise=torch.zeros(2, 5, 64), temperature=0.0)[0], best)


def test_published_autonat_counts() -> None:
    from mgen.utils.config import read_config
    from mgen.utils.folders import part

    sampler = ParallelSampler(**read_config(part("configs") / "recipes" / "autonat-l-imagenet256.yaml")["sampler"])
    assert sampler.counts(unknown=256, length=256) == [244, 225, 203, 190, 159, 104, 66, 0]


def test_float32_schedule_loses_the_token_that_jax_loses() -> None:
    kwargs = dict(schedule="cosine", steps=12, unknown=256, length=256)
    assert remaining_counts(**kwargs, precision="float32")[7] == 127
    assert remaining_counts(**kwargs, precision="float64")[7] == 128


def test_schedules_fall_from_one_to_zero() -> None:
    for name in SCHEDULES[:-1]:
        values = [mask_fraction(name, r, length=256) for r in np.linspace(0.01, 1, 50)]
        assert all(a >= b for a, b in zip(values, values[1:])), name
        assert values[-1] <= 1e-5, name


def test_values_over_steps() -> None:
    assert per_step(2.0, 3) == [2, 2, 2]
    assert per_step([1, 2], 3) == [1, 2, 0]
    assert per_step({"kind": "linear", "start": 1, "end": 3}, 4) == [1.5, 2, 2.5, 3]
    assert per_step({"kind": "linear", "start": 1, "end": 3, "at": "inclusive"}, 3) == [1, 2, 3]
    assert per_step({"kind": "linear", "start": 0, "end": 2, "at": "start"}, 4) == [0, 0.5, 1, 1.5]
    power = per_step({"kind": "power-cosine", "start": 1, "end": 3, "power": 2.0}, 5)
    assert power[0] == 1 and math.isclose(power[-1], 3) and math.isclose(power[2], 1 + (1 - math.cos(math.pi / 4)))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"schedule": "cosin"}, "cosine"),
        ({"schedule": [0.5]}, "lists 1 fractions"),
        ({"schedule": [1.5] * 7}, "outside 0"),
        ({"order": "confident"}, "confidence"),
        ({"guidance": {"kind": "linar"}}, "linear"),
        ({"guidance": {"kind": "linear", "stop": 2}}, "stop"),
        ({"guidance": [1.0]}, "lists 1 values"),
        ({"temperature": float("nan")}, "not finite"),
        ({"steps": 0}, "at least 1"),
        ({"start": 9}, "start is 9"),
    ],
)
def test_bad_settings_are_named(settings: dict, words: str) -> None:
    with pytest.raises(MgenError, match=words):
        sampler = ParallelSampler(**settings)
        list(sampler(GENERATOR, torch.tensor([0]), noise=noise_for(1, 8)))


def test_guidance_needs_a_null_class() -> None:
    plain = tiny_generator(null_class=False)
    with pytest.raises(MgenError, match="null class"):
        list(ParallelSampler(guidance=2.0)(plain, torch.tensor([0]), noise=noise_for(1, 8)))


def test_override_keeps_the_curve() -> None:
    sampler = ParallelSampler(guidance={"kind": "linear", "start": 1.0, "end": 2.0})
    assert sampler.override(guidance=5.0).config.guidance == {"kind": "linear", "start": 1.0, "end": 5.0}
    assert ParallelSampler(guidance=2.0).override(guidance=5.0, steps=3).config.guidance == 5.0
    with pytest.raises(MgenError, match="fixed"):
        ParallelSampler(schedule=[0.5] * 7).override(steps=4)


def test_power_curves_groups_and_floors() -> None:
    assert per_step({"kind": "power", "start": 1.0, "end": 0.75, "power": 0.5}, 5)[0] == 1.0
    assert per_step({"kind": "power", "start": 1.0, "end": 0.75, "power": 0.5}, 5)[1] == pytest.approx(1 - 0.25 * 0.5)
    curve = {"kind": "linear", "start": 6.0, "end": 0.0, "at": "group"}
    assert per_step(curve, 5, groups=[[0], [1, 2], [3, 4]]) == pytest.approx([4.0, 2.0, 2.0, 0.0, 0.0])
    assert per_step(curve, 3) == pytest.approx([4.0, 2.0, 0.0])  # without groups every step is one
    assert per_step({"kind": "linear", "start": 2.0, "end": 0.0, "least": 0.5}, 4) == pytest.approx(
        [1.5, 1.0, 0.5, 0.5]
    )
    with pytest.raises(MgenError, match="power"):
        per_step({"kind": "linear", "start": 1.0, "power": 2.0}, 4)


def test_borrowing_gives_every_step_a_token_and_takes_it_from_the_last() -> None:
    plain = remaining_counts("pow2.5", steps=16, unknown=64, length=64, keep_one=False)
    lent = remaining_counts("pow2.5", steps=16, unknown=64, length=64, keep_one="borrow")
    a, b = (np.diff([64, *counts]) * -1 for counts in (plain, lent))
    assert (b >= 1).all() and b.sum() == 64
    assert (b[:-1] == np.maximum(a[:-1], 1)).all() and b[-1] == a[-1] - (a[:-1] == 0).sum()
    with pytest.raises(MgenError, match="lend more of the 64"):
        remaining_counts("pow2.5", steps=60, unknown=64, length=64, keep_one="borrow")


def test_a_rolled_halton_order_is_the_same_cycle_begun_elsewhere() -> None:
    noise = Noise(order=torch.tensor([[0.0], [0.5], [0.99]]).expand(3, 16))
    plain, rolled = (priorities(name, noise, (4, 4)) for name in ("halton", "halton-rolled"))
    assert plain is not None and rolled is not None
    a, b = (p.argsort(dim=1, descending=True) for p in (plain, rolled))
    for row, offset in enumerate((0, 8, 15)):
        assert torch.equal(b[row], a[row].roll(offset))


@pytest.mark.parametrize("side", [8, 9, 18, 24])
def test_halton_order_is_that_of_exact_arithmetic(side: int) -> None:
    """Floats miss cells whose border a point lies on: 7/9 of 9 columns."""

    def inverse(index: int, base: int) -> Fraction:
        value, scale = Fraction(0), Fraction(1)
        while index:
            index, digit = divmod(index, base)
            scale /= base
            value += digit * scale
        return value

    points = ((int(inverse(i, 2) * side), int(inverse(i, 3) * side)) for i in itertools.count(1))
    seen: dict[int, None] = {}
    while len(seen) < side * side:
        row, column = next(points)
        seen.setdefault(row * side + column)
    assert halton(side, side) == tuple(seen)
