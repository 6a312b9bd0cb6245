"""TiTok's generators: `generator_titok_{l32,b64,s128}_imagenet`, a folder of the hub (model.safetensors, config.json) or a bare `.bin`.

ImageBert (L32, B64) is a BERT with transformers' names, UViTBert (S128) a U-ViT. Both have one table for codes, the mask, classes and
the null class, in this order; ours has the mask behind the others.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from mgen.convert.format import Format, register_format
from mgen.convert.reading import Renamed, Rules, State, by_rules, count, mlp_ratio, untold
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.reading import read_json
from mgen.utils.schema import Size, build, schema

PUBLISHED_HEADS = {768: 16, 1024: 16}
WORDS, PLACES = "model.embeddings.word_embeddings.weight", "model.embeddings.position_embeddings.weight"
TYPES = "model.embeddings.token_type_embeddings.weight"
BERT_RULES: Rules = (
    (r"^model\.embeddings\.LayerNorm\.", "trunk.norm."),
    (r"^model\.encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"trunk.blocks.\1.attn.proj."),
    (r"^model\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.", r"trunk.blocks.\1.norm1."),
    (r"^model\.encoder\.layer\.(\d+)\.intermediate\.dense\.", r"trunk.blocks.\1.mlp.fc1."),
    (r"^model\.encoder\.layer\.(\d+)\.output\.dense\.", r"trunk.blocks.\1.mlp.fc2."),
    (r"^model\.encoder\.layer\.(\d+)\.output\.LayerNorm\.", r"trunk.blocks.\1.norm2."),
    (r"^model\.lm_head\.weight$", "head.table.weight"),
    (r"^model\.lm_head\.bias$", "head.bias"),
)
UVIT_RULES: Rules = (
    (r"^(in_blocks|mid_block|out_blocks|norm)\.", r"trunk.\1."),
    (r"^lm_head\.weight$", "head.table.weight"),
    (r"^lm_head\.bias$", "head.bias"),
)


@schema(extra=True)
class GeneratorSection:
    """`model.generator` of a config.json, as far as weights do not tell it."""

    num_attention_heads: Size


def beside(path: Path) -> Settings:
    """The number of heads from a config.json next to the weights; nothing where there is none of a generator."""
    file = path.parent / "config.json"
    data = read_json(file) if file.is_file() else None
    for key in ("model", "generator"):
        data = data.get(key) if isinstance(data, dict) else None
    if data is None:
        return {}
    return {"trunk": {"heads": build(GeneratorSection, data, f"{file}: model.generator.").num_attention_heads}}


def config(state: State) -> Settings:
    """The configuration as far as shapes tell it; heads follow the published sizes unless a config.json lies beside."""
    bert = WORDS in state
    rows, dim = state[WORDS if bert else "embeddings.weight"].shape
    vocab_size = len(state["model.lm_head.weight" if bert else "lm_head.weight"])
    if rows < vocab_size + 3:
        raise MgenError(
            f"a table of {rows} rows for {vocab_size} codes: this is no TiTok generator, which has rows for a mask, classes and a null "
            "class"
        )
    length = (len(state[PLACES]) if bert else state["pos_embed"].shape[1]) - 1
    heads = PUBLISHED_HEADS.get(dim, max(1, dim // 64))
    return {
        "tokens": {"kind": "index", "length": length, "vocab_size": vocab_size},
        "classes": {"count": rows - vocab_size - 2, "table": "shared"},
        "trunk": {"dim": dim, "heads": heads, **(_bert(state) if bert else _uvit(state, dim))},
        "head": {"type": "categorical", "table": "own", "transform": False},
    }


def _bert(state: State) -> Settings:
    return {
        "type": "bert",
        "depth": count(state, r"model\.encoder\.layer\.(\d+)\."),
        "hidden": len(state["model.encoder.layer.0.intermediate.dense.weight"]),
        "approximate": "none",
    }


def _uvit(state: State, dim: int) -> Settings:
    return {
        "type": "uvit",
        "depth": 2 * count(state, r"in_blocks\.(\d+)\.") if any(n.startswith("in_blocks.") for n in state) else 0,
        "mlp_ratio": mlp_ratio(len(state["mid_block.mlp.fc1.weight"]), dim),
        "qkv_bias": "mid_block.attn.qkv.bias" in state,
        "embed_norm": False,
        "dropout": 0.0,
    }


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    dim, heads = config["trunk"]["dim"], config["trunk"]["heads"]
    known = PUBLISHED_HEADS.get(dim) == heads
    return [] if known else [untold(f"trunk.heads={heads} for width {dim}", "trunk.heads=N")]


def rename(state: State) -> Renamed:
    """Our names; the mask's row goes to the end of the table, q, k and v become one, the row of token type 0 joins every position."""
    return _rename_bert(state) if WORDS in state else _rename_uvit(state)


def _mask_last(table: Tensor, vocab_size: int) -> Tensor:
    """The table with the row of the mask, which stands behind the codes, at its end."""
    return torch.cat([table[:vocab_size], table[vocab_size + 1 :], table[vocab_size : vocab_size + 1]])


def _rename_bert(state: State) -> Renamed:
    out = Renamed()
    vocab_size = len(state["model.lm_head.weight"])
    for name, value in state.items():
        if name == WORDS:
            out.put(name, "embedder.table.weight", _mask_last(value, vocab_size))
        elif name == PLACES:  # official code adds the type's row to all of them, each time
            out.put(name, "trunk.position.weight", value.float() + state[TYPES][:1].float())
        elif name == TYPES:
            out.names[name] = "trunk.position.weight"
        elif name == "model.embeddings.position_ids":
            out.ignored[name] = "a constant, not a weight"
        elif m := re.fullmatch(
            r"(model\.encoder\.layer\.(\d+)\.attention\.self\.)(query|key|value)\.(weight|bias)", name
        ):
            parts = [state[f"{m[1]}{part}.{m[4]}"] for part in ("query", "key", "value")]
            out.put(name, f"trunk.blocks.{m[2]}.attn.qkv.{m[4]}", torch.cat(parts))
        else:
            out.put(name, by_rules(name, BERT_RULES), value)
    return out


def _rename_uvit(state: State) -> Renamed:
    out = Renamed()
    for name, value in state.items():
        if name == "embeddings.weight":
            out.put(name, "embedder.table.weight", _mask_last(value, len(state["lm_head.weight"])))
        elif name == "pos_embed":  # the class token stands in front
            out.put(name, "trunk.class_position.weight", value[0, :1])
            out.put(name, "trunk.position.weight", value[0, 1:])
        else:
            out.put(name, by_rules(name, UVIT_RULES), value)
    return out


register_format(
    "titok-generator",
    Format(
        trunk="bert",  # or uvit
        config=config,
        notes=notes,
        rename=rename,
        beside=beside,
        tokenizer="titok-vq",
    ),
)
