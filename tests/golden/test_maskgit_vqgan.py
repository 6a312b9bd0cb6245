"""The VQGAN in both official forms. Official images lie in [0, 1], ours in [-1, 1]."""

from pathlib import Path

import torch

from mgen.convert import convert
from mgen.tokenizers import VQGAN
from tests.golden import harness
from tests.golden.harness import Case

# Sets state fp32–fp64 differences up to 8.4e-6 (torch) and 1e-5 (flax); their READMEs ask for 5e-5 and 2e-4.
TORCH, FLAX = 5e-5, 2e-4


def model(case: Case) -> VQGAN:
    return convert("maskgit-vqgan", case.folder / "weights.safetensors").model


@torch.inference_mode()
def encode(case: Case) -> None:
    tokenizer = model(case)
    image = case.inputs["image"] * 2 - 1
    h = tokenizer.latents(image)
    ids = tokenizer.encode(image)
    case.check("h", h, atol=TORCH)
    case.check("ids", ids.view(case.outputs["ids"].shape))
    quantized = tokenizer.quantize(h)
    case.check("z_q", quantized.values, atol=5e-6)
    # The official loss has its weight on the codebook term ("legacy" order).
    case.check("emb_loss", quantized.losses["commitment"] + 0.25 * quantized.losses["codebook"], atol=1e-5)


@torch.inference_mode()
def decode_code(case: Case) -> None:
    ids = case.inputs["ids"]
    image = model(case).decode(ids.flatten(1), grid=tuple(ids.shape[1:]))
    case.check("image", (image + 1) / 2, atol=TORCH)


@torch.inference_mode()
def decode_latent(case: Case) -> None:
    case.check("image", (model(case).decode_latents(case.inputs["z"]) + 1) / 2, atol=TORCH)


@torch.inference_mode()
def roundtrip(case: Case) -> None:
    image = (model(case)(case.inputs["image"] * 2 - 1)[0] + 1) / 2
    case.check("image", image, atol=TORCH)
    case.check("image_clamped", image.clamp(0, 1), atol=TORCH)


@torch.inference_mode()
def flax_encode(case: Case) -> None:
    tokenizer = model(case)
    image = case.inputs["image"].permute(0, 3, 1, 2) * 2 - 1
    case.check("h", tokenizer.latents(image).permute(0, 2, 3, 1), atol=FLAX)
    case.check("ids", tokenizer.encode(image).view(case.outputs["ids"].shape))


@torch.inference_mode()
def flax_decode(case: Case) -> None:
    ids = case.inputs["ids"]
    image = (model(case).decode(ids.long().flatten(1), grid=tuple(ids.shape[1:])) + 1) / 2
    case.check("image", image.permute(0, 2, 3, 1), atol=FLAX)


@harness.parametrize("maskgit_vqgan")
def test_torch_vqgan_gives_the_official_numbers(case: Case) -> None:
    harness.run(
        case,
        {"encode.*": encode, "decode_code.*": decode_code, "decode_latent.*": decode_latent, "roundtrip.*": roundtrip},
    )


@harness.parametrize("maskgit_jax_vqgan")
def test_flax_vqgan_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, {"encode.*": flax_encode, "decode.*": flax_decode})


def test_fused_decoder_gives_the_same_image() -> None:
    case = next(c for c in harness.read_cases("maskgit_vqgan") if c.name.startswith("decode_latent"))
    tokenizer = model(case)
    with torch.inference_mode():
        plain = tokenizer.decode_latents(case.inputs["z"])
        fused = tokenizer.fuse().decode_latents(case.inputs["z"])
    assert not any(name.endswith("nin_shortcut.weight") for name in tokenizer.state_dict())
    assert (plain - fused).abs().max() < 2e-5


def test_open_muse_keys_load_as_the_same_network(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = harness.root() / "maskgit_vqgan" / "weights.safetensors"
    renamed = {}
    for name, value in load_file(weights).items():
        name = name.replace(".mid.block_1.", ".mid.0.").replace(".mid.block_2.", ".mid.1.")
        renamed[name.replace(".upsample.conv.", ".upsample_conv.")] = value
    save_file(renamed, tmp_path / "muse.safetensors")
    ours = convert("maskgit-vqgan", tmp_path / "muse.safetensors").model.state_dict()
    expected = convert("maskgit-vqgan", weights).model.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[k], expected[k]) for k in expected)
