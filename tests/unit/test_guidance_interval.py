"""A guidance interval of the share of unknown tokens: which steps are guided, by image, and what the others cost."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.samplers import ParallelSampler
from mgen.samplers.planner import make_plan
from mgen.utils.errors import MgenError
from tests.helpers import tiny_generator, tiny_tokens

NET = tiny_generator(tokens=tiny_tokens())


def curve(low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"kind": "constant", "end": 4.0, "interval": [low, high], "interval_of": "tokens", **more}


def run(sampler: ParallelSampler, seeds: list[int], known: Tensor | None = None, net: Any = NET) -> Tensor:
    given = {} if known is None else {"tokens": torch.full(known.shape, 3), "known": known}
    noise = sampler.make_noise(net, seeds)
    *_, end = sampler(net, torch.tensor(seeds) % 3, noise=noise, **given)
    return end.tokens


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.5), (0.5, 1), (0.25, 0.75), (0.25, 0.26)])
@pytest.mark.parametrize(
    "settings", [{}, {"schedule": "linear"}, {"order": "halton"}, {"reuse": {"cached": 1}}], ids=str
)
def test_steps_are_guided_by_the_share_of_unknown_tokens(low: float, high: float, settings: dict[str, Any]) -> None:
    sampler = ParallelSampler(steps=8, guidance=curve(low, high), **settings)
    plan = sampler.plan(NET)
    expected = [low < step.unknown / 16 <= high for step in plan.steps]
    assert [step.guidance == 4.0 for step in plan.steps] == expected == sampler.guided(16)
    if not settings.get("reuse"):
        assert [step.null_rows for step in plan.steps] == expected
    if (low, high) == (0, 1):
        assert all(expected)


def test_the_share_is_of_what_is_unknown_at_first() -> None:
    """A run that starts late, or is given tokens, begins with a share of 1."""
    late = ParallelSampler(steps=8, start=3, guidance=curve(0.5, 1))
    assert [step.guidance == 4.0 for step in late.plan(NET).steps] == [
        True,
        True,
        False,
        False,
        False,
    ]  # of 16: 16, 11, 8, 6, 3
    sampler = ParallelSampler(steps=4, schedule="linear", guidance=curve(0.5, 1))
    # One unknown token is left for the last step.
    for hidden, guided in ((16, [True, True, False, False]), (4, [True, True, False, False]), (1, [True] * 4)):
        plan = make_plan(sampler, NET.units, NET.capabilities, [[hidden]])
        assert [step.guidance == 4.0 for step in plan.steps] == guided, hidden


@torch.inference_mode()
@pytest.mark.parametrize("counts", ["maskgit", "binomial"])
def test_each_image_has_its_own_share(counts: str) -> None:
    """With random counts, and where images are given other numbers of tokens; an image doesn't depend on the batch."""
    sampler = ParallelSampler(steps=6, counts=counts, order="random", guidance=curve(0.3, 0.7))
    known = torch.zeros(3, 16, dtype=torch.bool)
    known[1, :5] = known[2, :13] = True
    hidden, noise = [[16, 11, 3]], sampler.make_noise(NET, [1, 2, 3])
    plan = make_plan(sampler, NET.units, NET.capabilities, hidden, counts=noise.counts)
    before, mixed = torch.tensor(hidden[0]), 0
    for step in plan.steps:
        guided = torch.tensor([0.3 < left / first <= 0.7 for left, first in zip(before.tolist(), hidden[0])])
        value = torch.tensor(1.0) if step.guidance is None else torch.as_tensor(step.guidance)
        assert torch.equal(value.expand(3) == 4.0, guided)
        assert step.null_rows == bool(guided.any())
        mixed += bool(guided.any() and not guided.all())
        before = before - torch.tensor(step.reveal)
    assert mixed
    together = run(sampler, [1, 2, 3], known)
    for i in range(3):
        assert torch.equal(run(sampler, [i + 1], known[i : i + 1])[0], together[i])


@torch.inference_mode()
@pytest.mark.parametrize("order", ["confidence", "random"])
def test_steps_outside_are_those_of_a_run_that_computes_null_rows_everywhere(order: str) -> None:
    """1 + 1e-12 is no guidance in float32, but its null rows are computed."""
    plan = ParallelSampler(steps=8, order=order, guidance=curve(0.3, 0.8)).plan(NET)
    listed = [1.0 + 1e-12 if step.guidance is None else step.guidance for step in plan.steps]
    full = ParallelSampler(steps=8, order=order, guidance=listed)
    assert all(step.null_rows for step in full.plan(NET).steps) and plan.forward_passes < 16
    tokens = run(ParallelSampler(steps=8, order=order, guidance=curve(0.3, 0.8)), [1, 2])
    assert torch.equal(tokens, run(full, [1, 2]))
    assert not torch.equal(tokens, run(ParallelSampler(steps=8, order=order, guidance=4.0), [1, 2]))


def test_curves_of_any_kind_have_an_interval_of_tokens() -> None:
    ramp = {**curve(0.5, 1), "kind": "linear", "start": 1.0, "end": 3.0}
    plain = {key: value for key, value in ramp.items() if not key.startswith("interval")}
    inside, everywhere = (ParallelSampler(steps=8, guidance=g).plan(NET).steps for g in (ramp, plain))
    for a, b in zip(inside, everywhere):
        assert a.guidance == (b.guidance if a.unknown / 16 > 0.5 else None)
    times = {"kind": "constant", "end": 1.0, "times": curve(0.5, 1)}
    assert [step.guidance for step in ParallelSampler(steps=8, guidance=times).plan(NET).steps][0] == 4.0


@torch.inference_mode()
def test_what_does_not_go_with_it_is_an_error() -> None:
    with pytest.raises(MgenError, match="interval_of is tokens, but there is no interval"):
        ParallelSampler(guidance={"kind": "constant", "end": 2.0, "interval_of": "tokens"})
    with pytest.raises(MgenError, match="interval_of"):
        ParallelSampler(guidance=curve(0, 1) | {"interval_of": "steps"})
    with pytest.raises(MgenError, match="an interval is for guidance"):
        ParallelSampler(temperature=curve(0, 1))
    # Nothing is guided in a whole run, but something where tokens are given.
    sampler = ParallelSampler(steps=4, schedule="linear", guidance=curve(0.6, 0.7))
    plain = tiny_generator(tokens=tiny_tokens(), classes={"null_class": False})
    run(sampler, [1], net=plain)
    known = torch.arange(16).unsqueeze(0) >= 3
    with pytest.raises(MgenError, match="needs a null class"):
        run(sampler, [1], known, net=plain)
