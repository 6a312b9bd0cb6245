"""Tokenizers and quantizers."""

import pytest
import torch

from mgen.tokenizers import FSQ, VectorQuantizer
from mgen.tokenizers.quantizers import codebook_usage
from mgen.utils.errors import MgenError
from tests.helpers import tiny_tokenizer


@pytest.mark.parametrize("levels", [(8, 8, 8), (5, 3), (7, 5, 5, 5), (3,)])
def test_fsq_ids_and_values_are_one_to_one(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels=levels)
    ids = torch.arange(fsq.vocab_size).view(1, 1, -1)
    values = fsq.lookup(ids)
    assert values.abs().max() <= 1
    assert len(values.flatten(2)[0].T.unique(dim=0)) == fsq.vocab_size
    # A latent that sits on a level quantizes to it.
    z = torch.randn(2, len(levels), 16, 16) * 3
    out = fsq(z)
    assert torch.equal(out.ids, fsq.ids(z))
    assert torch.allclose(fsq.lookup(out.ids), out.values, atol=1e-6)


def test_fsq_reaches_every_level() -> None:
    fsq = FSQ(levels=(8,))
    ids = fsq.ids(torch.linspace(-6, 6, 4001).view(1, 1, 1, -1))
    assert sorted(ids.unique().tolist()) == list(range(8))


@pytest.mark.parametrize("make", [lambda: FSQ(levels=(4, 4)), lambda: VectorQuantizer(vocab_size=16, dim=2)])
def test_gradient_passes_straight_through(make) -> None:
    z = torch.randn(1, 2, 4, 4, requires_grad=True)
    make()(z).values.sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0


def test_vector_quantizer_takes_the_nearest_row() -> None:
    q = VectorQuantizer(vocab_size=16, dim=3)
    torch.nn.init.normal_(q.embedding.weight)
    z = torch.randn(2, 3, 5, 5)
    brute = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 3), q.embedding.weight).argmin(1)
    assert torch.equal(q.ids(z).flatten(), brute)
    assert torch.equal(q(q.lookup(q.ids(z))).ids, q.ids(z))


def test_quantization_is_in_fp32_under_autocast() -> None:
    tokenizer = tiny_tokenizer()
    h = tokenizer.latents(torch.rand(2, 1, 32, 32) * 2 - 1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = tokenizer.quantize.ids(h)
    assert torch.equal(inside, tokenizer.quantize.ids(h))


def test_training_on_images_sees_the_ids_of_fp32() -> None:
    from mgen.training.noise import AugmentationNoise
    from mgen.training.token_source import TokenSource

    tokenizer = tiny_tokenizer()
    source = TokenSource(tokenizer)
    images = torch.rand(16, 1, 32, 32) * 2 - 1
    expected = tokenizer.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(tokenizer.encode(images), expected)  # what rounding would do
        assert torch.equal(source.tokens({"image": images}, AugmentationNoise()), expected)


def test_encode_and_decode_shapes() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(torch.rand(2, 1, 32, 32) * 2 - 1)
    assert ids.shape == (2, tokenizer.spec.length) and ids.max() < tokenizer.spec.vocab_size
    assert tokenizer.decode(ids).shape == (2, 1, 32, 32)
    wide = tokenizer.encode(torch.rand(1, 1, 16, 32))
    assert tokenizer.decode(wide, grid=(4, 8)).shape == (1, 1, 16, 32)
    with pytest.raises(MgenError, match="multiple of 4"):
        tokenizer.encode(torch.rand(1, 1, 30, 32))


def test_usage_and_perplexity() -> None:
    even = codebook_usage(torch.arange(8).repeat(3), 8)
    assert even["usage"] == 1 and abs(even["perplexity"].item() - 8) < 1e-4
    one = codebook_usage(torch.zeros(5, dtype=torch.int64), 8)
    assert one["usage"] == 1 / 8 and abs(one["perplexity"].item() - 1) < 1e-6


def test_fsq_needs_three_levels() -> None:
    with pytest.raises(MgenError, match="at least 3"):
        FSQ(levels=(8, 2))
