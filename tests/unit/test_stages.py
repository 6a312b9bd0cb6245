"""Generation then Reconstruction, as read from the paper: the order checkerboard, stages, curves over a part of a run, token selection."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.bench.flops import count_run
from mgen.bench.proxy import Proxy
from mgen.generators import guided
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
    if kind == "index":  # a token that is taken back stands where its set has it
        taken = sampler_for(
            net, order={"name": "checkerboard", "levels": 2}, stages=None, steps=8, remask={"kind": "cap", "eta": 0.4}
        )
        *masks, _ = draw(net, taken, [1, 2])
        assert any((before & ~after).any() for before, after in pairwise(masks))
        for before, after in pairwise(masks):
            odd = torch.tensor([(i + j) % 2 == 1 for i in range(4) for j in range(4)])
            fresh = after & ~before
            unfinished = (~before[:, ~odd]).sum(1) >= fresh.sum(1)
            assert not fresh[unfinished][:, odd].any()
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
    assert counts([{"steps": 4, "schedule": "cosine"}], 16, 16) == counts(
        [{"steps": 4, "tokens": 16, "schedule": "cosine"}], 16, 16
    )
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
    assert ParallelSampler().config.steps == 8
    with pytest.raises(MgenError, match="None is for stages"):
        ParallelSampler(steps=None)
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


@pytest.mark.parametrize(
    "policy",
    [
        {"cached": 1},
        {"cached": 1, "full_first": 3},
        {"cached": 2, "inside": "raster"},
        {"cached": 1, "condition": {"every": 2}},
    ],
    ids=str,
)
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


HEAD_STEPS = {"kind": "linear", "start": 50, "end": 20, "at": "inclusive", "over": [0, 30]}


def test_head_steps_of_the_reading() -> None:
    """24 + 6 + 2 steps with 50 to 20 head steps over the first two stages: 25.2 calls per token, of 100 at MAR's own settings.

    A run takes whole numbers of steps, rounded toward the end, and of tokens, so that it lies a little below.
    """
    net = tiny_mar(tokens=tiny_tokens("vector", side=16))
    stages = [*GTR[:2], {**GTR[2], "select": {"share": 0.1, "head_steps": 50}}]
    plan = ParallelSampler(order="checkerboard", stages=stages, head={"steps": HEAD_STEPS}).plan(net)
    shown, chains = [step.count for step in plan.steps], [step.head_steps for step in plan.steps]
    assert chains == [20 + int((29 - k) / 29 * 30) for k in range(30)] + [20, 20]
    real = [50 - 30 * k / 29 for k in range(30)] + [20, 20]
    assert sum(n * x for n, x in zip(shown, real)) / 256 == pytest.approx(25.2, abs=0.05)
    assert sum(n * x for n, x in zip(shown, real)) / 256 + 0.1 * 128 * 30 / 256 == pytest.approx(26.7, abs=0.05)
    assert sum(n * x for n, x in zip(shown, chains) if x) / 256 == pytest.approx(25.05, abs=0.01)
    splits = [step.split for step in plan.steps]
    selected = sum(split.most * (split.head_steps - 20) for split in splits if split is not None)
    assert selected / 256 + 25.05 == pytest.approx(26.46, abs=0.01)
    assert splits[:30] == [None] * 30
    assert [(s.fewest, s.most, s.head_steps) for s in splits[30:] if s is not None] == [(6, 6, 50)] * 2
    lines = str(plan).splitlines()
    assert "stage" in lines[0] and lines[-1].split()[1] == "3" and lines[-1].endswith("20, 6 × 50")


# -- token selection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [2, 7, 8, 33])
def test_score_is_that_of_a_sum_of_cosines(width: int) -> None:
    z = torch.randn(3, 2, width, generator=torch.Generator().manual_seed(0))
    for vector, score in zip(z.flatten(0, 1).double().tolist(), frequency(z).flatten()):
        expected = 0.0
        for n in range(1, width // 2 + 1):
            turns = [2 * math.pi * n * d / width for d in range(width)]
            real, imaginary = (sum(x * f(a) for x, a in zip(vector, turns)) for f in (math.cos, math.sin))
            expected += math.hypot(real, imaginary) * (1 + n / (width / 2))
        assert float(score) == pytest.approx(expected, rel=1e-5)


def test_high_frequencies_score_more_than_low_ones_and_a_constant_nothing() -> None:
    turns = torch.arange(16) * 2 * math.pi / 16
    low, high, constant = frequency(torch.stack([turns.cos(), (7 * turns).cos(), torch.ones(16)])[None])[0]
    assert high > low > 1 and constant < 1e-5


def chain_net(head: str) -> Any:
    return vectors(head={"type": head, "width": 16, "depth": 1}) if head == "flow" else vectors()


def selecting(share: float, head_steps: int, by: str = "frequency", **more: Any) -> dict[str, Any]:
    select = {"share": share, "head_steps": head_steps, "by": by}
    return {"stages": [{"tokens": 0.5, "steps": 3}, {"steps": 2, "select": select}], **more}


@pytest.mark.parametrize("head", ["diffusion", "flow"])
@pytest.mark.parametrize("by", ["frequency", "random"])
def test_of_a_share_the_chain_is_another_and_of_the_others_not(head: str, by: str) -> None:
    """All tokens selected: the draws of a run with that chain. A share: some tokens of the one run and some of the other."""
    net, base = chain_net(head), {"steps": 6} | ({"clip": 4.0} if head == "diffusion" else {})
    last = [{"tokens": 0.5, "steps": 3}, {"steps": 1}]

    def drawn(select: dict[str, Any] | None, **changed: Any) -> Tensor:
        stages = [last[0], {**last[1], **({} if select is None else {"select": select})}]
        sampler = sampler_for(net, stages=stages, head={**base, **changed})
        noise = sampler.make_noise(net, [1, 2])
        if noise.chain is not None and noise.chain.shape[0] < 12:  # the same numbers, whatever the longest chain is
            noise = sampler_for(net, stages=stages, head={**base, "steps": 12}).make_noise(net, [1, 2])
        *_, step = sampler(net, torch.tensor([1, 2]), noise=noise)
        return step.tokens

    plain, long = drawn(None), drawn(None, steps=[6, 6, 6, 12])
    assert torch.equal(drawn({"share": 0.25, "head_steps": 6, "by": by}), plain), "equal chains are one draw"
    assert (drawn({"share": 1.0, "head_steps": 12, "by": by}) - long).abs().max() < 1e-5
    mixed = drawn({"share": 0.25, "head_steps": 12, "by": by})
    as_plain, as_long = ((mixed - other).abs().amax(-1) < 1e-5 for other in (plain, long))
    assert (as_plain | as_long).all()
    assert (~as_plain).sum(1).tolist() == [2, 2] and (~as_long).sum(1).tolist() == [6, 6]  # of 8 tokens


def test_selected_are_those_with_the_highest_score() -> None:
    net, seen = vectors(), []

    def sample(z: Tensor, **options: Any) -> Any:
        seen.append(z[:1])
        return net.head.sample(z, **options)

    sampler = sampler_for(net, **selecting(0.25, 8))
    draw(Proxy(net, guided_head=Proxy(net.head, sample=sample)), sampler, [3])
    assert [len(z[0]) for z in seen] == [3, 3, 2, 1, 3, 1, 3]
    for chosen, others in (seen[3:5], seen[5:7]):
        assert frequency(chosen).min() > frequency(others).max()


def test_random_selection_has_its_own_numbers() -> None:
    net = vectors()
    plain, control = (
        sampler_for(net, **selecting(0.25, 8, by)).make_noise(net, [1, 2]) for by in ("frequency", "random")
    )
    assert plain.select is None and control.select is not None and control.select.shape == (2, LENGTH)
    assert plain.chain is not None and control.chain is not None
    assert torch.equal(plain.chain, control.chain) and torch.equal(plain.order, control.order)


@pytest.mark.parametrize("by", ["frequency", "random"])
def test_an_image_does_not_depend_on_the_others(by: str) -> None:
    """Nor on how many tokens of the others are given, so that images select other numbers of tokens; given ones never change."""
    net, sampler = vectors(), sampler_for(vectors(), **selecting(0.4, 12, by))
    tokens = torch.randn(3, LENGTH, 4, generator=torch.Generator().manual_seed(0))
    known = torch.zeros(3, LENGTH, dtype=torch.bool)
    known[1, :7] = known[2, ::2] = True
    *masks, together = draw(net, sampler, [5, 6, 7], tokens=tokens, known=known)
    assert masks[-1].all() and torch.equal(together[known], tokens[known])
    for i in range(3):
        *_, alone = draw(net, sampler, [5 + i], tokens=tokens[i : i + 1], known=known[i : i + 1])
        assert (alone[0] - together[i]).abs().max() < 1e-3


def test_selection_reads_the_context_of_the_guided_model_alone() -> None:
    """Under a guide of another width too, whose context stands behind."""
    net = vectors()
    wide = guided(net, vectors(seed=5, encoder_dim=48, decoder_dim=48))
    scores, own = [], Split.ranked

    def ranked(split: Split, score: Tensor, revealed: Tensor) -> Tensor:
        scores.append(score)
        return own(split, score, revealed)

    for generator in (net, wide):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Split, "ranked", ranked)
            stages = [{"steps": 1, "select": {"share": 0.5, "head_steps": 9}}]
            *_, tokens = draw(generator, sampler_for(net, stages=stages), [5])
        assert torch.isfinite(tokens).all()
    assert torch.allclose(scores[0], scores[1], atol=1e-4), "nothing is known in the first step of both"


def test_a_split_puts_every_row_where_it_was() -> None:
    split = Split.of(Selection(share=0.5, head_steps=9), 9, [6, 3, 0], "cpu")
    assert (split.fewest, split.most, split.quota.flatten().tolist()) == (0, 3, [3, 2, 0])
    revealed = torch.tensor([[6], [3], [0]])
    score = torch.arange(18.0).view(3, 6)
    rank = split.ranked(score, revealed)
    assert rank[0].tolist() == [5, 4, 3, 2, 1, 0] and rank[1, :3].tolist() == [2, 1, 0]

    def sample(rows: Tensor, head_steps: int | None) -> Tensor:
        return rows.unsqueeze(-1).float() + (100 if head_steps == 9 else 0)

    found = split.draw(rank, None, sample).squeeze(-1)
    assert found.tolist() == [[0, 1, 2, 103, 104, 105], [0, 101, 102, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("policy", [None, {"cached": 1, "head_share": 0.5}], ids=str)
def test_operations_are_those_of_a_formula(policy: dict[str, Any] | None) -> None:
    """The head's: calls of each token times the operations of one, and what a chain takes once."""
    net = vectors()
    parts = Proxy(net, transformer=net, tokenizer=None, sampled=lambda: net)

    def of_head(**settings: Any) -> int:
        return count_run(parts, sampler_for(net, **settings)).flops["head"]

    # What a token takes is affine in the steps of its chain.
    two, three = (of_head(stages=None, steps=1, head={"steps": n}) // LENGTH for n in (2, 3))
    call, once = three - two, two - 2 * (three - two)
    select = {"share": 0.25, "head_steps": 6}
    stages = [{"tokens": 0.5, "steps": 1}, {"steps": 1, "select": select}]
    found = of_head(stages=stages, head={"steps": 2}, reuse=policy)
    of_last = (1, 3) if policy else (2, 6)  # cached steps take half of the chains
    calls = 8 * 2 + 6 * of_last[0] + 2 * of_last[1]
    assert call > 0 and found == LENGTH * once + calls * call


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stages": []}, "at least one is needed"),
        ({"stages": 3}, "expected a list such as"),
        ({"stages": [{"tokens": 4}]}, "missing key 'stages.0.steps'"),
        ({"stages": [{"steps": 1}, {"steps": 1}]}, "missing key 'stages.0.tokens': only the last"),
        ({"stages": [{"steps": 0}]}, "'stages.0.steps' is 0: allowed is at least 1"),
        ({"stages": [{"steps": 1, "tokens": 0}]}, "'stages.0.tokens' is 0: allowed is"),
        ({"stages": [{"steps": 1, "tokens": 1.5}]}, "'stages.0.tokens' is 1.5: allowed is at most 1"),
        ({"stages": [{"steps": 1, "token": 4}]}, "unknown key 'stages.0.token': did you mean 'tokens'"),
        ({"stages": [{"steps": 2, "schedule": "cosin"}]}, "stages.0: unknown schedule 'cosin'"),
        ({"stages": [{"steps": 1, "tokens": 0.5}, {"steps": 1, "tokens": 0.4}]}, "sum to 0.9: they must sum to 1"),
        ({"stages": [{"steps": 1, "tokens": 1.0}, {"steps": 1}]}, "sum to 1, so that nothing is left for the last"),
        ({"stages": SMALL, "steps": 8}, "steps is 8, but the stages take 7"),
        ({"stages": SMALL, "start": 1}, "stages are for whole runs"),
        ({"stages": SMALL, "schedule": "single"}, "schedule is 'single', a number of tokens for each step"),
        ({"stages": SMALL, "schedule": [0.5] * 6}, "which is what stages say"),
        ({"stages": SMALL, "counts": "binomial"}, "which stages settle"),
        ({"stages": SMALL, "remask": {"kind": "cap"}}, "in whose place stages stand"),
        ({"stages": [{"steps": 2, "select": {"share": 0.0, "head_steps": 4}}]}, "select.share' is 0.0: allowed is more than 0"),
        ({"stages": [{"steps": 2, "select": {"share": 0.1, "head_steps": 4, "by": "frequenc"}}]}, "did you mean 'frequency'"),
        ({"order": {"name": "checkerboard", "levels": 0}}, "order.levels' is 0: allowed is at least 1"),
        ({"order": {"name": "halton", "levels": 2}}, "levels is 2 with halton: it is for checkerboard only"),
        ({"order": "checkerbord"}, "did you mean 'checkerboard'"),
        ({"guidance": {"kind": "linear", "over": [2, 2]}}, "expected the first step and, after it"),
        ({"guidance": {"kind": "linear", "over": [0, 9]}}, "there are 8 steps: it must end at 8 at most"),
        ({"guidance": {"kind": "linear", "over": [0, 3], "at": "tokens"}}, "use at: start, end or inclusive"),
        ({"head": {"steps": {"kind": "linear", "start": 9, "end": 3, "over": [0, 9]}}}, "it must end at 8 at most"),
    ],
)  # fmt: skip
def test_bad_settings_raise_errors(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(MgenError, match=words):
        ParallelSampler(**settings)


def test_what_does_not_fit_the_model_raises_an_error() -> None:
    ids = tiny_generator(tokens=tiny_tokens())
    joint, causal = tiny_himar(side=4), tiny_net("causal")
    no_grid = tiny_generator(tokens={**tiny_tokens(), "grid": None})
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (ids, {"stages": GTR}, "the stages reveal 256 tokens, this model has 16: give shares"),
        (ids, {"stages": [{"tokens": 12, "steps": 2}, {"tokens": 8, "steps": 1}]}, "reveal 20 tokens"),
        (ids, {"stages": [{"tokens": 2, "steps": 3}, {"steps": 1}]}, "stages.0 has 3 steps for 2 tokens"),
        (ids, selecting(0.5, 4), "no chain of steps"),
        (joint, {**selecting(0.5, 4), "first_stage": None}, "draws all tokens of a step together"),
        (causal, {"order": "raster", "stages": SMALL, "steps": None, "schedule": "cosine"}, "needs steps 16"),
        (no_grid, {"order": "checkerboard"}, "order 'checkerboard' needs tokens with a position"),
        (ids, {"stages": SMALL, "global_steps": 2}, "no global tokens"),
        (vectors(), selecting(0.5, 1001), "trained with 1000 steps"),
    ]
    for net, settings, words in cases:
        with pytest.raises(MgenError, match=words):
            ParallelSampler.suited(net, settings).check(net)
