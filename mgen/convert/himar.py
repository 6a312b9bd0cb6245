"""Hi-MAR: `Hi-MAR-{B,L,H}/checkpoint-last.pth` (keys `model` and `model_ema`, both complete), fp32."""

import re
from typing import Any

from torch import Tensor

from mgen.convert import mar
from mgen.convert.reading import Renamed, State

RULES = (
    (r"^class_emb\.", "class_embed."),
    (r"^fake_latent$", "fake_latent"),
    (r"^cond_tokens$", "pivot_default"),
    (r"^mask_token$", "mask_token"),
    (r"^encoder_pos_embed_learned$", "encoder_position"),
    (r"^decoder_pos_embed_learned$", "decoder_position"),
    (r"^diffusion_pos_embed_learned$", "head_position"),
    (r"^z_proj_ln\.", "token_norm."),
    (r"^z_proj\.", "token_proj."),
    (r"^cond_z_proj\.", "feature_proj."),
    (r"^cond_proj\.", "pivot_proj."),
    (r"^(encoder|decoder)_task_emb\.", r"\1_task."),
    (r"^(encoder|decoder)_blocks_ada\.1\.", r"\1_modulation."),
    (r"^((?:encoder|decoder)_blocks\.\d+)\.adaLN_scale$", r"\1.task_scale"),
    (r"^((?:encoder|decoder)_blocks\.\d+)\.adaLN_shift$", r"\1.task_shift"),
    (r"^cond_diffloss\.net\.pos_embed$", "head.position"),
    (r"^cond_diffloss\.net\.x_embedder\.proj\.", "head.input."),
    (r"^cond_diffloss\.net\.c_embedder\.proj\.", "head.cond."),
    (r"^cond_diffloss\.net\.t_embedder\.mlp\.0\.", "head.time.fc1."),
    (r"^cond_diffloss\.net\.t_embedder\.mlp\.2\.", "head.time.fc2."),
    (r"^cond_diffloss\.net\.blocks\.(\d+)\.adaLN_modulation\.1\.", r"head.blocks.\1.adaln."),
    (r"^cond_diffloss\.net\.blocks\.", "head.blocks."),
    (r"^cond_diffloss\.net\.final_layer\.adaLN_modulation\.1\.", "head.out_adaln."),
    (r"^cond_diffloss\.net\.final_layer\.linear\.", "head.out."),
)
PIVOT_RULES = tuple((a, b.replace("head.", "pivot_head.", 1)) for a, b in mar.RULES if "diffloss" in a)
# One row or matrix for each of the two stages, stored one behind the other under a leading 1.
HALVES = ("mask_token", "encoder_position", "decoder_position")


def config(state: State) -> dict[str, Any]:
    """Constructor arguments that the shapes tell; heads (64 numbers each, 80 at width 1280) follow the published sizes."""
    pivots, channels = state["cond_tokens"].shape[1:]
    length = state["diffusion_pos_embed_learned"].shape[1] - pivots
    dim, width = state["class_emb.weight"].shape[1], state["cond_diffloss.net.x_embedder.proj.weight"].shape[0]
    return {
        "side": round(length**0.5),
        "pivot_side": round(pivots**0.5),
        "channels": channels,
        "scale": 0.2325 if channels == 16 else None,  # that of KL16, whose tokens have 16 numbers
        "dim": dim,
        "encoder_depth": mar.count(state, r"encoder_blocks\.(\d+)\."),
        "decoder_depth": mar.count(state, r"decoder_blocks\.(\d+)\."),
        "heads": mar.heads(dim),
        "mlp_ratio": state["encoder_blocks.0.mlp.fc1.weight"].shape[0] / dim,
        "buffer": state["encoder_pos_embed_learned"].shape[1] // 2 - pivots - length,
        "pivot_head_width": state["diffloss.net.input_proj.weight"].shape[0],
        "pivot_head_depth": mar.count(state, r"diffloss\.net\.res_blocks\.(\d+)\."),
        "head_width": width,
        "head_depth": mar.count(state, r"cond_diffloss\.net\.blocks\.(\d+)\."),
        "head_heads": max(1, width // 64),
        "head_mlp_ratio": state["cond_diffloss.net.blocks.0.mlp.fc1.weight"].shape[0] / width,
        "num_classes": state["class_emb.weight"].shape[0],
    }


def notes(config: dict[str, Any]) -> list[str]:
    """What a user should know of a conversion."""
    published = {(768, 512), (1024, 512), (1280, 768)}
    if (config["dim"], config["head_width"]) in published:
        return []
    return [
        f"heads={config['heads']} for width {config['dim']}, head_heads={config['head_heads']} for width "
        f"{config['head_width']}: weights do not tell; give heads=N head_heads=N if the model was trained otherwise"
    ]


def rename(state: State) -> Renamed:
    """Our names; 1×1 convolutions become linear layers, tables of both stages get one row per stage."""
    out = Renamed()
    for name, value in state.items():
        if name == "cond_diffloss.net.c_pos_embed":
            out.ignored[name] = "loaded and never read by the official code"
            continue
        new = name
        for pattern, ours in (*RULES, *PIVOT_RULES):
            new = re.sub(pattern, ours, new)
        out.put(name, new, _reshaped(new, value))
    return out


def _reshaped(name: str, value: Tensor) -> Tensor:
    if name in HALVES:
        return value.view(2, -1, value.shape[-1])
    if name.endswith((".task_scale", ".task_shift")):
        return value.flatten(1)  # (2, 1, 1, 4D)
    if value.ndim == 4:
        return value.flatten(1)  # (out, in, 1, 1)
    # The fake latent keeps its leading 1, as in MAR.
    return value[0] if value.ndim == 3 and len(value) == 1 else value


def himar_settings(
    *,
    num_iter: int,
    cfg: float = 1.0,
    re_cfg: float = 1.0,
    cond_scale: int = 8,
    cfg_schedule: str = "linear",
    temperature: float = 1.0,
    num_sampling_steps: str = "100",
    dense_sampling_steps: str = "250",
) -> dict[str, Any]:
    """Settings of a ParallelSampler from the arguments of the official evaluation, under their official names.

    Args:
        num_iter, cfg: of the tokens. re_cfg, num_sampling_steps: of the pivots, which take 4 · cond_scale steps.
        dense_sampling_steps: of the transformer head, a constant in the official code.
    """
    common: dict[str, Any] = dict(cfg_schedule=cfg_schedule, temperature=temperature)
    pivots = mar.sampler_settings(num_iter=4 * cond_scale, cfg=re_cfg, num_sampling_steps=num_sampling_steps, **common)
    dense = mar.sampler_settings(num_iter=num_iter, cfg=cfg, num_sampling_steps=dense_sampling_steps, **common)
    return {**dense, "first_stage": pivots}
