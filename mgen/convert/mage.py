"""MAGE: `mage-vitb-1600.pth`, `mage-vitl-1600.pth` (key `model`); the VQGAN lies in the same file under `vqgan.`."""

import re
from typing import Any

from mgen.convert.reading import Renamed, State
from mgen.generators.mage import CLASS_ROWS
from mgen.utils.errors import MgenError, check_choice

UNUSED = {
    "cls_token": "never read by the published model",
    "pos_embed": "never read by the published model: positions are token_emb.position_embeddings",
    "mask_token": "never read by the published model: its decoder fills masked positions with the class slot",
    "decoder_pos_embed": "never read by the published model: it uses decoder_pos_embed_learned",
    "patch_embed.": "of the ViT it was made from: tokens come from the VQGAN",
    "decoder_pred.": "of the MAE it was made from: logits come from mlm_layer",
    "token_emb.position_ids": "a constant, not a weight",
    "vqgan.": "the tokenizer in the same file: mgen convert reads it by itself",
}
RULES = (
    (r"^token_emb\.word_embeddings\.", "token_embed.word."),
    (r"^token_emb\.position_embeddings\.", "token_embed.position."),
    (r"^token_emb\.LayerNorm\.", "token_embed.norm."),
    (r"^blocks\.", "encoder_blocks."),
    (r"^norm\.", "encoder_norm."),
    (r"^decoder_pos_embed_learned$", "decoder_position"),
    (r"^mlm_layer\.fc\.", "head.fc."),
    (r"^mlm_layer\.ln\.", "head.norm."),
    (r"^mlm_layer\.bias$", "head.bias"),
)
HEADS = {768: (12, 16), 1024: (16, 16)}  # by encoder width, of the published models: encoder, decoder


def config(state: State) -> dict[str, Any]:
    """Constructor arguments that the shapes tell; the numbers of heads are those of the published sizes."""
    rows, dim = state["token_emb.word_embeddings.weight"].shape
    positions, width = state["decoder_pos_embed_learned"].shape[1:]
    encoder_heads, decoder_heads = HEADS.get(dim, (max(1, dim // 64), max(1, width // 48)))
    return {
        "side": round((positions - 1) ** 0.5),
        "codes": rows - CLASS_ROWS - 1,
        "encoder_dim": dim,
        "encoder_depth": _count(state, "blocks"),
        "encoder_heads": encoder_heads,
        "decoder_dim": width,
        "decoder_depth": _count(state, "decoder_blocks"),
        "decoder_heads": decoder_heads,
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / dim,
    }


def notes(config: dict[str, Any]) -> list[str]:
    """What a user should know of a conversion."""
    dim, heads = config["encoder_dim"], (config["encoder_heads"], config["decoder_heads"])
    if dim in HEADS:
        return []
    return [
        f"encoder_heads={heads[0]}, decoder_heads={heads[1]}: weights do not tell; give them if the model was trained otherwise"
    ]


def rename(state: State) -> Renamed:
    """Our names. The position table keeps the rows that the model's tokens use."""
    out = Renamed()
    length = state["decoder_pos_embed_learned"].shape[1]
    for name, value in state.items():
        reason = next((why for start, why in UNUSED.items() if name.startswith(start)), None)
        if reason is not None and name != "decoder_pos_embed_learned":
            out.ignored[name] = reason
            continue
        new = name
        for pattern, ours in RULES:
            new = re.sub(pattern, ours, new)
        if new == "token_embed.position.weight":
            if len(value) < length:
                raise MgenError(f"{name} has {len(value)} rows for {length} positions")
            value = value[:length]  # the published table has 257 rows whatever the number of tokens
        elif new == "decoder_position":
            value = value[0]
        out.put(name, new, value.flatten() if new == "head.bias" else value)
    return out


def sampler_settings(*, num_iter: int = 12, temp: float = 4.5, mask_schedule: str = "cosine") -> dict[str, Any]:
    """Settings of a ParallelSampler from the arguments of the official gen_img_uncond.py, under their official names."""
    check_choice("mask_schedule", mask_schedule, ("cosine",))
    return {
        "steps": num_iter,
        "order": "confidence",
        "schedule": "cosine",
        "temperature": 1.0,
        "confidence_temperature": {"kind": "linear", "start": temp, "end": 0.0, "at": "end"},
    }


def _count(state: State, part: str) -> int:
    return 1 + max(int(m[1]) for name in state if (m := re.match(rf"{part}\.(\d+)\.", name)))
