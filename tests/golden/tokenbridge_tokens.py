"""TokenBridge's tokens: levels, channel-wise quantization and the way from moments to what the decoder takes."""

import re

import torch
from torch import Tensor

from mgen.nn.levels import PUBLISHED_ORDER, dequantize, gaussian_levels, quantize
from mgen.tokenizers import QuantizedKL
from mgen.tokenizers.kl import patchify, unpatchify
from tests.golden.harness import Case, Family

# Ten times the reference's own fp32–fp64 difference: dequantised 4.8e-7, what the decoder takes 1.9e-6, scaled latents 2.4e-7.
VALUE, DECODER, SCALED = 4.8e-6, 1.9e-5, 2.4e-6


def level_error(boundaries: Tensor) -> float:
    """What cancellation in fp32 may move a level: a few roundings of numbers below 0.4, over the share of the narrowest cell."""
    share = torch.special.ndtr(boundaries.double()).diff()
    return 4 * 2.0**-25 / share[share > 0].min().item()


def tokenizer(case: Case, latents: Tensor) -> QuantizedKL:
    """One with the set's levels and the least encoder and decoder: here only the numbers between them are looked at."""
    c = case.config
    kl = dict(
        image_size=latents.shape[-1],
        latent_channels=c["vae_embed_dim"],
        channels=(8,),
        layers=1,
        norm_groups=4,
        encoder_attention=(),
        middle_attention=False,
        scale=c["vae_scale_factor"],
    )
    return QuantizedKL(
        kl=kl, levels=c["quant_levels"], low=c["quant_min"], high=c["quant_max"], span=c["std_range"]
    ).eval()


def whole(case: Case) -> None:
    latents = case.inputs["latents"]
    net, tokens = tokenizer(case, latents), patchify(latents, 1)
    case.check("patched", tokens)
    settings = {name: net.config[name] for name in ("low", "high", "span")}
    ids = quantize(tokens, net.level_values, **settings)
    case.check("indices", ids)
    case.check("ar_order_indices", ids[..., list(case.config.get("channel_order", PUBLISHED_ORDER))])
    values = net.values(ids)
    case.check("dequant", values, atol=VALUE)
    case.check("latents_dequant", unpatchify(values, 1, (latents.shape[2], latents.shape[3])), atol=VALUE)


def edge(case: Case) -> None:
    c, x = case.config, case.inputs["x"]
    values = gaussian_levels(c["quant_levels"], span=c["std_range"])[0]
    settings = {"low": c["quant_min"], "high": c["quant_max"], "span": c["std_range"]}
    ids = quantize(x, values, **settings)
    case.check("indices", ids)
    case.check("dequant", dequantize(ids, values, **settings), atol=VALUE)


@torch.inference_mode()
def moments(case: Case) -> None:
    net = tokenizer(case, case.inputs["moments"])
    noise, side = case.inputs["eps"], case.inputs["moments"].shape[-2:]
    scaled = net.continuous.tokens(case.inputs["moments"], noise)
    case.check("scaled_latents", unpatchify(scaled, 1, (side[0], side[1])), atol=SCALED)
    ids = net.tokens(case.inputs["moments"], noise)
    case.check("indices", ids)
    taken: list[Tensor] = []
    net.continuous.decode_latents = lambda z: taken.append(z) or z  # type: ignore[func-returns-value,method-assign,assignment]
    net.decode(ids, (side[0], side[1]))
    case.check("decoder_input", taken[0], atol=DECODER)


def levels(case: Case) -> None:
    for name in case.outputs:
        found = re.fullmatch(r"(boundaries|reconstruction_values)_b(\d+)", name)
        assert found, f"levels/out/{name}: neither boundaries nor values of a number of bits"
        count = 2 ** int(found[2])
        values, boundaries = gaussian_levels(count, span=case.config["std_range"])
        if found[1] == "boundaries":
            case.check(name, boundaries, atol=2.4e-6)
        else:
            case.check(name, values, atol=level_error(boundaries))


def after_training(case: Case) -> None:
    x = case.inputs["x"]
    for name in case.outputs:
        found = re.fullmatch(r"(indices|dequant)_b(neg)?(\d+)_r(\d+(?:[.p]\d+)?)", name)
        assert found, f"ptq/out/{name}: neither indices nor values of a number of bits and a range"
        if found[2]:  # a negative number of bits: nothing is quantised
            case.check(name, x)
            continue
        count, r = 2 ** int(found[3]), float(found[4].replace("p", "."))
        settings = {"low": -r, "high": r, "span": case.config["std_range"]}
        values, boundaries = gaussian_levels(count, span=case.config["std_range"])
        ids = quantize(x, values, **settings)
        if found[1] == "indices":
            case.check(name, ids)
        else:
            stretch = r / case.config["std_range"]
            case.check(name, dequantize(ids, values, **settings), atol=VALUE + stretch * level_error(boundaries))


FAMILIES: dict[str, Family] = {
    "quantize_edge.*": edge,
    "quantize.*": whole,
    "tokenize_moments.*": moments,
    "levels.*": levels,
    "ptq.*": after_training,
}
