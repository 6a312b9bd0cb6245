"""Halton-MaskGIT: `ImageNet_{256,384}_{tiny,small,base,large}.pth`, weights under `model_state_dict`, fp32."""

import torch

from mgen.convert.format import Format, register_format
from mgen.convert.reading import Renamed, State, by_rules, count, ids, untold
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError

PUBLISHED_HEADS = {384: 6, 512: 6, 768: 12, 1024: 16, 1152: 16}
RULES = (
    (r"^cls_emb\.", "classes.vectors."),
    (r"^tok_emb\.", "embedder.table."),
    (r"^pos_emb\.", "trunk.position."),
    (r"^reg_tokens\.weight$", "trunk.register"),
    (r"^last_norm\.norm_final\.", "trunk.norm."),
    (r"^last_norm\.mlp\.1\.", "trunk.norm.adaln."),
    (r"^transformer\.layers\.(\d+)\.mlp\.1\.", r"trunk.blocks.\1.adaln."),
    (r"^transformer\.layers\.(\d+)\.ln([12])\.", r"trunk.blocks.\1.norm\2."),
    (r"^transformer\.layers\.(\d+)\.attn\.w[qkv]\.", r"trunk.blocks.\1.attn.qkv."),
    (r"^transformer\.layers\.(\d+)\.attn\.wo\.", r"trunk.blocks.\1.attn.proj."),
    (r"^transformer\.layers\.(\d+)\.ff\.w[13]\.", r"trunk.blocks.\1.mlp.fc1."),
    (r"^transformer\.layers\.(\d+)\.ff\.w2\.", r"trunk.blocks.\1.mlp.fc2."),
)
# Last part of an official layer's name → those of all layers that are packed with it, in our order.
PACKED = {name: group for group in (("wq", "wk", "wv"), ("w1", "w3")) for name in group}


def config(state: State) -> Settings:
    """The configuration as far as shapes tell it; heads follow the published sizes (64 numbers each elsewhere)."""
    if "in_proj.weight" in state:
        raise MgenError(
            "this Halton-MaskGIT joins 2×2 tokens (proj 2), which trunk adaln does not: only proj 1 is read"
        )
    rows, dim = state["tok_emb.weight"].shape
    heads = PUBLISHED_HEADS.get(dim, max(1, state["transformer.layers.0.attn.wq.weight"].shape[0] // 64))
    return {
        "tokens": ids(round(state["pos_emb.weight"].shape[0] ** 0.5), rows - 1),  # the last row is the mask
        "classes": {"count": state["cls_emb.weight"].shape[0] - 1},  # the last row is the null class
        "trunk": {
            "type": "adaln",
            "dim": dim,
            "depth": count(state, r"transformer\.layers\.(\d+)\."),
            "heads": heads,
            "hidden": state["transformer.layers.0.ff.w1.weight"].shape[0],
            "registers": state["reg_tokens.weight"].shape[0] if "reg_tokens.weight" in state else 0,
        },
        "head": {"type": "categorical", "table": "tied", "transform": False, "mask_drawn": True},
    }


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    dim, heads = config["trunk"]["dim"], config["trunk"]["heads"]
    known = PUBLISHED_HEADS.get(dim) == heads
    return [] if known else [untold(f"trunk.heads={heads} for width {dim}", "trunk.heads=N")]


def rename(state: State) -> Renamed:
    """Our names; q, k, v and the two layers in front of the MLP's product are packed into one each."""
    out = Renamed()
    for name, value in state.items():
        if name == "head.weight":
            if not torch.equal(value, state["tok_emb.weight"]):
                raise MgenError(
                    "head.weight and tok_emb.weight differ: this is no Halton-MaskGIT, where they are one tensor"
                )
            out.ignored[name] = "the same tensor as tok_emb.weight"
            continue
        prefix, layer, leaf = ["", *name.rsplit(".", 2)][-3:]
        if layer in PACKED:
            value = torch.cat([state[f"{prefix}.{other}.{leaf}"] for other in PACKED[layer]])
        out.put(name, by_rules(name, RULES), value)
    if "reg_tokens.weight" not in state:  # ours has the parameter all the same, without rows
        out.state["trunk.register"] = torch.zeros(0, state["tok_emb.weight"].shape[1])
    return out


register_format(
    "halton",
    Format(
        trunk="adaln",
        config=config,
        notes=notes,
        rename=rename,
        tokenizer="llamagen-vq",
        keys=("model_state_dict",),
    ),
)
