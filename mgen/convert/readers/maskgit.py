"""PyTorch MaskGIT: `nnet_ema.pth` of AutoNAT, which ReCAP uses unchanged. A bare state dict of 314 fp32 tensors."""

from mgen.convert.format import Format, register_format
from mgen.convert.reading import BERT, Renamed, State, by_rules, count, ids, mlp_ratio
from mgen.utils.config import Settings

RULES = (
    *BERT,
    (r"^context_embed\.word_embeddings\.", "classes.vectors."),
    (r"^context_embed\.position_embeddings\.", "trunk.class_position."),
    (r"^context_embed\.LayerNorm\.", "trunk.class_norm."),
    (r"^(in_blocks|mid_block|out_blocks|norm)\.", r"trunk.\1."),
)


def config(state: State) -> Settings:
    """The configuration as far as shapes tell it; the number of heads (8 as published) they do not."""
    rows, dim = state["token_emb.word_embeddings.weight"].shape
    length = state["token_emb.position_embeddings.weight"].shape[0]
    return {
        "tokens": ids(round(length**0.5), rows - 1),
        "classes": {"count": len(state["context_embed.word_embeddings.weight"]) - 1},  # the last row is the null class
        "trunk": {
            "type": "uvit",
            "dim": dim,
            "depth": 2 * count(state, r"in_blocks\.(\d+)\."),
            "heads": 8,
            "mlp_ratio": mlp_ratio(state["mid_block.mlp.fc1.weight"].shape[0], dim),
            "qkv_bias": "mid_block.attn.qkv.bias" in state,
            "skip": "out_blocks.0.skip_linear.weight" in state,
        },
        "head": {"type": "categorical", "table": "tied-detached"},
    }


def rename(state: State) -> Renamed:
    """Our names; the head's bias (1, 1, codes + 1) becomes flat."""
    out = Renamed()
    for name, value in state.items():
        if "position_ids" in name:
            out.ignored[name] = "a constant, not a weight"
            continue
        new = by_rules(name, RULES)
        out.put(name, new, value.flatten() if new == "head.bias" else value)
    return out


register_format(
    "maskgit",
    Format(
        trunk="uvit",
        config=config,
        rename=rename,
        tokenizer="maskgit-vqgan",
        keys=("state_dict",),
    ),
)
