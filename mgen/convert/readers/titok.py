"""TiTok's tokenizers: folders of the hub (model.safetensors, and config.json with the official configuration) and bare `.bin` files.

Ids and vectors are two formats, since they become two classes. TA-TiTok, whose decoder also reads a text, is
not read.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mgen.convert.format import Format, register_format
from mgen.convert.readers import maskgit_vqgan
from mgen.convert.reading import Renamed, Rules, State, by_rules, count, untold
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, shown
from mgen.utils.reading import read_json

TABLES: Rules = (
    (r"^latent_tokens$", "encoder.latents"),
    (r"\.class_embedding$", ".class_token"),
    (r"\.positional_embedding$", ".position"),
    (r"\.latent_token_positional_embedding$", ".latent_position"),
    (r"\.mask_token$", ".mask"),
)
LAYERS: Rules = (
    (r"\.transformer\.(\d+)\.", r".blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.ln_pre\.", ".norm_in."),
    (r"\.ln_post\.", ".norm_out."),
    (r"\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^encoder\.conv_out\.", "encoder.out."),
    (r"^decoder\.decoder_embed\.", "decoder.embed."),
    (r"^decoder\.conv_out\.", "decoder.head.conv_out."),
    (r"^pixel_quantize\.embedding\.", "decoder.head.codes."),
)
HEADS = {  # of the decoder, by whether it predicts codes
    True: ((r"^decoder\.ffn\.0\.", "decoder.head.hidden."), (r"^decoder\.ffn\.2\.", "decoder.head.out.")),
    False: ((r"^decoder\.ffn\.0\.", "decoder.head.patches."),),
}
LINEAR = {"encoder.out", "decoder.head.hidden", "decoder.head.out", "decoder.head.patches"}
CODES, CODEBOOK = "decoder.ffn.2.weight", "quantize.embedding.weight"


def networks(state: State) -> Settings:
    """Constructor arguments that both classes share, but for the sizes of the latents."""
    check_kind(state)
    side, decoder_side = (grid_side(state[f"{part}.positional_embedding"]) for part in ("encoder", "decoder"))
    embed = state["encoder.patch_embed.weight"]
    out: Settings = {"image_size": side * embed.shape[2], "in_channels": embed.shape[1], "patch": embed.shape[2]}
    out["latent_tokens"] = len(state["latent_tokens"])
    for part in ("encoder", "decoder"):
        width = state[f"{part}.class_embedding"].shape[1]
        out[f"{part}_dim"], out[f"{part}_heads"] = width, max(1, width // 64)
        out[f"{part}_depth"] = count(state, rf"{part}\.transformer\.(\d+)\.")
    if decoder_side != side:
        out["decoder_patch"] = out["image_size"] // decoder_side
    return out


def check_kind(state: State) -> None:
    """MgenError for the tokenizers of the same line that are not read."""
    if any(".text_guidance" in name for name in state):
        raise MgenError(
            "this is a TA-TiTok tokenizer, whose decoder also reads CLIP's features of a text: text-aware tokenizers are not supported; "
            "give a TiTok tokenizer (tokenizer_titok_…)"
        )
    if CODES in state and not any(name.startswith("pixel_decoder.") for name in state):
        raise MgenError(
            "this is a tokenizer after its first stage, without the VQGAN's decoder (pixel_decoder.…): give the one after the second stage"
        )


def grid_side(table: Tensor) -> int:
    """Side of the grid of patches that a table of positions (1 + h·w, D) is for."""
    return round((len(table) - 1) ** 0.5)


def config(state: State) -> Settings:
    """Constructor arguments of a TiTok that the shapes tell; whether codes have length 1 (two stages: yes) they do not."""
    out = networks(state)
    if CODEBOOK not in state:
        raise MgenError("these weights have no codebook: a tokenizer of vectors is read with mgen convert titok-vae")
    out["vocab_size"], out["latent"] = state[CODEBOOK].shape
    if CODES not in state:
        return out | {"unit_codes": False, "scrambled": False}
    return out | {"unit_codes": True, "scrambled": True, "pixel_decoder": pixel_decoder(state)}


def pixel_decoder(state: State) -> Settings:
    """Settings of the VQGAN's decoder that the shapes tell."""
    codes, own = state["pixel_quantize.embedding.weight"], pixel_state(state)
    levels = range(count(own, r"decoder\.up\.(\d+)\."))
    widths = [own[f"decoder.up.{level}.block.0.conv2.weight"].shape[0] for level in levels]
    channels = math.gcd(*widths)
    return {
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "blocks": count(own, r"decoder\.up\.0\.block\.(\d+)\."),
        "mid_blocks": count(own, r"decoder\.mid\.block_(\d+)\.") - 1,  # their names begin with 1
        "latent": codes.shape[1],
        "vocab_size": codes.shape[0],
    }


def pixel_state(state: State) -> State:
    """The VQGAN's decoder in the names of our VQGAN."""
    prefix = "pixel_decoder."
    inside = {name.removeprefix("pixel_"): value for name, value in state.items() if name.startswith(prefix)}
    return maskgit_vqgan.rename(inside).state


def kl_config(state: State) -> Settings:
    """Constructor arguments of a TiTokKL that the shapes tell; the scale they do not."""
    out = networks(state)
    if CODEBOOK in state:
        raise MgenError("these weights have a codebook: a tokenizer of ids is read with mgen convert titok-vq")
    return out | {"latent": state["decoder.decoder_embed.weight"].shape[1]}


def rename(state: State) -> Renamed:
    """Our names. 1×1 convolutions become linear layers, and the numbers of the pixels' layer stay in their order (p, p, C)."""
    out = Renamed()
    inside = [name for name in state if name.startswith("pixel_decoder.")]
    ours = dict(zip(inside, pixel_state(state)))
    for name, value in state.items():
        if name == "quantize.embed_prob":
            out.ignored[name] = "a record of how often codes were used in training, not a weight"
        elif name in ours:
            out.put(name, f"decoder.head.pixels.{ours[name].removeprefix('decoder.')}", value)
        else:
            new = by_rules(name, TABLES + LAYERS + HEADS[CODES in state])
            linear = value.ndim == 4 and value.shape[2:] == (1, 1) and new.rsplit(".", 1)[0] in LINEAR
            value = value[:, :, 0, 0] if linear else value[0] if new == "decoder.mask" else value
            out.put(name, new, value)
    return out


def beside(path: Path) -> Settings:
    """What the official config.json in the folder of the weights says of their codes; nothing for a bare file."""
    file = path.parent / "config.json"
    if not file.is_file() or not isinstance(data := read_json(file), Mapping):
        return {}
    model = data.get("model")
    settings = model.get("vq_model") if isinstance(model, Mapping) else None
    if not isinstance(settings, Mapping) or "use_l2_norm" not in settings:
        return {}
    if not isinstance(settings["use_l2_norm"], bool):
        raise MgenError(
            f"{file}: model.vq_model.use_l2_norm is {shown(settings['use_l2_norm'])}: expected true or false"
        )
    return {"unit_codes": settings["use_l2_norm"]}


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    stages = "of two stages" if config["scrambled"] else "of one stage"
    codes = "of length 1" if config["unit_codes"] else "of any length"
    return [
        untold(
            f"a tokenizer {stages}; codes {codes}, heads of width 64", "unit_codes=…, encoder_heads=…, decoder_heads=…"
        )
    ]


def kl_notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    if config.get("scale") is not None:
        return []
    return ["no scale: give scale=S, or measure it (mgen cache … --measure-scale 2000) and convert again"]


register_format("titok-vq", Format(model="TiTok", config=config, rename=rename, notes=notes, beside=beside))

register_format("titok-vae", Format(model="TiTokKL", config=kl_config, rename=rename, notes=kl_notes))
