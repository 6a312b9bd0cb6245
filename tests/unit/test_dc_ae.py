"""DC-AE: diffusers' folders, tokens, caches of latents without a variance."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC

from mgen.convert import convert
from mgen.data import FashionMNIST, TokenCache, write_cache
from mgen.tokenizers import DCAE, estimate_scale
from mgen.training.noise import AugmentationNoise
from mgen.training.token_source import TokenSource
from mgen.utils.errors import MgenError
from tests.helpers import write_idx


def saved(folder: Path, channels: int = 1) -> AutoencoderDC:
    torch.manual_seed(0)
    network = AutoencoderDC(
        in_channels=channels,
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(0, 1, 1),
        decoder_layers_per_block=(0, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        decoder_norm_types=("batch_norm", "batch_norm", "rms_norm"),
        decoder_act_fns=("relu", "relu", "silu"),
        scaling_factor=0.3189,
    ).eval()
    network.save_pretrained(folder)
    return network


def test_a_folder_of_diffusers_becomes_a_tokenizer(tmp_path: Path) -> None:
    network = saved(tmp_path / "dc")
    net = convert("diffusers-dc-ae", tmp_path / "dc", image_size=32).model
    assert isinstance(net, DCAE) and net.factor == 4
    assert (net.spec.length, net.spec.channels, net.spec.scale) == (64, 4, 0.3189) and net.noise_shape() is None
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.inference_mode():
        z = network.encode(images).latent
        tokens = net.encode(images)
        assert torch.allclose(tokens, z.flatten(2).transpose(1, 2) * 0.3189, atol=1e-6)
        assert torch.allclose(net.decode(tokens), network.decode(z).sample, atol=1e-5)
    net.save_pretrained(tmp_path / "ours")
    again = DCAE.from_pretrained(tmp_path / "ours")
    assert again.fingerprint() == net.fingerprint()


def test_caches_hold_latents_alone(tmp_path: Path) -> None:
    saved(tmp_path / "dc")
    net = convert("diffusers-dc-ae", tmp_path / "dc", image_size=32).model
    data = FashionMNIST(root=write_idx(tmp_path / "idx", count=6))
    cache = TokenCache(write_cache(data, net, tmp_path / "cache", flips=True, progress=False))
    batch = cache.__getitems__([0, 3])
    assert batch["moments"].shape == (2, 2, 4, 8, 8)
    source = TokenSource(net)
    assert source.posterior_shape is None
    with torch.inference_mode():
        found = source.tokens(batch, AugmentationNoise(flip=torch.tensor([False, True])))
        images = data.__getitems__([0, 3])["image"]
        wanted = net.encode(torch.stack([images[0], images[1].flip(-1)]))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_latents_are_measured_with_all_their_channels(tmp_path: Path) -> None:
    saved(tmp_path / "dc")
    net = convert("diffusers-dc-ae", tmp_path / "dc", image_size=32).model
    images = torch.rand(4, 1, 32, 32) * 2 - 1
    with torch.inference_mode():
        latents = net.moments(images)
        posterior = net.posterior(latents)
    assert torch.equal(posterior.mean, latents) and not posterior.std.any()
    assert estimate_scale(net, [images]) == pytest.approx(1 / latents.double().std(correction=0).item(), rel=1e-6)


def test_what_is_no_such_folder(tmp_path: Path) -> None:
    saved(tmp_path / "dc")
    file = tmp_path / "dc" / "config.json"
    data = json.loads(file.read_text())
    for changed, words in (
        ({"_class_name": "AutoencoderKL"}, "not of an AutoencoderDC"),
        ({"decoder_act_fns": ["relu"]}, "decoder_"),
    ):
        file.write_text(json.dumps({**data, **changed}))
        with pytest.raises(MgenError, match=words):
            convert("diffusers-dc-ae", tmp_path / "dc", image_size=32)
    file.write_text(json.dumps({key: value for key, value in data.items() if key != "scaling_factor"}))
    with pytest.raises(MgenError, match="lacks scaling_factor"):
        convert("diffusers-dc-ae", tmp_path / "dc")


@pytest.mark.parametrize("images, words", [
    (torch.zeros(1, 1, 30, 32), "multiple of 4"),
    (torch.full((1, 1, 32, 32), 200.0), "0 … 255"),
])  # fmt: skip
def test_images_are_checked(tmp_path: Path, images: torch.Tensor, words: str) -> None:
    saved(tmp_path / "dc")
    with pytest.raises(MgenError, match=words):
        convert("diffusers-dc-ae", tmp_path / "dc", image_size=32).model.encode(images)
