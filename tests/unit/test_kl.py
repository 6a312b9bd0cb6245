"""KL tokenizers: tokens, scale, training, diffusers' own folders, caches of moments."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from mgen.cli import main
from mgen.convert import convert
from mgen.data import FashionMNIST, TokenCache, write_cache
from mgen.tokenizers import KLTokenizer, estimate_scale
from mgen.tokenizers.kl import patchify, unpatchify
from mgen.training.config import train_config
from mgen.training.loop import train
from mgen.utils.errors import MgenError
from tests.helpers import KL, tiny_kl, write_idx


def test_patches_and_back() -> None:
    z = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    for patch in (1, 2):
        tokens = patchify(z, patch)
        assert tokens.shape == (2, 24 // patch**2, 3 * patch**2)
        assert torch.equal(unpatchify(tokens, patch, (4 // patch, 6 // patch)), z)
    # channel-major, then row, then column of the patch
    assert patchify(z, 2)[0, 1].tolist() == [z[0, c, y, x].item() for c in range(3) for y in (0, 1) for x in (2, 3)]


def test_scaled_tokens_have_unit_variance() -> None:
    net = tiny_kl(scale=None)
    images = torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pytest.raises(MgenError, match="estimate_scale"):
        net.encode(images)
    net.register_to_config(scale=estimate_scale(net, images.split(16)))
    noise = torch.randn(64, *net.noise_shape(), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert net.encode(images, noise=noise).std().item() == pytest.approx(1.0, abs=0.02)
    with pytest.raises(MgenError, match="no images|0 latent"):
        estimate_scale(net, [])


def test_shift_is_taken_off_and_put_back() -> None:
    plain, shifted = tiny_kl(scale=2.0), tiny_kl(scale=2.0, shift=0.5)
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.inference_mode():
        a, b = plain.encode(images), shifted.encode(images)
        assert torch.allclose(a - 1.0, b, atol=1e-6)
        assert torch.allclose(plain.decode(a), shifted.decode(b), atol=1e-5)


def test_odd_sizes_and_bad_scales_raise_errors() -> None:
    net = tiny_kl(patch=2)
    with pytest.raises(MgenError, match="multiple of 8"):
        net.encode(torch.zeros(1, 1, 20, 32))
    with pytest.raises(MgenError, match="multiple of 8"):
        tiny_kl(patch=2, image_size=20)
    with pytest.raises(MgenError, match="scale"):
        tiny_kl(scale=0.0)


def test_a_folder_of_diffusers_becomes_a_tokenizer(tmp_path: Path) -> None:
    """Stable Diffusion's layout: f8 in full, here smaller, with a 2×2 patch; and back, as diffusers reads it."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.18215,
    ).eval()
    vae.save_pretrained(tmp_path / "sd")
    net = convert("diffusers-vae", tmp_path / "sd", image_size=32, patch=2).model
    assert isinstance(net, KLTokenizer)
    assert (net.spec.length, net.spec.channels, net.spec.scale) == (64, 16, 0.18215)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        mean = vae.encode(images).latent_dist.mean
        tokens = net.encode(images)
        assert torch.allclose(unpatchify(tokens, 2, (8, 8)) / 0.18215, mean, atol=1e-6)
        assert torch.allclose(net.decode(tokens), vae.decode(mean).sample, atol=1e-5)
        net.vae.save_pretrained(tmp_path / "exported")
        again = AutoencoderKL.from_pretrained(tmp_path / "exported", local_files_only=True)
        assert torch.equal(again.encode(images).latent_dist.mean, mean)
    config = json.loads((tmp_path / "sd" / "config.json").read_text())
    (tmp_path / "sd" / "config.json").write_text(json.dumps({**config, "act_fn": "relu"}))
    with pytest.raises(MgenError, match="act_fn"):
        convert("diffusers-vae", tmp_path / "sd")
    (tmp_path / "sd" / "config.json").unlink()
    with pytest.raises(MgenError, match="config.json"):
        convert("diffusers-vae", tmp_path / "sd")


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_cache_holds_moments_and_the_posterior_is_sampled_from_them(tmp_path: Path, dtype: str) -> None:
    data, net = FashionMNIST(root=write_idx(tmp_path / "idx")), tiny_kl()
    write_cache(data, net, tmp_path / "c", flips=True, shard_size=40, batch_size=16, dtype=dtype, progress=False)
    cache = TokenCache(tmp_path / "c", fingerprint=net.fingerprint())
    stored = cache.__getitems__([95, 3, 50])["moments"]
    images = data.__getitems__([95, 3, 50])["image"]
    atol = 1e-6 if dtype == "fp32" else 3e-3
    assert stored.dtype == (torch.float32 if dtype == "fp32" else torch.float16)  # as stored, until they are used
    with torch.inference_mode():
        assert torch.allclose(stored[:, 0].float(), net.moments(images), atol=atol)
        assert torch.allclose(stored[:, 1].float(), net.moments(images.flip(-1)), atol=atol)
        noise = torch.randn(3, *net.noise_shape())
        assert torch.allclose(net.tokens(stored[:, 0], noise), net.encode(images, noise=noise), atol=4 * atol)
    other_scale = tiny_kl(scale=0.5)  # the cache holds moments, which know no scale
    assert other_scale.fingerprint() == net.fingerprint()
    with pytest.raises(MgenError, match="another tokenizer"):
        TokenCache(tmp_path / "c", fingerprint=tiny_kl(seed=5).fingerprint())


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_a_kl_tokenizer_trains_and_measures_its_scale(tmp_path: Path, adversarial: float) -> None:
    idx = write_idx(tmp_path / "idx")
    config = {
        "task": "tokenizer",
        "output": str(tmp_path / "run"),
        "steps": 30,
        "batch_size": 16,
        "model": {"class": "KLTokenizer", **KL, "scale": None},
        "data": {"kind": "fmnist", "path": str(idx)},
        "objective": {"l2": 4.0, "kl": 1e-3, "adversarial": adversarial, "discriminator_channels": 8},
        "optim": {"lr": 3e-3, "clip": 1.0},
        "ema": None,
        "log": {"every": 1, "checkpoint_every": 10, "tensorboard": False},
    }
    train(train_config(config))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    pixels = [line["l2"] for line in lines if "l2" in line]
    assert pixels[-1] < 0.6 * pixels[0] and "kl" in lines[0] and "posterior_std" in lines[0]
    assert ("discriminator" in lines[0]) == (adversarial > 0)
    net = KLTokenizer.from_pretrained(tmp_path / "run" / "model")
    data = FashionMNIST(root=idx)
    expected = estimate_scale(net, [data.__getitems__(range(96))["image"]])
    assert net.config.scale == pytest.approx(expected, rel=1e-5)


def test_scale_of_other_data_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    idx = write_idx(tmp_path / "idx")
    tiny_kl().save_pretrained(tmp_path / "kl")
    arguments = ["cache", "--data", "fmnist", "--data-path", str(idx), "--tokenizer", str(tmp_path / "kl")]
    assert main([*arguments, "--measure-scale", "500"]) == 0
    expected = estimate_scale(tiny_kl(), [FashionMNIST(root=idx).__getitems__(range(96))["image"]])
    assert float(capsys.readouterr().out) == pytest.approx(expected, rel=1e-4)
    assert main(arguments) == 2 and "--out is missing" in capsys.readouterr().err
