"""The KL autoencoder of MAR in its official keys: moments, posterior, decoding, and the full-size network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mgen.convert import convert
from mgen.convert.readers import kl
from mgen.convert.reading import ATTENTION
from mgen.pipelines.pixels import to_uint8
from mgen.tokenizers import KLTokenizer
from mgen.utils.errors import MgenError
from tests.golden import harness
from tests.golden.harness import Case

# Ten times the stated fp32–fp64 difference of the reference (2.4e-6 encoding, 1.7e-6 decoding).
MOMENTS, IMAGE = 2.4e-5, 1.7e-5


def model(case: Case) -> KLTokenizer:
    c = case.config
    return convert(
        "kl16",
        case.folder / "weights.safetensors",
        image_size=c["resolution"],
        norm_groups=c.get("norm_groups", 32),
        scale=c["scale_factor"],
    ).model


@torch.inference_mode()
def encode(case: Case) -> None:
    net, x, noise = model(case), case.inputs["x"], case.inputs["sample_noise"]
    moments = net.moments(x)
    posterior = net.posterior(moments)
    sample = posterior.mean + posterior.std * noise
    case.check("encoder_h", net.vae.encoder(x), atol=case.near("encoder_h", MOMENTS))
    case.check("moments", moments, atol=case.near("moments", MOMENTS))
    case.check("moments_flip", net.moments(x.flip(-1)), atol=case.near("moments_flip", MOMENTS))
    for name in ("mean", "logvar", "std"):
        case.check(name, getattr(posterior, name), atol=case.near(name, MOMENTS))
    case.check("mode", posterior.mode(), atol=case.near("mode", MOMENTS))
    case.check("kl", posterior.kl(), atol=case.near("kl", 1.1e-4))
    case.check("sample", sample, atol=case.near("sample", MOMENTS))
    scaled = net.encode(x, noise=noise)  # tokens, row by row
    shape = case.outputs["latents_scaled"].shape
    case.check("latents_scaled", scaled.transpose(1, 2).reshape(shape), atol=case.near("latents_scaled", 4e-6))


@torch.inference_mode()
def decode(case: Case) -> None:
    net, z = model(case), case.inputs["z"]
    case.check("after_post_quant", net.vae.post_quant_conv(z), atol=case.near("after_post_quant", 7.2e-6))
    case.check("image", net.decode_latents(z), atol=case.near("image", IMAGE))


@torch.inference_mode()
def decode_scaled(case: Case) -> None:
    net, latents = model(case), case.inputs["latents"]
    image = net.decode(latents.flatten(2).transpose(1, 2), tuple(latents.shape[2:]))
    case.check("image", image, atol=case.near("image", IMAGE))
    expected = case.outputs["image_uint8"].int()
    grey = (to_uint8(image).int() - expected).abs()
    case.compared["image_uint8"] = (float(grey.max()), 1.0)  # a value next to a half may round either way
    # The set's README: a difference between floats may flip single values by 1; of a small picture two are more than a thousandth.
    assert grey.max() <= 1 and (grey > 0).sum() <= max(2, grey.numel() // 1000)


def posterior(case: Case) -> None:
    net = KLTokenizer(channels=(32,), layers=1, encoder_attention=())
    q = net.posterior(case.inputs["moments"])
    other = net.posterior(case.inputs["other_moments"])
    got = {name: getattr(q, name) for name in ("mean", "logvar", "std", "var")}
    got |= {"sample": q.mean + q.std * case.inputs["sample_noise"], "kl": q.kl(), "kl_to_other": q.kl(other)}
    got["nll"] = q.nll(case.inputs["nll_at"])
    for name, value in got.items():
        case.check(name, value, atol=1e-6, rtol=1e-5)  # values reach 1e14, so the set asks for relative errors


@harness.parametrize("kl16")
def test_kl16_gives_the_official_numbers(case: Case) -> None:
    families = {"encode.*": encode, "decode_scaled.*": decode_scaled, "decode.*": decode, "posterior.*": posterior}
    harness.run(case, families)


def recipe_weights(key: str, shape: list[int], salt: int) -> torch.Tensor:
    """Weights of the full-size check, made from the key's name as the set's README says."""
    w = harness.recipe_draw(key, shape, salt)
    if len(shape) == 1:
        return 1 + 0.1 * w if "norm" in key and key.endswith("weight") else 0.05 * w
    return w / float(np.prod(shape[1:])) ** 0.5


@pytest.mark.slow
@torch.inference_mode()
def test_kl16_full_size(tmp_path: Path) -> None:
    folder = harness.root() / "kl16"
    salt = json.loads((folder / "config.json").read_text()).get("full_size_recipe_salt", 0)
    keys = json.loads((folder / "official_keys.json").read_text())
    torch.save({"model": {k: recipe_weights(k, s, salt) for k, s in keys.items()}}, tmp_path / "kl16.ckpt")
    net = convert("kl16", tmp_path / "kl16.ckpt").model
    assert sum(p.numel() for p in net.parameters()) == 66_456_019
    cases = load_file(folder / "full_size.safetensors")
    moments = net.moments(cases["encode/in/x"])
    assert (moments - cases["encode/out/moments"]).abs().max() < 3e-5
    latents = cases["decode/in/latents_scaled"]
    image = net.decode(latents.flatten(2).transpose(1, 2), tuple(latents.shape[2:]))
    assert (image - cases["decode/out/image"]).abs().max() < 3e-5


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    """The official loader is not strict and loads anything silently."""
    state = load_file(harness.root() / "kl16" / "weights.safetensors")
    first = next(k for k in state if k.endswith("conv1.weight"))
    save_file({k: v for k, v in state.items() if k != first}, tmp_path / "short.safetensors")
    with pytest.raises(MgenError, match="missing"):
        convert("kl16", tmp_path / "short.safetensors")
    save_file({**state, "extra.weight": torch.zeros(1)}, tmp_path / "long.safetensors")
    with pytest.raises(MgenError, match="not expected"):
        convert("kl16", tmp_path / "long.safetensors")


def test_scale_is_given_to_kl16_alone(tmp_path: Path) -> None:
    """Another network with the same keys has another scale; 0.2325 would burn its pictures."""
    state = load_file(harness.root() / "kl16" / "weights.safetensors")
    save_file({**state, "loss.logvar": torch.zeros(())}, tmp_path / "trained.safetensors")
    made = convert("kl16", tmp_path / "trained.safetensors", image_size=64)
    assert made.config["scale"] is None and "no scale" in made.report() and "ignored loss.logvar" in made.report()
    full = json.loads((harness.root() / "kl16" / "official_keys.json").read_text())
    assert kl.config({k: torch.empty(shape, device="meta") for k, shape in full.items()})["scale"] == 0.2325


@torch.inference_mode()
def test_other_widths_of_the_layout_are_read() -> None:
    """ch_mult that does not start at 1, and a latent narrower than the channels around it."""
    made = KLTokenizer(
        image_size=32,
        in_channels=1,
        latent_channels=3,
        z_channels=5,
        stem=8,
        channels=(16, 24),
        layers=1,
        norm_groups=8,
        encoder_attention=(1,),
        decoder_attention=(0,),
        scale=1.0,
    ).eval()
    rename = {v: k for k, v in kl.rename(official_names(made)).names.items()}
    state = {rename[k]: v for k, v in made.state_dict().items()}
    config = kl.config(state)
    assert (config["stem"], config["z_channels"], config["latent_channels"]) == (8, 5, 3)
    again = KLTokenizer(**{**config, "image_size": 32, "norm_groups": 8, "scale": 1.0}).eval()
    again.load_state_dict(kl.rename(state).state)
    images = torch.rand(1, 1, 32, 32)
    assert torch.equal(again.decode(again.encode(images)), made.decode(made.encode(images)))


def official_names(net: KLTokenizer) -> dict[str, torch.Tensor]:
    """The state of a network under LDM's names: the inverse of the converter, written on its own."""
    levels = len(net.config.channels)
    out = {}
    for name, value in net.state_dict().items():
        new = name.removeprefix("vae.")
        for side, blocks in (("encoder", "down"), ("decoder", "up")):
            for i in range(levels):
                place = i if blocks == "down" else levels - 1 - i
                new = new.replace(f"{side}.{blocks}_blocks.{i}.", f"{side}.{blocks}.@{place}.")
        new = new.replace("@", "").replace(".mid_block.resnets.0.", ".mid.block_1.")
        new = new.replace(".mid_block.resnets.1.", ".mid.block_2.").replace(".mid_block.attentions.0.", ".mid.attn_1.")
        new = new.replace(".resnets.", ".block.").replace(".attentions.", ".attn.").replace("samplers.0.", "sample.")
        new = new.replace(".conv_shortcut.", ".nin_shortcut.").replace(".conv_norm_out.", ".norm_out.")
        for theirs, ours in ATTENTION.items():
            new = new.replace(f".{ours}.", f".{theirs}.")
        out[new] = value
    return out
