"""TiTok's tokenizers in their official keys: encoding, codes, decoding to pixels or to a VQGAN's codes, posteriors, losses."""

from typing import Any

import torch
from torch import Tensor

from mgen.convert import convert
from mgen.convert.convert import Conversion
from mgen.tokenizers import TiTok, TiTokKL
from mgen.tokenizers.titok_vit import CodeHead
from tests.golden import harness
from tests.golden.harness import Case

# Ten times the reference's own fp32–fp64 difference: latents 9.4e-7, codes 1.2e-7, the decoder's output 3.7e-6, images 4.4e-6; losses
# are means of squares of latents.
LATENT, CODES, FEATURES, IMAGE, LOSS = 9.4e-6, 1.2e-6, 3.7e-5, 4.4e-5, 1e-6


def settings(case: Case) -> dict[str, Any]:
    """The entry of config.json that describes the case's model: that of its name, or of the beginning of its name."""
    models = case.config["models"]
    return models[max((name for name in models if case.name.startswith(name)), key=len)]


def conversion(case: Case) -> Conversion:
    own, reduced = settings(case), case.config["reduced_sizes"]
    c = own["model"]["vq_model"]
    heads = {f"{ours}_heads": reduced["heads"][c[f"vit_{official}_model_size"]] for ours, official in PARTS.items()}
    if c.get("quantize_mode", "vq") == "vae":
        return convert("titok-vae", case.folder / own["weights"], **heads, scale=1.0)
    return convert("titok-vq", case.folder / own["weights"], **heads, unit_codes=c.get("use_l2_norm", True))


PARTS = {"encoder": "enc", "decoder": "dec"}


def check_settings(case: Case, net: TiTok | TiTokKL) -> None:
    """What was read from shapes is what config.json says."""
    own, got = settings(case), net.config
    c = own["model"]["vq_model"]
    assert got.image_size == own["dataset"]["preprocessing"]["crop_size"]
    assert got.latent == c["token_size"] and got.latent_tokens == c["num_latent_tokens"]
    assert got.patch == c["vit_enc_patch_size"] and (got.decoder_patch or got.patch) == c["vit_dec_patch_size"]
    if isinstance(net, TiTok):
        assert got.vocab_size == c["codebook_size"] and got.scrambled == c.get("is_legacy", True)


def on_image_range(images: Tensor) -> Tensor:
    """Ours in [-1, 1] as the official ones in [0, 1]."""
    return (images + 1) / 2


def decoder_out(net: TiTok | TiTokKL, z: Tensor) -> Tensor:
    """The official decoder's output (B, ·, h, w) for z (B, d, 1, N): logits of the VQGAN's codes, or the image."""
    decoder = net.decoder
    if isinstance(decoder.head, CodeHead):
        logits = decoder.head.logits(decoder.features(z.squeeze(2).transpose(1, 2)))
        return logits.transpose(1, 2).unflatten(2, (decoder.side, decoder.side))
    return on_image_range(net.decode_latents(z))


def ids(case: Case) -> None:
    net = conversion(case).model
    assert isinstance(net, TiTok)
    check_settings(case, net)
    images = case.inputs["images"] * 2 - 1
    with torch.inference_mode():
        z = net.latents(images)
        case.check("z", z, atol=case.near("z", LATENT))
        case.check("indices", net.encode(images).view(case.outputs["indices"].shape))
        quantized = net.quantize(z)
        case.check("z_quantized", quantized.values, atol=case.near("z_quantized", CODES))
        case.check("decoder_out", decoder_out(net, quantized.values), atol=case.near("decoder_out", FEATURES))
        made = on_image_range(net.decode(case.outputs["indices"].flatten(1)))
        case.check("reconstruction", made, atol=case.near("reconstruction", IMAGE))
    cost = settings(case)["model"]["vq_model"]["commitment_cost"]
    losses = {"codebook_loss": quantized.losses["codebook"], "commitment_loss": cost * quantized.losses["commitment"]}
    losses["quantizer_loss"] = losses["codebook_loss"] + losses["commitment_loss"]
    for name, value in losses.items():
        case.check(name, value, atol=case.near(name, LOSS))


def vectors(case: Case) -> None:
    net = conversion(case).model
    assert isinstance(net, TiTokKL)
    check_settings(case, net)
    images = case.inputs["images"] * 2 - 1
    with torch.inference_mode():
        moments = net.moments(images)
        posterior, noise = net.posterior(moments), case.inputs["noise"]
        case.check("z", moments, atol=case.near("z", LATENT))
        case.check("mean", posterior.mean, atol=case.near("mean", LATENT))
        case.check("std", posterior.std, atol=case.near("std", LATENT))
        case.check("logvar", posterior.logvar, atol=case.near("logvar", LATENT))
        tokens = net.tokens(moments, noise)  # (B, N, d), of scale 1
        z = tokens.transpose(1, 2).unsqueeze(2)
        case.check("z_sampled", z, atol=case.near("z_sampled", LATENT))
        case.check("z_quantized", z, atol=case.near("z_quantized", LATENT))
        case.check("decoder_out", decoder_out(net, z), atol=case.near("decoder_out", FEATURES))
        case.check("reconstruction", on_image_range(net.decode(tokens)), atol=case.near("reconstruction", IMAGE))
        # The official loss is a sum over the numbers of an image; ours is their mean.
        kl = net(images, noise)[1]["kl"] * z[0].numel()
        case.check("kl_loss", kl, atol=case.near("kl_loss", LOSS * z[0].numel()))


@harness.parametrize("titok_tokenizer")
def test_titok_tokenizer(case: Case) -> None:
    vae = settings(case)["model"]["vq_model"].get("quantize_mode", "vq") == "vae"
    harness.run(case, {".*": vectors if vae else ids})
