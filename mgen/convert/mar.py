"""MAR: `checkpoint-last.pth` (keys `model` and `model_ema`) and the flat safetensors mirrors, fp32."""

import re
from typing import Any

import torch

from mgen.convert.reading import Renamed, State
from mgen.convert.shapes import count, vectors
from mgen.utils.config import Settings
from mgen.utils.errors import check_choice

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
    return {
        **trunk_config(state, state["diffusion_pos_embed_learned"].shape[1]),
        "head": {
            "type": "diffusion",
            "width": state["diffloss.net.input_proj.weight"].shape[0],
            "depth": count(state, r"diffloss\.net\.res_blocks\.(\d+)\."),
        },
    }


def trunk_config(state: State, length: int) -> Settings:
    """All but the head; `length` image tokens."""
    channels, positions = state["z_proj.weight"].shape[1], state["encoder_pos_embed_learned"].shape[1]
    encoder, decoder = state["z_proj.weight"].shape[0], state["mask_token"].shape[2]
    return {
        "tokens": vectors(round(length**0.5), channels),
        "classes": {"count": state["class_emb.weight"].shape[0]},
        "trunk": {
            "type": "mae",
            "encoder_dim": encoder,
            "encoder_depth": count(state, r"encoder_blocks\.(\d+)\."),
            "encoder_heads": heads(encoder),
            "decoder_dim": decoder,
            "decoder_depth": count(state, r"decoder_blocks\.(\d+)\."),
            "decoder_heads": heads(decoder),
            "mlp_ratio": state["encoder_blocks.0.mlp.fc1.weight"].shape[0] / encoder,
            "prefix_length": positions - length,
        },
    }


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    out, trunk = [], config["trunk"]
    for half in ("encoder", "decoder"):
        dim, own = trunk[f"{half}_dim"], trunk[f"{half}_heads"]
        if dim not in PUBLISHED_WIDTHS:
            out.append(
                f"trunk.{half}_heads={own} for width {dim}: weights do not tell; give trunk.{half}_heads=N if the model was "
                "trained otherwise"
            )
    return out


def rename(state: State) -> Renamed:
    """Our names; tables lose their leading 1, the null class's vector becomes the last row of the classes' table."""
    out = Renamed()
    for name, value in state.items():
        if put_classes(out, state, name):
            continue
        if name in TOP:
            out.put(name, TOP[name], value.flatten(0, -2))
            continue
        new = name
        for pattern, ours in RULES:
            new = re.sub(pattern, ours, new)
        out.put(name, new, value)
    return out


def sampler_settings(
    *,
    num_iter: int,
    cfg: float = 1.0,
    cfg_schedule: str = "linear",
    temperature: float = 1.0,
    num_sampling_steps: str = "100",
) -> Settings:
    """Settings of a ParallelSampler from the arguments of the official evaluation, under their official names."""
    check_choice("cfg_schedule", cfg_schedule, ("linear", "constant"))
    guidance: Any = cfg
    if cfg_schedule == "linear" and cfg != 1.0:
        guidance = {"kind": "linear", "start": 1.0, "end": cfg, "at": "tokens", "left": 1}
    return {
        "steps": num_iter,
        "order": "random",
        "schedule": "cosine",
        "counts": "mar",
        "guidance": guidance,
        "temperature": temperature,
        "head": _chain(num_sampling_steps),
    }


def _chain(steps: str) -> Settings:
    """The official respacing text: "" for all steps, "100", or "ddim50" for every 20th timestep."""
    spacing = {"spacing": "stride"} if steps.startswith("ddim") else {}
    return {"chain": "ancestral", "steps": int(steps.removeprefix("ddim") or 1000), **spacing}


def put_classes(out: Renamed, state: State, name: str) -> bool:
    """Put the table of classes, if `name` is a part of it."""
    if name not in ("class_emb.weight", "fake_latent"):
        return False
    out.put(name, "classes.vectors.weight", torch.cat([state["class_emb.weight"], state["fake_latent"]]))
    return True


def heads(dim: int) -> int:
    return 16 if dim == 1280 else max(1, dim // 64)
