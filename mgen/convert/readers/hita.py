"""Hita's tokenizers: `hita-tok.pt` (Hita-V) and `hita-ultra.pt` (Hita-U), weights under `ema` and `model`, fp32.

The frozen vision encoder is no part of them; it has its own file, `dinov2_vitl14_reg4_pretrain.pth`.
"""

import re

import torch

from mgen.convert.format import Format, register_format
from mgen.convert.readers import llamagen
from mgen.convert.reading import Renamed, State, by_rules, count
from mgen.utils.config import Settings

IN, OUT = "encode_transformer.", "decode_transformer."
CNN = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
TABLES = {
    f"{IN}carrier_tokens": "gathering.holistic",
    f"{IN}pos_embed": "gathering.position",
    f"{OUT}slot_position_embedding": "spreading.holistic_position",
    f"{OUT}position_embedding": "spreading.position",
}
QUERY = f"{OUT}mask_embedding"
RULES = (
    (rf"^{IN}proj\.mlp\.", "gathering.project."),
    (rf"^{IN}norm_pre([12])\.", r"gathering.norm\1."),
    (rf"^{IN}transformer([12])\.layers\.", r"gathering.blocks\1."),
    (rf"^{OUT}transformer\.layers\.", "spreading.blocks."),
    (rf"^{OUT}norm_vfm\.", "spreading.vision_norm."),
    (rf"^{OUT}norm\.", "spreading.norm."),
    (rf"^{OUT}proj\.", "spreading.vision_out."),
    (r"\.attn1\.(?:to_out\.0|out_proj)\.", ".attn.proj."),
    (r"\.ffnet\.w12\.", ".mlp.fc1."),
    (r"\.ffnet\.w3\.", ".mlp.fc2."),
    (r"^slot_quantize\.", "holistic_quantize."),
    (r"^pre_slots_quant\.", "to_holistic."),
    (r"^post_slots_quant\.", "from_holistic."),
)
# The first stack names its projections to_q, to_k, to_v, the others q_proj, k_proj, v_proj; ours are one.
PROJECTION = r"(.*\.attn1)\.(?:to_([qkv])|([qkv])_proj)\.(weight|bias)"


def config(state: State) -> Settings:
    """Constructor arguments that the shapes tell; heads (8), shift (4), groups of the norms (32), dropout and `normalized` they do not."""
    out = llamagen.config(state)
    dim = out.pop("z_channels")
    first = f"{IN}transformer1.layers.0."
    side = round(state[f"{IN}pos_embed"].shape[1] ** 0.5)
    vision = state.get(f"{IN}proj.mlp.0.weight")
    global_vocab_size, global_latent = state["slot_quantize.embedding.weight"].shape
    return out | {
        "image_size": side * 2 ** (len(out["channels"]) - 1),
        "position_side": side,
        "global_tokens": state[f"{IN}carrier_tokens"].shape[1],
        "dim": dim,
        "depth": count(state, rf"{IN}transformer1\.layers\.(\d+)\."),
        "hidden": state[f"{first}ffnet.w3.weight"].shape[1],
        "inner": state[f"{first}attn1.to_q.weight"].shape[0],
        "global_vocab_size": global_vocab_size,
        "global_latent": global_latent,
        "vision": None if vision is None else vision.shape[1],
        "vision_loss": QUERY in state,
    }


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    if config["vision"] is None:
        return []
    return [
        f"{'Hita-U' if config['vision_loss'] else 'Hita-V'}: encoding images takes the frozen vision encoder too (--vision-weights "
        "dinov2_vitl14_reg4_pretrain.pth), decoding does not"
    ]


def rename(state: State) -> Renamed:
    """Our names; tables lose their leading 1, the projections of q, k and v become one. Codes keep the length they are stored with."""
    out = llamagen.rename({name: value for name, value in state.items() if name.startswith(CNN)})
    if "quantize.embedding.weight" in state:
        out.put("quantize.embedding.weight", "vq.quantize.embedding.weight", state["quantize.embedding.weight"])
    parts: dict[str, dict[str, str]] = {}
    for name, value in state.items():
        if name.startswith(CNN):
            continue
        if name == "slot_quantize.codebook_used":
            out.ignored[name] = "a record of the codes of the last training steps, not a weight"
        elif "backbone" in name:
            out.ignored[name] = "of the frozen vision encoder, which has its own file"
        elif name in TABLES:
            out.put(name, TABLES[name], value.flatten(0, -2))
        elif name == QUERY:
            out.put(name, "spreading.query", value.flatten())
        elif m := re.fullmatch(PROJECTION, name):
            parts.setdefault(f"{_ours(m[1] + '.')}qkv.{m[4]}", {})[m[2] or m[3]] = name
        else:
            out.put(name, _ours(name), value)
    for ours, names in parts.items():
        if names.keys() == set("qkv"):  # else it is found missing
            whole = torch.cat([state[names[letter]] for letter in "qkv"])
            for name in names.values():
                out.put(name, ours, whole)
    return out


def _ours(name: str) -> str:
    return by_rules(name, RULES).replace(".attn1.", ".attn.")


register_format(
    "hita",
    Format(
        model="HitaTokenizer",
        config=config,
        notes=notes,
        rename=rename,
        ema="ema",
    ),
)
