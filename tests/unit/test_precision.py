"""Computing in bf16: weights held in bf16 change nothing but the time, and are put back as they were."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.nn import attention
from mgen.nn.precision import computing, held
from mgen.pipelines.pipeline import load
from tests.helpers import TRUNKS, tiny_net, tiny_tokens
from tests.unit.test_dtypes import HEADS, draw

CPU, BF16 = torch.device("cpu"), torch.bfloat16


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
