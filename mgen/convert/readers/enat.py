"""ENAT-L: `nnet_ema.pth` (256 px) and `nnet_ema_512.pth`, bare state dicts of 358 fp32 tensors."""

import re

from mgen.convert.format import Format, register_format
from mgen.convert.reading import BERT, Renamed, State, by_rules, count, ids, untold
from mgen.utils.config import Settings

PUBLISHED = {1024: (2, 16)}  # by width: decoder blocks, heads
RULES = (
    *BERT,
    (r"^y_embedder\.embedding_table\.", "classes.vectors."),
    (r"^prev_proj\.norm\.", "trunk.carry_norm."),
    (r"^prev_proj\.mlp\.", "trunk.carry_mlp."),
    (r"\.attn\.q\.", ".q."),
    (r"\.attn\.kv\.A\.", ".kv_context."),
    (r"\.attn\.kv\.B\.", ".kv."),
    (r"\.attn\.proj\.", ".proj."),
    (r"\.adaLN_modulation\.1\.", ".adaln."),
    (r"^norm\.", "trunk.norm."),
)


def config(state: State) -> Settings:
    """The configuration as far as shapes tell it; the split of the blocks and the heads are those of the published size."""
    rows, dim = state["x_embedder.word_embeddings.weight"].shape
    decoder, heads = PUBLISHED.get(dim, (2, max(1, dim // 64)))
    return {
        "tokens": ids(round(state["x_embedder.position_embeddings.weight"].shape[0] ** 0.5), rows - 1),
        "classes": {"count": state["y_embedder.embedding_table.weight"].shape[0] - 1},  # the last row is the null class
        "trunk": {
            "type": "enat",
            "dim": dim,
            "encoder_depth": count(state, r"blocks\.(\d+)\.") - decoder,
            "decoder_depth": decoder,
            "heads": heads,
        },
        "head": {"type": "categorical", "table": "tied-detached"},
    }


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    trunk = config["trunk"]
    if trunk["dim"] in PUBLISHED:
        return []
    given = f"trunk.heads={trunk['heads']}, {trunk['encoder_depth']} + {trunk['decoder_depth']} blocks"
    return [untold(given, "trunk.heads=N, trunk.encoder_depth=N and trunk.decoder_depth=N")]


def rename(state: State, config: Settings) -> Renamed:
    """Our names: the blocks are one list in the file, the first ones are the encoder's."""
    out = Renamed()
    encoder = config["trunk"]["encoder_depth"]
    for name, value in state.items():
        new = by_rules(name, RULES)
        if new.startswith("prev_embedder."):
            out.ignored[name] = "never read by the published model"
            continue
        if m := re.match(r"blocks\.(\d+)\.(.*)", new):
            i = int(m[1])
            half, number = ("encoder", i) if i < encoder else ("decoder", i - encoder)
            new = f"trunk.{half}_blocks.{number}.{m[2]}"
        out.put(name, new, value.flatten() if new == "head.bias" else value)
    return out


register_format(
    "enat",
    Format(
        trunk="enat",
        config=config,
        notes=notes,
        rename=rename,
        tokenizer="maskgit-vqgan",
        keys=("state_dict",),
    ),
)
