"""MAR: `checkpoint-last.pth` (keys `model` and `model_ema`) and the flat safetensors mirrors, fp32."""

import torch

from mgen.convert.format import Format, register_format
from mgen.convert.reading import Renamed, State, by_rules, count, mlp_ratio, untold, vectors
from mgen.utils.config import Settings

TOP = {
    "mask_token": "trunk.mask_token",
    "encoder_pos_embed_learned": "trunk.encoder_position",
    "decoder_pos_embed_learned": "trunk.decoder_position",
    "diffusion_pos_embed_learned": "trunk.head_position",
}
PUBLISHED_WIDTHS = (768, 1024, 1280)
RULES = (
    (r"^z_proj_ln\.", "trunk.token_norm."),
    (r"^z_proj\.", "embedder.proj."),
    (r"^(encoder|decoder)_(embed|blocks|norm)\.", r"trunk.\1_\2."),
    (r"^diffloss\.net\.time_embed\.mlp\.0\.", "head.time.fc1."),
    (r"^diffloss\.net\.time_embed\.mlp\.2\.", "head.time.fc2."),
    (r"^diffloss\.net\.cond_embed\.", "head.cond."),
    (r"^diffloss\.net\.input_proj\.", "head.input."),
    (r"^diffloss\.net\.res_blocks\.(\d+)\.in_ln\.", r"head.blocks.\1.norm."),
    (r"^diffloss\.net\.res_blocks\.(\d+)\.mlp\.0\.", r"head.blocks.\1.fc1."),
    (r"^diffloss\.net\.res_blocks\.(\d+)\.mlp\.2\.", r"head.blocks.\1.fc2."),
    (r"^diffloss\.net\.res_blocks\.(\d+)\.adaLN_modulation\.1\.", r"head.blocks.\1.adaln."),
    (r"^diffloss\.net\.final_layer\.adaLN_modulation\.1\.", "head.out_adaln."),
    (r"^diffloss\.net\.final_layer\.linear\.", "head.out."),
)


def config(state: State) -> Settings:
    """The configuration as far as shapes tell it; heads (64 numbers each, 80 at width 1280) follow the published sizes."""
    return {**trunk_config(state, state["diffusion_pos_embed_learned"].shape[1]), "head": head_config(state)}


def head_config(state: State) -> Settings:
    width, depth = len(state["diffloss.net.input_proj.weight"]), count(state, r"diffloss\.net\.res_blocks\.(\d+)\.")
    return {"type": "diffusion", "width": width, "depth": depth}


def trunk_config(state: State, length: int) -> Settings:
    """All but the head; `length` image tokens."""
    channels, positions = state["z_proj.weight"].shape[1], state["encoder_pos_embed_learned"].shape[1]
    encoder, decoder = state["z_proj.weight"].shape[0], state["mask_token"].shape[2]
    return {
        "tokens": vectors(length, channels),
        "classes": {"count": state["class_emb.weight"].shape[0]},
        "trunk": {
            "type": "mae",
            "encoder_dim": encoder,
            "encoder_depth": count(state, r"encoder_blocks\.(\d+)\."),
            "encoder_heads": heads(encoder),
            "decoder_dim": decoder,
            "decoder_depth": count(state, r"decoder_blocks\.(\d+)\."),
            "decoder_heads": heads(decoder),
            "mlp_ratio": mlp_ratio(state["encoder_blocks.0.mlp.fc1.weight"].shape[0], encoder),
            "prefix_length": positions - length,
        },
    }


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    trunk = config["trunk"]
    halves = [half for half in ("encoder", "decoder") if trunk[f"{half}_dim"] not in PUBLISHED_WIDTHS]
    names = {f"trunk.{half}_heads": (trunk[f"{half}_heads"], trunk[f"{half}_dim"]) for half in halves}
    return [untold(f"{name}={own} for width {dim}", f"{name}=N") for name, (own, dim) in names.items()]


def rename(state: State) -> Renamed:
    """Our names; tables lose their leading 1, the null class's vector becomes the last row of the classes' table."""
    out = Renamed()
    for name, value in state.items():
        if name in TOP:
            out.put(name, TOP[name], value.flatten(0, -2))
        elif not put_classes(out, state, name):
            out.put(name, by_rules(name, RULES), value)
    return out


def put_classes(out: Renamed, state: State, name: str) -> bool:
    """Put the table of classes, if `name` is a part of it."""
    if name not in ("class_emb.weight", "fake_latent"):
        return False
    out.put(name, "classes.vectors.weight", torch.cat([state["class_emb.weight"], state["fake_latent"]]))
    return True


def heads(dim: int) -> int:
    return 16 if dim == 1280 else max(1, dim // 64)


register_format(
    "mar",
    Format(
        trunk="mae",
        config=config,
        notes=notes,
        rename=rename,
        ema="model_ema",
        tokenizer="kl16",
    ),
)
