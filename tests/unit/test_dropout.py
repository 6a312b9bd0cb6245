"""Dropout: the share and the scale of what it keeps, its gradient, and where it is torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from mgen.nn import dropout as module
from mgen.nn.attention import attend, explicit_with_gradient
from mgen.nn.dropout import _draws, dropout

COUNT = 10**6


@pytest.fixture(autouse=True)
def slow_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWS_SLOWLY", True)  # on CPUs of Intel too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.37, 0.9])
def test_share_and_scale(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    out = dropout(torch.full((COUNT,), 2.0, dtype=dtype), p, True)
    kept = out[out != 0]
    assert (kept == kept[0]).all() and kept[0].item() == pytest.approx(2 / (1 - p), rel=1e-2)
    deviation = (p * (1 - p) / COUNT) ** 0.5
    assert abs(1 - len(kept) / COUNT - p) < 5 * deviation + 2**-17  # p is rounded to 2^-16
    if dtype == torch.float32:
        assert out.mean().item() == pytest.approx(2, rel=5 * deviation / (1 - p))
        assert kept[0].item() == pytest.approx(2 / (1 - p), rel=1e-6)


def test_draws_are_uniform_and_independent_of_place() -> None:
    torch.manual_seed(0)
    draws = _draws(COUNT).to(torch.int64) + 2**15
    assert draws.min() >= 0 and draws.max() < 2**16
    for place in range(4):  # of the number that the generator makes
        counts = torch.bincount(draws[place::4] // 2**12, minlength=16).double()
        expected = len(draws[place::4]) / 16
        assert ((counts - expected).square() / expected).sum() < 45  # χ² of 15 degrees of freedom: p < 1e-4
    pairs = torch.corrcoef(draws.view(-1, 4).T.double()) - torch.eye(4)
    assert pairs.abs().max() < 5 / (COUNT / 4) ** 0.5


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 1, 11)])
def test_gradient_is_of_the_kept_numbers(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape, requires_grad=True)
    out = dropout(x, 0.5, True)
    out.backward(torch.ones(shape))
    assert x.grad is not None and torch.equal(x.grad, torch.where(out == 0, 0.0, 2.0)) and torch.equal(out, x * x.grad)


def test_nothing_is_drawn_where_nothing_drops() -> None:
    x = torch.randn(5)
    state = torch.get_rng_state()
    assert dropout(x, 0.3, False) is x and dropout(x, 0.0, True) is x
    assert torch.equal(torch.get_rng_state(), state)
    assert not dropout(x, 1.0, True).any()


@pytest.mark.parametrize("p", [1e-6, 0.99999])
def test_probabilities_that_16_bits_would_change_are_torchs(p: float) -> None:
    torch.manual_seed(2)
    ours = dropout(torch.ones(COUNT), p, True)
    torch.manual_seed(2)
    assert torch.equal(ours, F.dropout(torch.ones(COUNT), p, True))


def test_where_torch_draws_fast_the_draw_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1000)
    torch.manual_seed(5)
    ours = dropout(x, 0.1, True)
    monkeypatch.setattr(module, "DRAWS_SLOWLY", False)
    torch.manual_seed(5)
    theirs = dropout(x, 0.1, True)
    torch.manual_seed(5)
    assert torch.equal(theirs, F.dropout(x, 0.1, True)) and not torch.equal(ours, theirs)


def test_checkpointing_draws_the_same_again() -> None:
    weight = torch.randn(64, 64, requires_grad=True)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return dropout(x @ weight, 0.4, True).square().sum()

    x, grads = torch.randn(8, 64), []
    for run in (loss, lambda x: checkpoint(loss, x, use_reentrant=False)):
        torch.manual_seed(3)
        grads.append(torch.autograd.grad(run(x), weight)[0])
    assert torch.equal(*grads)


def test_attention_with_dropout_has_the_mean_of_the_one_without() -> None:
    torch.manual_seed(4)
    q, k, v = torch.randn(3, 1, 2, 9, 8).unbind(0)
    repeated = [x.repeat(20_000, 1, 1, 1) for x in (q, k, v)]
    mean = attend(*repeated, 0.2).mean(0, keepdim=True)
    torch.testing.assert_close(mean, F.scaled_dot_product_attention(q, k, v), atol=0.02, rtol=0)
    torch.testing.assert_close(explicit_with_gradient(q, k, v), attend(q, k, v), atol=1e-6, rtol=0)
