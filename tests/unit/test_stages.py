"""Generation then Reconstruction, as read from the paper: the order checkerboard, stages, curves over a part of a run, token selection."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.bench.flops import count_run
from mgen.bench.proxy import Proxy
from mgen.samplers import ParallelSampler
from mgen.samplers.noise import Noise
from mgen.samplers.selection import Split, frequency
from mgen.samplers.sequences import priorities
from mgen.samplers.stages import Selection, Stages
from mgen.samplers.values import per_step
from mgen.utils.errors import MgenError
from tests.helpers import tiny_generator, tiny_himar, tiny_mar, tiny_net, tiny_tokens

GTR: list[dict[str, Any]] = [{"tokens": 64, "steps": 24}, {"tokens": 64, "steps": 6}, {"tokens": 128, "steps": 2}]
SMALL: list[dict[str, Any]] = [{"tokens": 0.25, "steps": 3}, {"tokens": 0.25, "steps": 2}, {"steps": 2}]
LENGTH = 16


def sets_of(rows: int, columns: int, levels: int) -> list[set[int]]:
    """The sets by their definition: halves of what is left, the later half first put aside."""
    cells, out = {(i, j) for i in range(rows) for j in range(columns)}, []
    for k in range(1, levels):
        half = {(i, j) for i, j in cells if (i + j) % 2**k == 2 ** (k - 1)}
        out.append(half)
        cells -= half
    return [{i * columns + j for i, j in half} for half in (*out, cells)][::-1]


# -- the order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "levels", "sizes"),
    [
        ((16, 16), 3, [64, 64, 128]),
        ((16, 16), 4, [32, 32, 64, 128]),
        ((16, 16), 2, [128, 128]),
        ((5, 7), 3, None),
        ((3, 3), 5, None),  # one set is empty
        ((1, 1), 3, [1, 0, 0]),
    ],
)
def test_sets_come_one_after_the_other_and_at_random_within(
    grid: tuple[int, int], levels: int, sizes: list[int] | None
) -> None:
    sets, length = sets_of(*grid, levels), grid[0] * grid[1]
    if sizes is not None:
        assert list(map(len, sets)) == sizes
    noise = Noise(order=torch.rand(3, length, generator=torch.Generator().manual_seed(0)))
    ranking = priorities("checkerboard", noise, grid, levels=levels).argsort(dim=1, descending=True, stable=True)
    for row, numbers in zip(ranking.tolist(), noise.order):
        done = 0
        for members in sets:
            drawn = row[done : done + len(members)]
            assert set(drawn) == members
            assert drawn == sorted(members, key=lambda p: -float(numbers[p]))
            done += len(members)


def test_global_tokens_come_before_the_checkerboard() -> None:
    noise = Noise(order=torch.rand(2, 16 + 5, generator=torch.Generator().manual_seed(0)))
    order = priorities("checkerboard", noise, (4, 4), 5).argsort(dim=1, descending=True, stable=True)
    assert torch.equal(order[:, :5], torch.arange(5).expand(2, -1))
    assert {p - 5 for p in order[0, 5:9].tolist()} == sets_of(4, 4, 3)[0]


def vectors(**sections: Any) -> Any:
    return tiny_mar(tokens=tiny_tokens("vector"), **sections)


def draw(net: Any, sampler: ParallelSampler, seeds: list[int], **given: Tensor) -> list[Tensor]:
    """The known masks after every step, then the tokens."""
    steps = sampler(net, torch.tensor(seeds) % 3, noise=sampler.make_noise(net, seeds), **given)
    masks = []
    for step in steps:
        masks.append(step.known.clone())
    return [*masks, step.tokens]


def sampler_for(net: Any, **settings: Any) -> ParallelSampler:
    head = {"head": {"steps": 6, "clip": 4.0}} if net.tokens.kind == "vector" else {}
    return ParallelSampler.suited(net, {"order": "checkerboard", "stages": SMALL, "guidance": 2.0, **head, **settings})


@pytest.mark.parametrize("kind", ["index", "vector"])
def test_a_run_draws_set_after_set(kind: str) -> None:
    net = vectors() if kind == "vector" else tiny_generator(tokens=tiny_tokens())
    *masks, _ = draw(net, sampler_for(net), [1, 2])
    sets, done = sets_of(4, 4, 3), set[int]()
    assert list(map(len, sets)) == [4, 4, 8]
    for after, members in zip((2, 4, 6), sets):
        done |= members
        for row in masks[after]:
            assert set(row.nonzero().flatten().tolist()) == done
    one, plain = (
        draw(net, sampler_for(net, order=order, stages=None, steps=5), [1, 2])[-1]
        for order in ({"name": "checkerboard", "levels": 1}, "random")
    )
    assert torch.equal(one, plain)


# -- stages ------------------------------------------------------------------------------------------------------------


def counts(stages: list[dict[str, Any]], unknown: int, length: int, rule: str = "maskgit") -> list[int]:
    made = Stages.of(stages)
    assert made is not None
    return [a - b for a, b in pairwise([unknown, *made.left(unknown=unknown, length=length, counts=rule)])]


@pytest.mark.parametrize("rule", ["maskgit", "maskgit-float32", "mar", "enat", "halton"])
def test_counts_of_steps(rule: str) -> None:
    shares = [{"tokens": 0.25, "steps": 24}, {"tokens": 0.25, "steps": 6}, {"steps": 2}]
    for stages in (GTR, shares):
        found = counts(stages, 256, 256, rule)
        first, second, third = found[:24], found[24:30], found[30:]
        assert (sum(first), sum(second), third) == (64, 64, [64, 64])
        assert set(first) == {2, 3} and set(second) == {10, 11}, "the split is not even"
    assert counts([{"steps": 4, "schedule": "cosine"}], 16, 16) == counts([{"steps": 4, "tokens": 16, "schedule": "cosine"}], 16, 16)
    assert counts([{"steps": 4, "schedule": "cosine"}], 16, 16) == [2, 3, 5, 6]


@pytest.mark.parametrize("unknown", [1, 3, 20, 31, 32, 33, 100, 255])
def test_with_given_tokens_the_stages_keep_their_proportions(unknown: int) -> None:
    found = counts(GTR, unknown, 256)
    assert sum(found) == unknown and min(found) >= (1 if unknown >= 32 else 0)
    for share, shown in zip((0.25, 0.5), (sum(found[:24]), sum(found[:30]))):
        if unknown >= 100:  # otherwise a stage may need more for its steps
            assert abs(shown - share * unknown) <= 1


def test_a_single_stage_is_its_schedule() -> None:
    net = vectors()
    plain = draw(net, sampler_for(net, stages=None, steps=5, schedule="linear"), [1, 2])
    staged = draw(net, sampler_for(net, stages=[{"steps": 5}]), [1, 2])
    assert all(map(torch.equal, plain, staged))


def test_steps_follow_from_the_stages() -> None:
    sampler = ParallelSampler(stages=GTR, order="random")
    assert sampler.config.steps == 32 == len(sampler.values("guidance", 256))
    assert ParallelSampler(**sampler.settings).settings == sampler.settings
    assert sampler.override(stages=SMALL).config.steps == 7
    assert sampler.override(stages=False).config.steps == 32 and sampler.override(stages=False).stages is None
    assert ParallelSampler().config.steps == ParallelSampler(steps=None).config.steps == 8
    assert ParallelSampler(stages=GTR, global_steps=4, order="random").config.steps == 36
    with pytest.raises(MgenError, match=r"steps is 16, but the stages take 32: leave steps out \(null\)"):
        sampler.override(steps=16)
    with pytest.raises(MgenError, match="steps is 32, but global_steps and stages take 36"):
        ParallelSampler(stages=GTR, global_steps=4, steps=32, order="random")


def test_guidance_counts_the_tokens_that_stages_reveal() -> None:
    value = {"kind": "linear", "start": 1.0, "end": 3.0, "at": "tokens"}
    found = ParallelSampler(stages=GTR, order="random", guidance=value).values("guidance", 256)
    assert [found[t] for t in (23, 29, 31)] == [1.5, 2.0, 3.0]


def test_global_tokens_are_drawn_in_steps_before_the_stages() -> None:
    net = tiny_generator(tokens=tiny_tokens(side=3, global_tokens=7))
    stages = [{"tokens": 0.5, "steps": 3}, {"steps": 1}]
    sampler = sampler_for(net, order="checkerboard", stages=stages, global_steps=2)
    *masks, _ = draw(net, sampler, [1, 2])
    assert [mask.sum(1).tolist() for mask in masks] == [[n, n] for n in (3, 7, 9, 11, 12, 16)]
    assert masks[1][:, :7].all()
    with pytest.raises(MgenError, match="set global_steps"):
        sampler_for(net, stages=stages).check(net)


@pytest.mark.parametrize("policy", [{"cached": 1}, {"cached": 1, "full_first": 3}, {"cached": 2, "inside": "raster"}], ids=str)
def test_stages_compose_with_cached_steps(policy: dict[str, Any]) -> None:
    net = vectors()
    stages = [*SMALL[:2], {"steps": 2, "select": {"share": 0.5, "head_steps": 4}}]
    sampler = sampler_for(net, stages=stages, reuse={**policy, "head_share": 0.5})
    *masks, tokens = draw(net, sampler, [5, 6, 7])
    assert [int(mask.sum()) for mask in masks] == [3 * n for n in (2, 3, 4, 6, 8, 12, 16)]
    assert (draw(net, sampler, [6])[-1][0] - tokens[1]).abs().max() < 1e-3
    kinds = [step.kind for step in sampler.plan(net).steps]
    assert kinds.count("cached") == sum(len(group) - 1 for group in sampler.groups()) > 0


def test_the_first_stage_of_a_cascade_takes_stages() -> None:
    net = tiny_himar(side=4)
    first = {"order": "checkerboard", "stages": [{"tokens": 0.5, "steps": 2}, {"steps": 1}], "head": {"steps": 3}}
    sampler = ParallelSampler.suited(net, {"steps": 2, "head": {"steps": 3, "clip": 4.0}, "first_stage": first})
    assert sampler.first_stage is not None and sampler.first_stage.config.steps == 3
    assert "stage" in str(sampler.plan(net))


# -- curves over a part of the run -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ({"over": [0, 3], "at": "inclusive"}, [5, 3.5, 2, 2, 2, 2]),
        ({"over": [2, 5], "at": "inclusive"}, [5, 5, 5, 3.5, 2, 2]),
        ({"over": [2, 5]}, [5, 5, 4, 3, 2, 2]),
        ({"over": [2, 5], "at": "start"}, [5, 5, 5, 4, 3, 2]),
        ({"over": [3, 4], "at": "inclusive"}, [5, 5, 5, 5, 2, 2]),
        ({"over": [0, 6]}, [4.5, 4, 3.5, 3, 2.5, 2]),
    ],
)
def test_a_curve_over_a_part_is_held_at_its_ends(curve: dict[str, Any], expected: list[float]) -> None:
    assert per_step({"kind": "linear", "start": 5, "end": 2, **curve}, 6) == pytest.approx(expected)


def test_a_curve_over_all_steps_is_the_curve() -> None:
    for at in ("start", "end", "inclusive"):
        for kind in ("linear", "half-linear", "power-cosine", "sine", "exponential"):
            curve = {"kind": kind, "start": 1.0, "end": 3.0, "at": at}
            assert per_step(curve, 7) == per_step({**curve, "over": [0, 7]}, 7)
