"""Weights in bf16 and fp16: every generator samples and every tokenizer encodes and decodes, close to what they do in fp32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mgen
from mgen.heads.flow import FlowMatching
from mgen.pipelines.pipeline import MaskedPipeline, load
from mgen.samplers import ParallelSampler
from mgen.tokenizers import LlamaGenVQ, QuantizedKL, TiTok, TiTokKL, Tokenizer
from mgen.tokenizers.base import TOKENIZERS
from mgen.utils.errors import MgenError
from tests.helpers import (
    TITOK,
    TRUNKS,
    tiny_architecture,
    tiny_continuous,
    tiny_dc_ae,
    tiny_himar,
    tiny_hita,
    tiny_kl,
    tiny_ldetok,
    tiny_net,
    tiny_pipeline,
    tiny_tokenizer,
    tiny_tokens,
)

HALF = [torch.bfloat16, torch.float16]
HEADS: dict[str, dict[str, Any]] = {
    "categorical": {"tokens": tiny_tokens()},
    "windows": {"tokens": tiny_tokens(), "windows": {"side": 2}},
    "diffusion": {"tokens": tiny_tokens("vector")},
    "windows of vectors": {"tokens": tiny_tokens("vector"), "windows": {"side": 2}},
    "channels": {"tokens": tiny_tokens("multi-index")},
    "diffusion-transformer": {
        "tokens": tiny_tokens("vector"),
        "head": {"type": "diffusion-transformer", "width": 32, "depth": 2, "heads": 2},
    },
}


def short(head: Any) -> dict[str, Any]:
    """Settings of a short chain whose states stay in fp16's range: a new head magnifies errors."""
    return {"steps": 4} if isinstance(head, FlowMatching) else {"steps": 4, "clip": 4.0}


def draw(net: Any, **settings: Any) -> Tensor:
    """Tokens of two images, by a short chain where there is one."""
    own = {} if net.capabilities.log_prob else {"head": short(net.head)}
    steps = {} if net.capabilities.one_by_one else {"steps": 4}
    sampler = ParallelSampler.suited(net, {"guidance": 2.0, **steps, **own, **settings})
    *_, last = sampler(net, torch.tensor([0, 1]), noise=sampler.make_noise(net, [1, 2]))
    return last.tokens


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_trunk_and_head(trunk: str, head: str, dtype: torch.dtype) -> None:
    net = tiny_net(trunk, **HEADS[head]).to(dtype)
    if net.capabilities.one_by_one and net.capabilities.joint:
        pytest.skip("one token after the other is not drawn together")
    tokens = draw(net)
    assert tokens.dtype == net.tokens.dtype and torch.isfinite(tokens.float()).all()
    if net.capabilities.cached_steps:
        assert torch.isfinite(draw(net, reuse={"cached": 1}).float()).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", ["vector", "index"])
def test_two_stages(kind: str, dtype: torch.dtype) -> None:
    net = tiny_himar(kind=kind).to(dtype)
    first = {} if kind == "index" else {"first_stage": {"steps": 3, "head": {"clip": 4.0, "steps": 4}}}
    assert torch.isfinite(draw(net, **first).float()).all()


def images_of(net: Any) -> Tensor:
    """Tokens of two images by an architecture's own kind of sampler."""
    guidance = {} if net.null_class is None else {"guidance": 2.0}
    chain = {"head": short(net.head)} if net.head.noise_spec({}).normal else {}
    stage = {"first_stage": {"steps": 2, **chain}} if net.capabilities.two_stages else {}
    steps = {} if net.capabilities.one_by_one else {"steps": 4}
    sampler = ParallelSampler.suited(net, {**steps, **guidance, **chain, **stage})
    with torch.inference_mode():
        *_, last = sampler(net, torch.tensor([0, net.num_classes - 1]), noise=sampler.make_noise(net, [1, 2]))
    return last.tokens


@pytest.mark.parametrize("name", mgen.list_models())
def test_every_architecture(name: str) -> None:
    net = tiny_architecture(name)
    exact = images_of(net)
    for dtype, least in ((torch.float16, 0.9), (torch.bfloat16, 0.75)):
        tokens = images_of(tiny_architecture(name).to(dtype))
        assert tokens.dtype == exact.dtype and torch.isfinite(tokens.float()).all()
        if exact.is_floating_point():
            assert (tokens - exact).abs().mean() < 0.02 * exact.abs().mean()
        elif exact.ndim == 2 and not net.capabilities.one_by_one:  # others go on from a token that came out otherwise
            assert (tokens == exact).float().mean() >= least


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["fmnist-maskgit", "fmnist-mar"])
def test_embedded_pipelines_make_nearly_the_same_images(name: str, dtype: torch.dtype) -> None:
    settings: dict[str, Any] = dict(seed=1, num_inference_steps=4, output_type="pt", progress=False)
    exact = load(name)([3, 8], **settings).images
    rough = load(name).to("cpu", dtype)([3, 8], **settings).images
    # An id that comes out otherwise changes the steps that follow; vectors move a little.
    assert (exact - rough).abs().mean() < {"fmnist-maskgit": 0.1, "fmnist-mar": 0.01}[name]


def tokenizers() -> dict[str, Tokenizer]:
    """A small one of every class."""
    torch.manual_seed(0)
    own = {
        "VQGAN": tiny_tokenizer(),
        "DCAE": tiny_dc_ae(),
        "KLTokenizer": tiny_kl(),
        "QuantizedKL": QuantizedKL.wrap(tiny_kl(scale=4.0), levels=16, form="clean", low=-2.0, high=3.0),
        "HitaTokenizer": tiny_hita(),
        "LDeTok": tiny_ldetok(),
        "LlamaGenVQ": LlamaGenVQ(image_size=32, in_channels=1, channels=(8, 8), layers=1, norm_groups=4, vocab_size=16),
        "TiTok": TiTok(**TITOK, vocab_size=16, unit_codes=True),
        "TiTokKL": TiTokKL(**TITOK, scale=1.0),
    }
    assert own.keys() == TOKENIZERS.keys()
    return {name: tokenizer.eval() for name, tokenizer in own.items()}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_tokenizer(name: str, dtype: torch.dtype) -> None:
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    exact, rounded = tokenizers()[name], tokenizers()[name].to(dtype)
    with torch.no_grad():
        tokens = exact.encode(images)
        assert rounded.encode(images).shape == tokens.shape
        a, b = exact.decode(tokens), rounded.decode(tokens)
        fused = rounded.fuse().decode(tokens)
    scale = a.abs().max()
    assert (a - b.float()).abs().max() < 0.1 * scale and (fused - b).abs().max() < 0.1 * scale


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("make", [tiny_pipeline, tiny_continuous])
def test_whole_pipelines(make: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    moved = make().to(dtype)
    loaded = mgen.MaskedPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    for pipe in (moved, loaded, load(tmp_path, dtype=dtype)):
        assert {p.dtype for p in (*pipe.transformer.parameters(), *pipe.tokenizer.parameters())} == {dtype}
        images = pipe([0, 1], output_type="pt", progress=False).images
        assert images.dtype == torch.float32 and torch.isfinite(images).all()
    given = pipe.tokenizer.encode(torch.zeros(1, 1, 32, 32))
    known = torch.ones(1, given.shape[1], dtype=torch.bool)
    known[:, :7] = False
    pipe([0], tokens=given, known=known, progress=False)


@pytest.mark.parametrize("dtype", ["fp64", torch.float64, torch.int8, 5, ["fp16"]])
def test_other_dtypes_are_refused(dtype: Any, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    for function in (load, MaskedPipeline.from_pretrained):
        with pytest.raises(MgenError, match="dtype.*float16"):
            function(tmp_path, dtype=dtype)
