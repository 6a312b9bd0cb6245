"""LlamaGen's `c2i_{B,L,XL,XXL,3B}_{256,384}.pt` and Hita's `GPT-{B,L,XL,XXL,2B}-{50,100,250,300}e.pt`, fp32."""

import re

import torch

from mgen.convert.format import Format, register_format
from mgen.convert.reading import Renamed, State, by_rules, count, ids, untold
from mgen.utils.config import Settings

PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 1920: 32, 3200: 32}
BOTH_SIDES = (768, 1024)  # LlamaGen-B and -L are published for 256 and for 384 px, the others for 384 alone
RULES = (
    (r"^cls_embedding\.embedding_table\.", "classes.vectors."),
    (r"^slot_pos\.weight$", "trunk.global_position"),
    (r"^layers\.(\d+)\.attention\.wqkv\.", r"trunk.blocks.\1.attn.qkv."),
    (r"^layers\.(\d+)\.attention\.wo\.", r"trunk.blocks.\1.attn.proj."),
    (r"^layers\.(\d+)\.feed_forward\.w2\.", r"trunk.blocks.\1.mlp.fc2."),
    (r"^layers\.(\d+)\.attention_norm\.", r"trunk.blocks.\1.norm1."),
    (r"^layers\.(\d+)\.ffn_norm\.", r"trunk.blocks.\1.norm2."),
    (r"^norm\.", "trunk.norm."),
    (r"^output\.", "head.table."),
)
# Buffers that some files carry; all are made from the configuration, or hold the last run's keys and values.
STALE = re.compile(r"freqs_cis|causal_mask|kv_cache")


def config(state: State) -> Settings:
    """The configuration as far as shapes tell it; heads and side follow the published sizes."""
    vocab_size, dim = state["tok_embeddings.weight"].shape
    global_tokens = state["slot_pos.weight"].shape[0] if "slot_pos.weight" in state else 0
    side = 21 if global_tokens else 16 if dim in BOTH_SIDES or dim not in PUBLISHED_HEADS else 24
    return {
        "tokens": ids(side, vocab_size, global_tokens=global_tokens),
        "classes": {"count": len(state["cls_embedding.embedding_table.weight"]) - 1},  # the last row is the null class
        "embedder": {"type": "lookup", "last_global": "published" if global_tokens else "consistent"},
        "trunk": {
            "type": "causal",
            "dim": dim,
            "depth": count(state, r"layers\.(\d+)\."),
            "heads": PUBLISHED_HEADS.get(dim, max(1, dim // 64)),
            "hidden": state["layers.0.feed_forward.w1.weight"].shape[0],
        },
        "head": {"type": "categorical", "table": "own", "transform": False, "bias": False},
    }


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    out, tokens, trunk = [], config["tokens"], config["trunk"]
    if not tokens.get("global_tokens") and trunk["dim"] in BOTH_SIDES and tokens["length"] == 256:
        out.append("side=16, the model for 256 px; weights do not tell: give side=24 for the one for 384 px")
    if PUBLISHED_HEADS.get(trunk["dim"]) != trunk["heads"]:
        given = f"trunk.heads={trunk['heads']}, grid {tokens['grid']} for width {trunk['dim']}"
        out.append(untold(given, "trunk.heads=N and side=N"))
    return out


def rename(state: State) -> Renamed:
    """Our names; w1 and w3 of the gated MLP are packed into one layer, both codebooks' tables into one."""
    out = Renamed()
    for name, value in state.items():
        if STALE.search(name):
            out.ignored[name] = "a buffer that is made anew, not a weight"
        elif name in ("slot_embeddings.weight", "tok_embeddings.weight"):
            tables = [state[n] for n in ("slot_embeddings.weight", "tok_embeddings.weight") if n in state]
            out.put(name, "embedder.table.weight", torch.cat(tables))
        elif m := re.match(r"layers\.(\d+)\.feed_forward\.w([13])\.weight$", name):
            pair = [state[f"layers.{m[1]}.feed_forward.w{i}.weight"] for i in (1, 3)]
            out.put(name, f"trunk.blocks.{m[1]}.mlp.fc1.weight", torch.cat(pair))
        else:
            out.put(name, by_rules(name, RULES), value)
    return out


register_format(
    "hita-gpt",
    Format(
        trunk="causal",
        config=config,
        notes=notes,
        rename=rename,
        ema="ema",
        tokenizer="hita",
    ),
)

register_format(
    "llamagen",
    Format(
        trunk="causal",
        config=config,
        notes=notes,
        rename=rename,
        tokenizer="llamagen-vq",
    ),
)
