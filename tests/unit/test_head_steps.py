"""Head steps over the steps of the sampler (DiSA, arXiv 2505.20297): the published counts, timesteps and runs."""

import math

import pytest
import torch

from mgen.generators.build import build_model
from mgen.heads.chains import Chain, ChainSettings, Tables, cosine_betas
from mgen.samplers import ParallelSampler
from mgen.samplers.head_steps import head_steps
from mgen.utils.errors import MgenError
from tests.helpers import tiny_config, tiny_tokens

LINEAR = {"kind": "linear", "start": 50, "end": 5, "at": "inclusive"}
COSINE = {"kind": "power-cosine", "start": 50, "end": 5}
TWO_STAGES = {"kind": "step", "start": 50, "end": 5}
TABLES = Tables(cosine_betas())


def published(strategy, k, last, upper, lower):
    """The expressions of the official code, in its order of operations."""
    match strategy:
        case "linear":
            return lower + int((last - k) / last * (upper - lower))
        case "cosine":
            return lower + int((math.cos(math.pi * k / last) + 1) / 2 * (upper - lower))
    return upper if k < last / 2 else lower


@pytest.mark.parametrize(("strategy", "curve"), [("linear", LINEAR), ("cosine", COSINE), ("two-stage", TWO_STAGES)])
def test_published_counts(strategy, curve):
    for steps in range(2, 257):
        expected = [published(strategy, k, steps - 1, 50, 5) for k in range(steps)]
        assert head_steps(curve, steps) == expected, steps


def test_token_weighted_mean_calls():
    # 64 steps of MAR's cosine counts on 256 tokens; timesteps end at 950.
    sampler = ParallelSampler(steps=64, order="random", counts="mar", head={"steps": LINEAR, "max_timestep": 950})
    left = [256, *sampler.remaining(unknown=256, length=256)]
    calls = [len(Chain(ChainSettings.of(sampler.head(n)), TABLES).timesteps) for n, _ in sampler.chain_steps(256)]
    weighted = sum(n * (a - b) for n, a, b in zip(calls, left, left[1:])) / 256
    assert round(sum(calls) / 64, 1) == 26.3 and round(weighted, 1) == 20.5


def test_an_empty_list_of_head_steps_is_told():
    with pytest.raises(MgenError, match=r"head\.steps lists 0 numbers for 8 steps"):
        ParallelSampler(steps=8, order="random", head={"steps": []})


def test_flow_steps_of_cells():
    # xAR: int((3 - i) / 3 · 35 + 15); FlowAR counts from the first scale on.
    assert head_steps({"kind": "linear", "start": 50, "end": 15, "at": "inclusive"}, 4) == [50, 38, 26, 15]
    assert head_steps({"kind": "linear", "start": 25, "end": 15, "at": "start"}, 5) == [25, 23, 21, 19, 17]


@pytest.mark.parametrize(
    ("steps", "most", "calls"),
    [
        (5, 950, [0, 250, 500, 749, 950]),
        (50, 950, 48),
        (21, 950, 21),
        (22, 950, 21),
        (41, 950, 40),
        (42, 950, 40),
        (50, 1001, 50),
    ],
)
def test_highest_timestep(steps, most, calls):
    for name in ("ancestral", "ddim"):
        chain = Chain(ChainSettings(chain=name, steps=steps, max_timestep=most), TABLES)
        found = list(chain.timesteps)[::-1]
        assert (found if isinstance(calls, list) else len(found)) == calls
        chain.begin()
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
        for j in range(len(chain.timesteps)):
            x = chain.step(j, x, 0.1 * x, torch.zeros_like(x), torch.zeros_like(x), 1.0)
        assert x.isfinite().all()


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    made = build_model(tiny_config("mae", tokens=tiny_tokens("vector"))).eval()
    for p in made.parameters():  # heads start as zero functions
        torch.nn.init.normal_(p, std=0.05)
    return made


def run(net, batch=(0, 1), **settings):
    sampler = ParallelSampler(**{"steps": 4, "order": "random", "guidance": 2.0} | settings)
    noise = sampler.make_noise(net, batch)
    *_, last = sampler(net, torch.tensor([i % 2 for i in batch]), noise=noise)
    return last.tokens


def test_constant_curves_are_the_plain_run(net):
    plain = run(net, head={"steps": 6})
    for steps in ([6] * 4, {"kind": "constant", "end": 6}, {"kind": "linear", "start": 6, "end": 6}):
        assert torch.equal(plain, run(net, head={"steps": steps}))


def test_noise_does_not_depend_on_the_batch(net):
    both = run(net, head={"steps": [6, 4, 3, 2], "clip": 3.0})
    alone = torch.cat([run(net, batch=(i,), head={"steps": [6, 4, 3, 2], "clip": 3.0}) for i in (0, 1)])
    torch.testing.assert_close(both, alone)


def test_shares_of_cached_steps_multiply(net):
    sampler = ParallelSampler(
        steps=4, order="random", head={"steps": [8, 6, 4, 2]}, reuse={"cached": 1, "head_share": 0.5}
    )
    assert [step.head_steps for step in sampler.plan(net).steps] == [8, 3, 4, 1]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([5, 4], "2 numbers for 4 steps"),
        ([5, 4, 3, 0], "allowed is 1"),
        ([5, 4, 3, 2.5], "whole numbers"),
        ({"kind": "linear", "start": 50}, ""),
        ({"kind": "linear", "start": 0, "end": 5}, "from 1 on"),
        ({"kind": "linear", "start": 5.5, "end": 5}, "whole number"),
        ({"kind": "linear", "start": 5, "end": 2, "interval": [0, 1]}, "interval"),
        ({"kind": "linear", "start": 5, "end": 2, "times": {"kind": "constant", "end": 2}}, "times"),
        ({"kind": "bent", "start": 5}, "bent"),
        ("many", "expected"),
    ],
)
def test_errors(steps, said):
    if not said:  # `end` is 1 by default, which a chain may have
        assert head_steps(steps, 2) == [25, 1]
        return
    with pytest.raises(MgenError, match=said):
        ParallelSampler(steps=4, order="random", head={"steps": steps})


def test_highest_timestep_is_for_respaced_chains():
    with pytest.raises(MgenError, match="max_timestep"):
        ParallelSampler(steps=4, order="random", head={"chain": "dpm-solver++", "max_timestep": 950})
