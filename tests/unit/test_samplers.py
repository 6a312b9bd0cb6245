"""What a sampling run promises, whatever its order, schedule and guidance."""

import itertools
import math
from dataclasses import FrozenInstanceError
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mgen.bench.proxy import Proxy
from mgen.cli import main
from mgen.samplers import (
    ORDERS,
    Noise,
    ParallelSampler,
    image_seed,
    make_noise,
    mask_fraction,
    per_step,
    remaining_counts,
)
from mgen.samplers.sequences import halton, priorities
from mgen.utils.errors import MgenError
from tests.helpers import tiny_generator, tiny_himar, tiny_tokens

GENERATOR = tiny_generator()
LENGTH = GENERATOR.tokens.length
SCHEDULES = ["cosine", "arccos", "linear", "square", "pow2.5", "log", "exp", [0.9, 0.5, 0.45, 0.2, 0.1]]


def noise_for(count: int, steps: int, first: int = 0):
    return make_noise([image_seed(0, first + i) for i in range(count)], steps=steps, length=LENGTH)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_each_step_reveals_the_scheduled_count_and_none_is_left(order: str, schedule) -> None:
    sampler = ParallelSampler(steps=6, order=order, schedule=schedule, guidance=1.5)
    seen = [
        (LENGTH - step.known.sum(1)).tolist()
        for step in sampler(GENERATOR, torch.tensor([0, 2]), noise=noise_for(2, 6))
    ]
    assert seen == [[n, n] for n in sampler.remaining(unknown=LENGTH, length=LENGTH)]
    assert seen[-1] == [0, 0]
    before = [LENGTH] + [n for n, _ in seen]
    assert [step.reveal for step in sampler.plan(GENERATOR).steps] == [(a - b,) for a, b in zip(before, before[1:])]


@pytest.mark.parametrize("order", ORDERS)
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
    class_ids, noise = torch.tensor([0, 1]), noise_for(2, 6)
    *_, plain = ParallelSampler(steps=6, guidance=1.0)(GENERATOR, class_ids, noise=noise)
    *_, with_null = ParallelSampler(steps=6, guidance=math.nextafter(1.0, 2.0))(GENERATOR, class_ids, noise=noise)
    *_, strong = ParallelSampler(steps=6, guidance=8.0)(GENERATOR, class_ids, noise=noise)
    assert torch.equal(plain.tokens, with_null.tokens)
    assert not torch.equal(plain.tokens, strong.tokens)


@pytest.mark.parametrize("order", ORDERS)
def test_an_image_depends_on_its_seed_not_on_its_batch(order: str) -> None:
    sampler = ParallelSampler(steps=6, order=order, guidance=2.0)
    class_ids = torch.tensor([0, 1, 2, 0, 1])
    *_, together = sampler(GENERATOR, class_ids, noise=noise_for(5, 6))
    for i in range(5):
        *_, alone = sampler(GENERATOR, class_ids[i : i + 1], noise=noise_for(1, 6, first=i))
        assert torch.equal(alone.tokens[0], together.tokens[i])


def test_only_unknown_positions_are_computed() -> None:
    asked = []
    context = GENERATOR.context

    def spy(
        tokens: Tensor, known: Tensor, class_ids: Tensor, *, positions: Tensor, visible: Any, **others: Any
    ) -> Tensor:
        asked.append(positions.shape[1])
        assert not known.gather(1, positions).any()
        assert visible == (known.sum(1).min(), known.sum(1).max())
        return context(tokens, known, class_ids, positions=positions, visible=visible)

    sampler = ParallelSampler(steps=6)
    list(sampler(Proxy(GENERATOR, context=spy), torch.tensor([0, 1]), noise=noise_for(2, 6)))
    assert asked == [LENGTH, *sampler.remaining(unknown=LENGTH, length=LENGTH)[:-1]]
    asked.clear()
    list(
        ParallelSampler(steps=6, order="random")(
            Proxy(GENERATOR, context=spy), torch.tensor([0, 1]), noise=noise_for(2, 6)
        )
    )
    assert sum(asked) == LENGTH  # a fixed order computes each position once


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
    assert sampler.remaining(unknown=256, length=256) == [244, 225, 203, 190, 159, 104, 66, 0]


def test_float32_schedule_loses_the_token_that_jax_loses() -> None:
    kwargs = dict(schedule="cosine", steps=12, unknown=256, length=256)
    assert remaining_counts(**kwargs, counts="maskgit-float32")[7] == 127
    assert remaining_counts(**kwargs, counts="maskgit")[7] == 128


@pytest.mark.parametrize("schedule", ["log", "exp"])
def test_the_schedules_with_n_take_it_from_the_unknown_tokens(schedule: str) -> None:
    """MaskGIT's editing: N is the number of tokens to be filled in, not of all."""
    given = remaining_counts(schedule, steps=12, start=2, unknown=40, length=256, counts="maskgit-float32")
    n, r = math.log2(40), [(t + 1) / 12 for t in range(2, 11)]
    fractions = [-math.log2(x) / n if schedule == "log" else 1 - 2 ** (-n * (1 - x)) for x in r]
    assert given == [*(max(1, math.floor(40 * fraction)) for fraction in fractions), 0]


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
        ({"temperature": float("nan")}, "finite number"),
        ({"steps": 0}, "at least 1"),
        ({"start": 9}, "start is 9"),
    ],
)
def test_bad_settings_are_named(settings: dict, words: str) -> None:
    with pytest.raises(MgenError, match=words):
        sampler = ParallelSampler(**settings)
        list(sampler(GENERATOR, torch.tensor([0]), noise=noise_for(1, 8)))


def test_guidance_needs_a_null_class() -> None:
    plain = tiny_generator(classes={"null_class": False})
    with pytest.raises(MgenError, match="null class"):
        list(ParallelSampler(guidance=2.0)(plain, torch.tensor([0]), noise=noise_for(1, 8)))


def test_only_what_comes_out_of_all_replacements_must_be_allowed() -> None:
    sampler = ParallelSampler(guidance={"kind": "linear", "start": 1.0, "end": 2.0}, head={"top_k": 3})
    made = sampler.override(overrides=["remask={kind: cap, counts: free}", "head.top_p=0.5"], order="random")
    assert made.remask is not None and made.order.name == "random" and made.config.head == {"top_k": 3, "top_p": 0.5}
    assert sampler.override(overrides=["schedule=[0.9, 0.5, 0.3]"], steps=4).config.steps == 4
    assert sampler.override(overrides=["guidance.start=1.5"], guidance=4.0).config.guidance == {
        "kind": "linear",
        "start": 1.5,
        "end": 4.0,
    }
    with pytest.raises(
        MgenError, match=r"lists 3 fractions, 5 steps take 4 \(or 5\)$"
    ):  # it is not the sampler that lists them
        sampler.override(overrides=["schedule=[0.9, 0.5, 0.3]"], steps=5)
    with pytest.raises(MgenError, match="lists 3 fractions, 8 steps"):
        sampler.override(overrides=["schedule=[0.9, 0.5, 0.3]"])
    with pytest.raises(MgenError, match="unknown key 'sampler.foo'"):
        sampler.override(overrides=["foo=1"])
    with pytest.raises(MgenError, match="head is 5: expected a mapping"):
        sampler.override(overrides=["head=5"], head_steps=3)


@pytest.mark.parametrize("value", [{"kind": "constant", "end": 4.0}, [1.0, 2.0, 3.0, 4.0]])
def test_override_takes_curves_and_lists(value: Any) -> None:
    sampler = ParallelSampler(steps=4, guidance={"kind": "linear", "start": 1.0, "end": 2.0})
    assert sampler.override(guidance=value).config.guidance == value
    steps = [3, 3, 2, 1] if isinstance(value, list) else {"kind": "step", "start": 9, "end": 3}
    assert sampler.override(head_steps=steps).config.head == {"steps": steps}


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


def test_maskgit_r_gives_every_step_a_token_and_takes_it_from_the_last() -> None:
    plain = remaining_counts("pow2.5", steps=16, unknown=64, length=64, counts="enat")
    lent = remaining_counts("pow2.5", steps=16, unknown=64, length=64, counts="maskgit-r")
    a, b = (np.diff([64, *counts]) * -1 for counts in (plain, lent))
    assert (b >= 1).all() and b.sum() == 64
    assert (b[:-1] == np.maximum(a[:-1], 1)).all() and b[-1] == a[-1] - (a[:-1] == 0).sum()
    with pytest.raises(MgenError, match="too few of the 64 tokens are left"):
        remaining_counts("pow2.5", steps=60, unknown=64, length=64, counts="maskgit-r")


def test_a_rolled_halton_order_is_the_same_cycle_begun_elsewhere() -> None:
    noise = Noise(order=torch.tensor([[0.0], [0.5], [0.99]]).expand(3, 16))
    plain, rolled = (priorities(name, noise, (4, 4)) for name in ("halton", "halton-rolled"))
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


def test_the_plan_says_what_a_run_does() -> None:
    """Reveals, forward passes and guidance of every step, before the run and in it; a plan never changes."""
    reuse, guidance = {"cached": 1, "full_first": 2}, [1.0, 1.0, 2.0, 2.0, 1.0, 1.0]
    sampler = ParallelSampler(steps=6, order="halton", guidance=guidance, reuse=reuse)
    plan = sampler.plan(GENERATOR)
    assert [step.kind for step in plan.steps] == ["full", "full", "full", "cached", "full", "cached"]
    assert [step.null_rows for step in plan.steps] == [False, False, True, True, False, False]
    assert [step.guidance for step in plan.steps] == [None, None, 2.0, 2.0, None, None]
    assert [step.group for step in plan.steps] == [0, 1, 2, 2, 3, 3] and plan.forward_passes == 8
    seen: list[int] = []

    def spied(tokens: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.append(len(tokens))
        return (GENERATOR.context if options else GENERATOR.cached_step)(tokens, *args, **options)

    known = [LENGTH]
    for step in sampler(
        Proxy(GENERATOR, context=spied, cached_step=spied), torch.tensor([0]), noise=sampler.make_noise(GENERATOR, [1])
    ):
        known.append(LENGTH - int(step.known.sum()))
    assert seen == [1 + step.null_rows for step in plan.steps]
    assert [a - b for a, b in zip(known, known[1:])] == [step.count for step in plan.steps]
    with pytest.raises(FrozenInstanceError):
        plan.steps[0].count = 3  # type: ignore[misc]


def test_the_plan_prints_as_a_table() -> None:
    sampler = ParallelSampler(steps=3, order="halton", guidance=2.0, schedule="linear", reuse={"cached": 1})
    lines = str(sampler.plan(GENERATOR)).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "step group forward pass reveals unknown guidance temperature",
        "1/3 1 full + null class 22 64 2 1",
        "2/3 1 cached + null class 21 42 2 1",
        "3/3 2 full + null class 21 21 2 1",
    ]
    ranked = str(ParallelSampler(steps=3).plan(GENERATOR)).splitlines()
    assert ranked[0].endswith("confidence temperature") and ranked[1].split()[-2:] == ["1", "3"]


def test_the_plan_of_two_stages_and_of_global_tokens() -> None:
    settings = {"steps": 2, "order": "random", "head": {"steps": 2}}
    both = ParallelSampler(**settings, first_stage={**settings, "steps": 3}).plan(tiny_himar())
    assert both.first_stage is not None and (len(both.first_stage.steps), len(both.steps)) == (3, 2)
    assert str(both).startswith("first stage\n") and both.forward_passes == 5
    mixed = ParallelSampler(steps=4, global_steps=1).plan(tiny_generator(tokens=tiny_tokens(side=4, global_tokens=5)))
    assert [(step.phase, step.count) for step in mixed.steps][0] == (0, 5) and mixed.steps[1].phase == 1
    assert "5 global" in str(mixed)


def test_the_command_prints_the_plan_and_samples_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["sample", "--steps", "4", "--guidance", "2", "--show-plan", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("What ")
    assert [line.split()[0] for line in lines[1:]] == ["step", "1/4", "2/4", "3/4", "4/4"] and not out.exists()
