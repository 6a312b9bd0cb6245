"""The condition cache (LazyMAR, arXiv 2503.12450): which steps compute null rows, and what the others use."""

from collections import Counter

import pytest
import torch

from mgen.bench.benchmark import RandomPipeline
from mgen.bench.flops import count_run
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from tests.helpers import TRUNKS, tiny_himar, tiny_net, tiny_tokens

TRUNKS_OF_IDS = [name for name in TRUNKS if name not in ("causal", "permuted")]


def make(trunk, kind="index", std=0.1, **sections):
    net = tiny_net(trunk, tokens=tiny_tokens(kind), classes={"count": 3, "null_class": True}, **sections)
    for i, parameter in enumerate(net.parameters()):  # heads start as zero functions
        torch.nn.init.normal_(parameter, std=std, generator=torch.Generator().manual_seed(i))
    return net


def settings(net, **own):
    order = {} if net.capabilities.log_prob else {"order": "random", "head": {"steps": 4, "clip": 3.0}}
    features = {"features": False} if net.capabilities.carried_features else {}
    own["reuse"] = {**features, **own.get("reuse", {})}
    return ParallelSampler(**{"steps": 8, "guidance": 3.0, **order, **own})


def run(net, sampler, **given):
    noise = sampler.make_noise(net, [0, 1])
    *_, last = sampler(net, torch.tensor([0, 2]), noise=noise, **given)
    return last.tokens


def refreshed(plan):
    return [step.index for step in plan.steps if step.null_rows]


@pytest.mark.parametrize(("steps", "full"), [(64, [*range(6), 14, 23, 32, 41, 50, 59]), (32, [*range(6), 14, 23])])
def test_published_full_steps(steps, full):
    net = tiny_net("mae", tokens=tiny_tokens("vector", side=16), classes={"count": 3, "null_class": True})
    sampler = ParallelSampler(
        steps=steps,
        order="random",
        counts="mar",
        guidance={"kind": "linear", "start": 1, "end": 3, "at": "tokens", "left": 1},
        reuse={"condition": {"every": 9, "first": 5}},
    )
    plan = sampler.plan(net)
    assert refreshed(plan) == full and plan.forward_passes == steps + len(full)
    assert sum(step.null_kept for step in plan.steps) == steps - len(full)
    assert "kept null class" in str(plan)


KINDS = [*((trunk, "index") for trunk in TRUNKS_OF_IDS), ("mae", "vector"), ("mage", "vector"), ("mae", "multi-index")]


@pytest.mark.parametrize(("trunk", "kind"), KINDS)
@pytest.mark.parametrize("reuse", [{}, {"cached": 1, "full_first": 2}])
def test_every_one_is_the_plain_run(trunk, kind, reuse):
    net = make(trunk, kind)
    plain = run(net, settings(net, reuse=reuse))
    assert torch.equal(plain, run(net, settings(net, reuse=reuse | {"condition": {"every": 1}})))
    lazy = run(net, settings(net, reuse=reuse | {"condition": {"every": 4}}))
    assert lazy.shape == plain.shape


@pytest.mark.parametrize(("trunk", "kind"), KINDS)
def test_lazy_step_is_the_class_plus_the_difference(trunk, kind):
    """Against single passes: the same tokens, null rows by hand."""
    net = make(trunk, kind)
    sampler = settings(net, steps=3, order="halton", reuse={"condition": {"every": 3}})
    seen = []

    def watch(tokens, known, class_ids, **options):
        z = type(net).context(net, tokens, known, class_ids, **options)
        seen.append((tokens.clone(), known.clone(), class_ids, options["positions"], z))
        return z

    net.context = watch
    run(net, sampler)
    assert [len(z) for *_, z in seen] == [4, 2, 2]
    tokens, known, ids, asked, z = seen[0]
    both = type(net).context(net, tokens, known, ids, finished=False)
    change = both[2:] - both[:2]
    finished = []
    net.context = type(net).context.__get__(net)
    inner = net.head.sample
    net.head.sample = lambda z, **options: finished.append(z) or inner(z, **options)
    run(net, sampler)
    for (tokens, known, ids, at, _), used in zip(seen[1:], finished[1:]):
        own = net.context(tokens, known, ids, finished=False)
        expected = net.to_context(own + change)
        expected = torch.stack([row[place] for row, place in zip(expected, at)])
        torch.testing.assert_close(used[2:], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("made", [{}, {"head": "diffusion"}, {"kind": "index"}])
def test_both_stages_of_a_cascade(made):
    net = tiny_himar(side=4, **made)
    chain = {"order": "random", "head": {"steps": 3}} if made.get("kind") != "index" else {}
    own = {"steps": 4, "guidance": 2.0, **chain}
    plain = ParallelSampler(**own, first_stage=own | {"steps": 2})
    every = [{"condition": {"every": n}} for n in (1, 2)]
    exact, lazy = (plain.override(reuse=x, first_stage={"reuse": x}) for x in every)
    assert torch.equal(run(net, plain), run(net, exact))
    assert run(net, lazy).shape == run(net, plain).shape and lazy.plan(net).forward_passes == 6 + 3


def test_unguided_groups_leave_it_to_the_next():
    net = make("uvit")
    lists = [1.0, 2.0, 2.0, 1.0, 2.0, 2.0, 1.0, 2.0]
    plan = settings(net, guidance=lists, reuse={"condition": {"every": 3}}).plan(net)
    assert refreshed(plan) == [1, 4, 7] and Counter(step.null_kept for step in plan.steps)[True] == 2


def test_given_tokens_and_rows_of_unequal_length():
    net = make("mae", "vector")
    tokens, known = torch.randn(2, 16, 4), torch.zeros(2, 16, dtype=torch.bool)
    known[0, :5], known[1, 9] = True, True
    sampler = settings(net, reuse={"condition": {"every": 3}})
    both = run(net, sampler, tokens=tokens, known=known)
    assert torch.equal(both[known], tokens[known])
    noise = sampler.make_noise(net, [1])
    *_, last = sampler(net, torch.tensor([2]), noise=noise, tokens=tokens[1:], known=known[1:])
    torch.testing.assert_close(last.tokens[0], both[1], atol=1e-4, rtol=1e-4)


def test_operations():
    """Lazy steps compute half of the rows."""
    net = make("uvit")
    samplers = [settings(net, reuse={"condition": {"every": n}}) for n in (1, 4)]
    plain, lazy = (count_run(RandomPipeline(net, None, sampler), sampler) for sampler in samplers)
    assert plain.passes["full"] == 16 and lazy.passes["full"] == 10
    # Not exactly 10 / 16: the last block computes unknown positions alone, which are fewer in late steps.
    assert lazy.flops["trunk"] / plain.flops["trunk"] == pytest.approx(10 / 16, rel=0.02)
    assert lazy.flops["head"] == plain.flops["head"]


def test_operations_of_layers_behind_the_difference():
    """MAR adds the difference in front of its last normalization, which a count runs as well."""
    net = make("mae", "vector")
    samplers = [settings(net, reuse={"condition": {"every": n}}) for n in (1, 4)]
    plain, lazy = (count_run(RandomPipeline(net, None, sampler), sampler) for sampler in samplers)
    assert lazy.passes["full"] < plain.passes["full"] and lazy.flops["head"] == plain.flops["head"]
    assert lazy.flops["trunk"] < 0.8 * plain.flops["trunk"]


@pytest.mark.parametrize(
    ("trunk", "reuse", "said"),
    [
        ("enat", {"condition": {"every": 2}}, "reuse.features=false"),
        ("uvit", {"condition": {"every": 0}}, "every"),
        ("uvit", {"condition": {"evry": 2}}, "evry"),
        ("uvit", {"condition": 3}, "condition"),
    ],
)
def test_errors(trunk, reuse, said):
    net = make(trunk)
    with pytest.raises(MgenError, match=said):
        ParallelSampler(guidance=2.0, reuse=reuse).check(net)
