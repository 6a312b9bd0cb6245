"""torch.compile of a generator compiles what sampling computes: graphs are counted, and tokens are the same."""

from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from mgen.samplers import ParallelSampler
from tests.helpers import tiny_continuous, tiny_himar, tiny_mar, tiny_net, tiny_pipeline


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def draw(net: Any, **settings: Any) -> Tensor:
    sampler = ParallelSampler.suited(net, {"guidance": 2.0, **settings})
    with torch.inference_mode():
        *_, last = sampler(net, torch.tensor([0, 1]), noise=sampler.make_noise(net, [1, 2]))
    return last.tokens


CHAIN = {"steps": 3, "head": {"steps": 4, "clip": 4.0}}
NETS: dict[str, Any] = {
    "ids": (lambda: tiny_net("uvit"), {"steps": 3, "reuse": {"cached": 1}}),
    "vectors": (tiny_mar, CHAIN),
    "causal": (lambda: tiny_net("causal"), {}),
}


@pytest.mark.parametrize("kind", NETS)
def test_compiled_in_place(kind: str) -> None:
    make, settings = NETS[kind]
    net = make()
    plain = draw(net, **settings)
    assert graphs() == 0
    net.compile(backend="eager")
    assert torch.allclose(draw(net, **settings).float(), plain.float(), atol=1e-5) and graphs() >= 2
    names = set(net.state_dict())
    assert names == set(make().state_dict())  # it can still be saved


@pytest.mark.slow
def test_both_stages() -> None:
    net = tiny_himar()
    settings = {**CHAIN, "first_stage": CHAIN}
    plain = draw(net, **settings)
    net.compile(backend="eager")
    assert torch.allclose(draw(net, **settings), plain, atol=1e-4) and graphs() >= 4


@pytest.mark.parametrize("make", [tiny_pipeline, pytest.param(tiny_continuous, marks=pytest.mark.slow)])
def test_a_wrapped_generator_in_a_pipeline(make: Any) -> None:
    pipe = make(steps=2)
    plain = pipe([0], output_type="tokens", progress=False).tokens
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    found = pipe([0], output_type="tokens", progress=False).tokens
    assert torch.allclose(found.float(), plain.float(), atol=1e-5) and graphs() >= 2


def test_training_is_compiled_too() -> None:
    net = tiny_net("uvit").train()
    batch = torch.zeros(2, 16, dtype=torch.int64), torch.tensor([0, 1]), torch.arange(16).expand(2, -1) < 5
    loss, _ = net(*batch)
    net.compile(backend="eager")
    again, _ = net(*batch)
    assert torch.allclose(loss, again, atol=1e-6) and graphs() >= 1
    again.mean().backward()
