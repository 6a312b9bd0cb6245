"""PyTorch MaskGIT: `nnet_ema.pth` of AutoNAT, which ReCAP uses unchanged. A bare state dict of 314 fp32 tensors."""

import re

from mgen.convert.reading import Renamed, State
from mgen.convert.shapes import ids
from mgen.utils.config import Settings

RULES = (
    (r"^token_emb\.word_embeddings\.", "embedder.table."),
    (r"^token_emb\.position_embeddings\.", "trunk.position."),
    (r"^token_emb\.LayerNorm\.", "trunk.token_norm."),
    (r"^context_embed\.word_embeddings\.", "classes.vectors."),
    (r"^context_embed\.position_embeddings\.", "trunk.class_position."),
    (r"^context_embed\.LayerNorm\.", "trunk.class_norm."),
    (r"^in_blocks\.", "trunk.in_blocks."),
    (r"^mid_block\.", "trunk.mid_block."),
    (r"^out_blocks\.", "trunk.out_blocks."),
    (r"^norm\.", "trunk.norm."),
    (r"^mlm_layer\.fc\.", "head.fc."),
    (r"^mlm_layer\.ln\.", "head.norm."),
    (r"^mlm_layer\.bias$", "head.bias"),
)


def config(state: State) -> Settings:
    """The configuration as far as shapes tell it; the number of heads (8 as published) they do not."""
    state = _bare(state)
    rows, dim = state["token_emb.word_embeddings.weight"].shape
    length = state["token_emb.position_embeddings.weight"].shape[0]
    blocks = {int(m[1]) for name in state if (m := re.match(r"in_blocks\.(\d+)\.", name))}
    return {
        "tokens": ids(round(length**0.5), rows - 1),
        "classes": {
            "count": state["context_embed.word_embeddings.weight"].shape[0] - 1
        },  # the last row is the null class
        "trunk": {
            "type": "uvit",
            "dim": dim,
            "depth": 2 * len(blocks),
            "heads": 8,
            "mlp_ratio": state["mid_block.mlp.fc1.weight"].shape[0] / dim,
            "qkv_bias": "mid_block.attn.qkv.bias" in state,
            "skip": "out_blocks.0.skip_linear.weight" in state,
        },
        "head": {"type": "categorical", "table": "tied-detached"},
    }


def rename(state: State) -> Renamed:
    """Our names; the head's bias (1, 1, codes + 1) becomes flat."""
    out = Renamed()
    for name, value in state.items():
        new = name.removeprefix("module.")
        if "position_ids" in new:
            out.ignored[name] = "a constant, not a weight"
            continue
        for pattern, ours in RULES:
            new = re.sub(pattern, ours, new)
        out.put(name, new, value.flatten() if new == "head.bias" else value)
    return out


def official(name: str) -> str:
    """The official name of one of our parameters."""
    for pattern, new in RULES:
        if name.startswith(new):
            return re.sub(r"\\|\^|\$", "", pattern) + name[len(new) :]
    return name


def _bare(state: State) -> State:
    return {name.removeprefix("module."): value for name, value in state.items()}
