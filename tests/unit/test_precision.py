"""Computing in bf16: weights held in bf16 change nothing but the time, and are put back as they were."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.nn import attention, packed, precision
from mgen.nn.packed import PackedWeight
from mgen.nn.precision import computing, held
from mgen.pipelines.pipeline import load
from tests.helpers import TRUNKS, tiny_net, tiny_tokens
from tests.unit.test_dtypes import HEADS, draw

CPU, BF16 = torch.device("cpu"), torch.bfloat16
onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


@pytest.mark.parametrize("head", ["categorical", "diffusion", "channels"])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_held_weights_give_the_numbers_of_autocast(trunk: str, head: str) -> None:
    net = tiny_net(trunk, **HEADS[head])
    if net.capabilities.one_by_one and net.capabilities.joint:
        pytest.skip("one token after the other is not drawn together")
    with torch.inference_mode():
        exact = draw(net)
        with torch.autocast("cpu", BF16):
            expected = draw(net)
        with computing(net, BF16, CPU):
            assert torch.equal(draw(net), expected)
        assert torch.equal(draw(net), exact)


@onednn
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("head", ["categorical", "diffusion", "channels"])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_packed_weights_give_the_numbers_of_fp32(trunk: str, head: str, pack: bool, monkeypatch: Any) -> None:
    monkeypatch.setitem(packed.FASTER_FROM, torch.float32, 1)  # on CPUs where it isn't, too
    monkeypatch.setattr(precision, "LARGEST", 2**31 if pack else 0)
    monkeypatch.setattr(packed, "WORTH", 2)
    net = tiny_net(trunk, **HEADS[head])
    if net.capabilities.one_by_one and net.capabilities.joint:
        pytest.skip("one token after the other is not drawn together")
    with torch.inference_mode():
        expected = draw(net)
        with computing(net, torch.float32, CPU):
            first, second = draw(net), draw(net)
            layers = [
                m.weight for m in net.modules() if isinstance(m, nn.Linear) and isinstance(m.weight, PackedWeight)
            ]
        assert torch.allclose(first.float(), second.float(), atol=1e-5) and torch.allclose(
            first.float(), expected.float(), atol=1e-4
        )
        assert torch.equal(draw(net), expected)
    used = [part for weight in layers for part in (weight, *weight.parts.values()) if part.products >= 2]
    assert used and all(part.current.layout == (torch._mkldnn if pack else torch.strided) for part in used)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_a_layout_changes_no_bit(rows: int, dtype: torch.dtype) -> None:
    """So that a run which goes on from its files makes the same images, whenever weights are laid out."""
    if packed.FASTER_FROM[dtype] == packed.NEVER:
        pytest.skip("not done on this CPU")
    x, plain, bias = torch.randn(rows, 24).to(dtype), torch.randn(33, 24), torch.randn(33).to(dtype)
    weight = PackedWeight(plain, dtype)
    first, *_, last = [F.linear(x, weight, bias) for _ in range(packed.WORTH + 1)]
    assert torch.equal(first, last)
    assert torch.allclose(first, F.linear(x, plain.to(dtype), bias), atol=1e-5)
    assert (weight.current is None) == (rows == 1 and dtype == torch.float32)
    if dtype == BF16:
        assert torch.equal(first, F.linear(x, plain.to(dtype), bias))


@onednn
def test_a_packed_weight_stands_for_the_plain_one(monkeypatch: Any) -> None:
    monkeypatch.setitem(packed.FASTER_FROM, torch.float32, 8)
    plain, x = torch.randn(6, 4), torch.randn(3, 4)
    weight = PackedWeight(plain, torch.float32)
    assert isinstance(weight, nn.Parameter) and weight.shape == (6, 4) and weight.dtype == torch.float32
    assert torch.equal(weight + 1, plain + 1) and torch.equal(torch.stack([weight, weight])[1], plain)
    assert torch.equal(weight[:, 1], plain[:, 1]) and torch.equal(weight[torch.tensor([2, 0])], plain[[2, 0]])
    parts = [weight[1:3], weight[-2:], *weight.split(4)]
    assert type(weight[1:2]) is Tensor, "too few numbers"
    assert all(isinstance(part, PackedWeight) for part in parts) and weight[1:3] is weight[1:3] and weight[:] is weight
    for part, rows in zip(parts, (plain[1:3], plain[-2:], *plain.split(4)), strict=True):
        assert torch.allclose(F.linear(x, part), x @ rows.t(), atol=1e-6)
    with torch.autocast("cpu", BF16):  # of another type than the weight
        assert torch.equal(F.linear(x, weight), F.linear(x, plain))
    bias = torch.zeros(6, requires_grad=True)
    F.linear(x, weight, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full((6,), 3.0)), "gradients come from the plain weight"
    assert weight[2:2].shape == (0, 4) and F.linear(torch.zeros(0, 4), weight).shape == (0, 6)


def test_parameters_of_other_kinds_stay(monkeypatch: Any) -> None:
    """Such as those that are sharded over processes."""

    class Sharded(Tensor):
        pass

    monkeypatch.setitem(packed.FASTER_FROM, torch.float32, 1)
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    layers[0].weight = nn.Parameter(layers[0].weight.data.as_subclass(Sharded))
    with held(layers, torch.float32):
        assert [type(layer.weight) for layer in layers] == [Sharded, PackedWeight]
    assert [type(layer.weight) for layer in layers] == [Sharded, nn.Parameter]


def test_the_very_weights_come_back_after_an_error() -> None:
    net = tiny_net("uvit", tokens=tiny_tokens())
    before = {name: (p.data_ptr(), p.clone()) for name, p in net.named_parameters()}
    with pytest.raises(KeyError), torch.inference_mode(), held(net, BF16):
        linear = {id(p) for m in net.modules() if isinstance(m, nn.Linear) for p in m.parameters()}
        assert linear and all((p.dtype == BF16) == (id(p) in linear) for p in net.parameters())
        with held(net, BF16):  # a block within another one changes nothing
            pass
        assert net.trunk.mid_block.mlp.fc1.weight.dtype == BF16
        raise KeyError
    for name, p in net.named_parameters():
        assert p.data_ptr() == before[name][0] and torch.equal(p, before[name][1]) and not p.is_inference()


def test_a_run_in_bf16_leaves_the_pipeline_as_it_was() -> None:
    pipe, settings = load("fmnist-mar"), dict[str, Any](seed=3, steps=2, output_type="tokens", progress=False)
    exact = pipe([1, 2], **settings).tokens
    rough = pipe([1, 2], dtype="bf16", **settings).tokens
    assert not torch.equal(rough, exact) and torch.equal(pipe([1, 2], **settings).tokens, exact)


@pytest.mark.parametrize("piece", [attention.PIECE, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_explicit_attention_is_attention(masked: bool, piece: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(attention, "PIECE", piece)  # 100: one image at a time
    rng = torch.Generator().manual_seed(0)

    def rows(n: int) -> Tensor:
        return torch.randn(3, n, 2, 8, generator=rng).transpose(1, 2)

    q, k, v = rows(5), rows(9), rows(9)
    readable = torch.rand(3, 9, generator=rng) < 0.6 if masked else None
    mask = None if readable is None else readable[:, None, None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.allclose(attention.explicit(q, k, v, readable), expected, atol=1e-6)
    rough = attention.attend(*(x.to(BF16) for x in (q, k, v)), readable=readable)
    assert (rough - expected).abs().max() < 0.03
