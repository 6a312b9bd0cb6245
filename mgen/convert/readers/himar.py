"""Hi-MAR: `Hi-MAR-{B,L,H}/checkpoint-last.pth` (keys `model` and `model_ema`, both complete), fp32."""

from torch import Tensor

from mgen.convert.format import Format, register_format
from mgen.convert.readers import mar
from mgen.convert.reading import Renamed, State, by_rules, count, mlp_ratio, untold, vectors
from mgen.utils.config import Settings

RULES = (
    (r"^cond_tokens$", "default_tokens"),
    (r"^mask_token$", "shared.mask_token"),
    (r"^encoder_pos_embed_learned$", "shared.encoder_position"),
    (r"^decoder_pos_embed_learned$", "shared.decoder_position"),
    (r"^diffusion_pos_embed_learned$", "shared.head_position"),
    (r"^z_proj_ln\.", "shared.token_norm."),
    (r"^z_proj\.", "second_embedder.proj."),
    (r"^cond_z_proj\.", "feature_proj."),
    (r"^cond_proj\.", "first_embedder.proj."),
    (r"^(encoder|decoder)_task_emb\.", r"shared.\1_task."),
    (r"^(encoder|decoder)_blocks_ada\.1\.", r"shared.\1_modulation."),
    (r"^((?:encoder|decoder)_blocks\.\d+)\.adaLN_scale$", r"\1.task_scale"),
    (r"^((?:encoder|decoder)_blocks\.\d+)\.adaLN_shift$", r"\1.task_shift"),
    (r"^(encoder|decoder)_(embed|blocks|norm)\.", r"shared.\1_\2."),
    (r"^cond_diffloss\.net\.pos_embed$", "second_head.position"),
    (r"^cond_diffloss\.net\.x_embedder\.proj\.", "second_head.input."),
    (r"^cond_diffloss\.net\.c_embedder\.proj\.", "second_head.cond."),
    (r"^cond_diffloss\.net\.t_embedder\.mlp\.0\.", "second_head.time.fc1."),
    (r"^cond_diffloss\.net\.t_embedder\.mlp\.2\.", "second_head.time.fc2."),
    (r"^cond_diffloss\.net\.blocks\.(\d+)\.adaLN_modulation\.1\.", r"second_head.blocks.\1.adaln."),
    (r"^cond_diffloss\.net\.blocks\.", "second_head.blocks."),
    (r"^cond_diffloss\.net\.final_layer\.adaLN_modulation\.1\.", "second_head.out_adaln."),
    (r"^cond_diffloss\.net\.final_layer\.linear\.", "second_head.out."),
)
FIRST_HEAD_RULES = tuple((a, b.replace("head.", "first_head.", 1)) for a, b in mar.RULES if "diffloss" in a)
# One row or matrix for each of the two stages, stored one behind the other under a leading 1.
HALVES = ("shared.mask_token", "shared.encoder_position", "shared.decoder_position")


def config(state: State) -> Settings:
    """The configuration as far as shapes tell it; heads (64 numbers each, 80 at width 1280) follow the published sizes."""
    pivots, channels = state["cond_tokens"].shape[1:]
    length = state["diffusion_pos_embed_learned"].shape[1] - pivots
    dim, width = state["class_emb.weight"].shape[1], state["cond_diffloss.net.x_embedder.proj.weight"].shape[0]
    return {
        "first": {
            "tokens": vectors(pivots, channels),
            "head": mar.head_config(state),
        },
        "second": {
            "tokens": vectors(length, channels),
            "head": {
                "type": "diffusion-transformer",
                "width": width,
                "depth": count(state, r"cond_diffloss\.net\.blocks\.(\d+)\."),
                "heads": max(1, width // 64),
                "mlp_ratio": mlp_ratio(state["cond_diffloss.net.blocks.0.mlp.fc1.weight"].shape[0], width),
            },
        },
        "classes": {"count": state["class_emb.weight"].shape[0]},
        "trunk": {
            "type": "mae-two-stage",
            "dim": dim,
            "encoder_depth": count(state, r"encoder_blocks\.(\d+)\."),
            "decoder_depth": count(state, r"decoder_blocks\.(\d+)\."),
            "heads": mar.heads(dim),
            "mlp_ratio": mlp_ratio(state["encoder_blocks.0.mlp.fc1.weight"].shape[0], dim),
            "prefix_length": state["encoder_pos_embed_learned"].shape[1] // 2 - pivots - length,
        },
    }


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    published = {(768, 512), (1024, 512), (1280, 768)}
    trunk, head = config["trunk"], config["second"]["head"]
    if (trunk["dim"], head["width"]) in published:
        return []
    first, second = (
        f"trunk.heads={trunk['heads']} for width {trunk['dim']}",
        f"heads={head['heads']} for width {head['width']}",
    )
    return [untold(f"{first}, second.head.{second}", "them")]


def rename(state: State) -> Renamed:
    """Our names; 1×1 convolutions become linear layers, tables of both stages get one row per stage."""
    out = Renamed()
    for name, value in state.items():
        if name == "cond_diffloss.net.c_pos_embed":
            out.ignored[name] = "loaded and never read by the official code"
        elif not mar.put_classes(out, state, name):
            new = by_rules(name, (*RULES, *FIRST_HEAD_RULES))
            out.put(name, new, _reshaped(new, value))
    return out


def _reshaped(name: str, value: Tensor) -> Tensor:
    if name in HALVES:
        return value.view(2, -1, value.shape[-1])
    if value.ndim == 4:
        return value.flatten(1)  # tables of tasks (2, 1, 1, 4D), convolutions (out, in, 1, 1)
    return value[0] if value.ndim == 3 and len(value) == 1 else value


register_format(
    "himar",
    Format(
        model="Cascade",
        trunk="mae-two-stage",
        config=config,
        notes=notes,
        rename=rename,
        ema="model_ema",
        tokenizer="kl16",
    ),
)
