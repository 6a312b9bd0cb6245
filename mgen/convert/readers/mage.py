"""MAGE: `mage-vitb-1600.pth`, `mage-vitl-1600.pth` (key `model`); the VQGAN lies in the same file under `vqgan.`."""

from mgen.convert.format import Format, register_format
from mgen.convert.reading import BERT, Renamed, State, by_rules, count, ids, mlp_ratio, untold
from mgen.generators.classes import MAGE_ROW, MAGE_ROWS
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError

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
    *BERT,
    (r"^blocks\.", "trunk.encoder_blocks."),
    (r"^norm\.", "trunk.encoder_norm."),
    (r"^decoder_(embed|blocks|norm)\.", r"trunk.decoder_\1."),
    (r"^decoder_pos_embed_learned$", "trunk.decoder_position"),
)
HEADS = {768: (12, 16), 1024: (16, 16)}  # by encoder width, of the published models: encoder, decoder


def config(state: State) -> Settings:
    """The configuration as far as shapes tell it; the numbers of heads are those of the published sizes."""
    rows, dim = state["token_emb.word_embeddings.weight"].shape
    positions, width = state["decoder_pos_embed_learned"].shape[1:]
    encoder_heads, decoder_heads = HEADS.get(dim, (max(1, dim // 64), max(1, width // 48)))
    return {
        "tokens": ids(round((positions - 1) ** 0.5), rows - MAGE_ROWS - 1),
        "classes": {"count": 0, "null_class": False, "table": "shared", "rows": MAGE_ROWS, "row": MAGE_ROW},
        "trunk": {
            "type": "mage",
            "encoder_dim": dim,
            "encoder_depth": count(state, r"blocks\.(\d+)\."),
            "encoder_heads": encoder_heads,
            "decoder_dim": width,
            "decoder_depth": count(state, r"decoder_blocks\.(\d+)\."),
            "decoder_heads": decoder_heads,
            "mlp_ratio": mlp_ratio(state["blocks.0.mlp.fc1.weight"].shape[0], dim),
        },
        "head": {"type": "categorical", "table": "tied-detached"},
    }


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    trunk = config["trunk"]
    if trunk["encoder_dim"] in HEADS:
        return []
    return [untold(", ".join(f"trunk.{key}={trunk[key]}" for key in ("encoder_heads", "decoder_heads")), "them")]


def rename(state: State) -> Renamed:
    """Our names. The position table keeps the rows that the model's tokens use."""
    out = Renamed()
    length = state["decoder_pos_embed_learned"].shape[1]
    for name, value in state.items():
        reason = next((why for start, why in UNUSED.items() if name.startswith(start)), None)
        if reason is not None and name != "decoder_pos_embed_learned":
            out.ignored[name] = reason
            continue
        new = by_rules(name, RULES)
        if new == "trunk.position.weight":
            if len(value) < length:
                raise MgenError(f"{name} has {len(value)} rows for {length} positions")
            value = value[:length]  # the published table has 257 rows whatever the number of tokens
        elif new == "trunk.decoder_position":
            value = value[0]
        out.put(name, new, value.flatten() if new == "head.bias" else value)
    return out


register_format(
    "mage",
    Format(
        trunk="mage",
        config=config,
        notes=notes,
        rename=rename,
        tokenizer="maskgit-vqgan",
        tokenizer_inside="vqgan.",
    ),
)
