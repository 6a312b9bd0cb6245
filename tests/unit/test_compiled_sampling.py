"""torch.compile of a generator compiles what sampling computes: graphs are counted, and tokens are the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.samplers import ParallelSampler
from tests.compiled import fresh, graphs  # noqa: F401  # the fixture is of every test here
from tests.helpers import TRUNKS, tiny_continuous, tiny_himar, tiny_mar, tiny_net, tiny_pipeline, tiny_tokens


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
    "permuted": (lambda: tiny_net("permuted"), {"order": "random"}),
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


HEADS: dict[str, dict[str, Any]] = {
    "ids": {},
    "windows": {"windows": {"side": 2}},
    "vectors": {"tokens": tiny_tokens("vector")},
    "channels": {"tokens": tiny_tokens("multi-index")},
    "joint": {
        "tokens": tiny_tokens("vector"),
        "head": {"type": "diffusion-transformer", "width": 32, "depth": 2, "heads": 2},
    },
}


def check_compiled(net: Any, how: str, **settings: Any) -> None:
    """What `net.compile()` or `net.compile_repeated_blocks()` compiles is what sampling calls: once, and with the same tokens."""
    plain = draw(net, **settings)
    assert graphs() == 0
    getattr(net, how)(backend="eager")
    assert torch.allclose(draw(net, **settings).float(), plain.float(), atol=1e-4)
    made = graphs()
    assert 2 <= made <= 10  # for the shapes of a run, not for each of its layers and steps
    assert torch.allclose(draw(net, **settings).float(), plain.float(), atol=1e-4) and graphs() == made


ONE_BY_ONE = ("causal", "permuted")


@pytest.mark.parametrize("trunk", ["uvit", *(pytest.param(name, marks=pytest.mark.slow) for name in ONE_BY_ONE)])
def test_repeated_blocks(trunk: str) -> None:
    settings = {} if trunk in ONE_BY_ONE else {"steps": 3, "reuse": {"cached": 1}}
    check_compiled(tiny_net(trunk), "compile_repeated_blocks", **settings)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["compile", "compile_repeated_blocks"])
@pytest.mark.parametrize(
    ("trunk", "head"),
    [*((trunk, "ids") for trunk in TRUNKS if trunk not in ONE_BY_ONE), *(("mae", head) for head in HEADS)],
)
def test_every_trunk_and_head(trunk: str, head: str, how: str) -> None:
    net = tiny_net(trunk, **HEADS[head])
    check_compiled(net, how, **({"steps": 4} if net.capabilities.log_prob else {**CHAIN, "steps": 4}))


def test_a_run_of_more_steps_compiles_nothing_more() -> None:
    net = tiny_net("uvit")
    net.compile(backend="eager")
    draw(net, steps=8, order="halton")
    made = graphs()
    draw(net, steps=12, order="halton")
    assert graphs() <= made + 1


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
