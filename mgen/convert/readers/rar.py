"""RAR: `rar_{b,l,xl,xxl}.bin`, a state dict without a wrapper, or `model.safetensors` of a hub folder, fp32."""

import torch

from mgen.convert.format import Format, register_format
from mgen.convert.reading import Renamed, State, by_rules, count
from mgen.generators.trunks.permuted import PUBLISHED_POSITIONS
from mgen.utils.config import Settings

RULES = (
    (r"^cls_token$", "trunk.start_row"),
    (r"^pos_embed$", "trunk.position"),
    (r"^target_aware_pos_embed$", "trunk.target"),
    (r"^timesteps_embeddings$", "trunk.place"),
    (r"^embeddings\.", "embedder.table."),
    (r"^blocks\.(\d+)\.adaLN_modulation\.1\.", r"trunk.blocks.\1.adaln."),
    (r"^blocks\.", "trunk.blocks."),
    (r"^adaln_before_head\.adaLN_modulation\.1\.", "trunk.norm.adaln."),
    (r"^lm_head\.weight$", "head.table.weight"),
    (r"^lm_head\.bias$", "head.bias"),
)


def config(state: State) -> Settings:
    """The configuration as far as shapes tell it. Tokens have a square grid where their number is a square."""
    vocab_size, dim = state["lm_head.weight"].shape
    length = state["pos_embed"].shape[1] - PUBLISHED_POSITIONS
    side = round(max(0, length) ** 0.5)
    tokens = {"kind": "index", "length": length, "vocab_size": vocab_size}
    head_dim = state["blocks.0.attn.q_norm.weight"].shape[0]
    return {
        "tokens": {**tokens, "grid": [side, side]} if side * side == length else tokens,
        # Rows of the table behind the ids: the mask, the classes, the null class.
        "classes": {"count": state["embeddings.weight"].shape[0] - vocab_size - 2, "table": "shared"},
        "trunk": {
            "type": "permuted",
            "dim": dim,
            "depth": count(state, r"blocks\.(\d+)\."),
            "heads": dim // head_dim,
            "hidden": state["blocks.0.mlp.fc1.weight"].shape[0],
            "spare_rows": True,
        },
        "head": {"type": "categorical", "table": "own", "transform": False, "bias": True},
    }


def rename(state: State) -> Renamed:
    """Our names; tables and the start row lose their leading dimension, the table of ids the row of a mask that nothing reads."""
    out, vocab_size = Renamed(), state["lm_head.weight"].shape[0]
    for name, value in state.items():
        if name == "attn_mask":
            out.ignored[name] = "a buffer that is made anew, not a weight"
            continue
        if name == "embeddings.weight":
            value = torch.cat([value[:vocab_size], value[vocab_size + 1 :]])
            out.notes.append(f"row {vocab_size} of {name}, a mask that nothing reads, was left out")
        if name == "cls_token":
            value = value.flatten()
        elif value.ndim == 3:  # tables (1, rows, D)
            value = value.squeeze(0)
        out.put(name, by_rules(name, RULES), value)
    return out


register_format(
    "rar",
    Format(
        trunk="permuted",
        config=config,
        rename=rename,
        tokenizer="maskgit-vqgan",
    ),
)
