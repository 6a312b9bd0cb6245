"""xAR: `xAR-{B,L,H}.pth`, a bare state dict, and training checkpoints (keys `model` and `model_ema`), fp32."""

import torch
from torch import Tensor

from mgen.convert.format import Format, register_format
from mgen.convert.reading import Renamed, State, by_rules, count, untold, vectors
from mgen.nn.causal import rotary_table
from mgen.nn.windows import Entities
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError

CELL = 8  # literal in the official code, like the 4 cells
PUBLISHED_WIDTHS = (768, 1024, 1280)
POSITIONS = {
    "encoder_pos_embed_learned": "trunk.encoder_position",
    "decoder_pos_embed_learned": "trunk.decoder_position",
}
RULES = (
    (r"^z_proj\.", "embedder.inner.proj."),
    (r"^z_proj_ln\.", "trunk.token_norm."),
    (r"^class_emb\.", "classes.vectors."),
    (r"^time_embed\.mlp\.0\.", "trunk.time.fc1."),
    (r"^time_embed\.mlp\.2\.", "trunk.time.fc2."),
    (r"^pred\.", "head.out."),
    (r"^(encoder|decoder)_(embed|blocks|norm)\.", r"trunk.\1_\2."),
)


def config(state: State) -> Settings:
    """The configuration as far as shapes tell it; heads (64 numbers each, 80 at width 1280) follow the published sizes."""
    dim, channels = state["z_proj.weight"].shape
    length = state["encoder_pos_embed_learned"].shape[1]
    side = round(length**0.5)
    halves = {f"{half}_depth": count(state, rf"{half}_blocks\.(\d+)\.") for half in ("encoder", "decoder")}
    heads = {f"{half}_heads": _heads(state, half, dim) for half in ("encoder", "decoder")}
    hidden = state["encoder_blocks.0.mlp.fc1_g.weight"].shape[0]
    own = {"hidden": hidden, "size": [CELL, CELL], "rotary": _rotary(state, side)}
    return {
        "tokens": vectors(side * side, channels),
        "classes": {"count": state["class_emb.weight"].shape[0] - 1},
        "trunk": {"type": "block-causal", "dim": dim, **halves, **heads, **own},
        "head": {"type": "velocity"},
    }


def _rotary(state: State, side: int) -> str:
    """Whether the tables, if the file holds them, go by place in the sequence ("sequence") or by cell ("grid", as published)."""
    turn = state.get("encoder_blocks.0.attn.rope.freqs_cos")
    in_raster = turn is not None and _near(turn, _angles((side, side), turn.shape[1], "cos", cells=None))
    return "sequence" if in_raster else "grid"


def _heads(state: State, half: str, dim: int) -> int:
    """From the width of the rotary tables, where the file holds them."""
    turn = state.get(f"{half}_blocks.0.attn.rope.freqs_cos")
    return (16 if dim == 1280 else max(1, dim // 64)) if turn is None else dim // turn.shape[1]


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    trunk = config["trunk"]
    if trunk["dim"] in PUBLISHED_WIDTHS:
        return []
    own = f"trunk.encoder_heads={trunk['encoder_heads']} and trunk.decoder_heads={trunk['decoder_heads']}"
    return [untold(f"{own} for width {trunk['dim']}", "both")]


def rename(state: State, *, config: Settings) -> Renamed:
    """Our names. Both layers in front of a gate are one; modulations go shift, scale, gate; positions go row by row.

    Raises:
        MgenError: rotary tables or a mask that are not those of the published models.
    """
    out, trunk, grid = Renamed(), config["trunk"], tuple(config["tokens"]["grid"])
    cells = Entities(grid, tuple(trunk["size"]))
    for name, value in state.items():
        if name in POSITIONS:
            out.put(name, POSITIONS[name], cells.scatter(value.unflatten(1, (cells.count, cells.parts)))[0])
        elif ".attn.rope." in name:
            half = name.split("_", 1)[0]
            order = cells if trunk["rotary"] == "grid" else None
            width = trunk["dim"] // trunk[f"{half}_heads"]
            if not _near(value, _angles(grid, width, name.rpartition("freqs")[2].lstrip("_"), cells=order)):
                raise MgenError(
                    f"{name} holds other angles than those of heads of width {width}, rotary {trunk['rotary']}: give other "
                    f"trunk.{half}_heads or trunk.rotary"
                )
            out.ignored[name] = "rotary angles, computed from the configuration; checked"
        elif name == "mask":
            _check_mask(value, cells.count)
            out.ignored[name] = "the block-causal mask, computed from the configuration; checked"
        elif ".mlp.fc1_g." in name:
            ours = by_rules(name, RULES).replace("fc1_g", "fc1")
            out.put(name, ours, torch.cat([value, state[name.replace("fc1_g", "fc1_x")]]))
        elif ".mlp.fc1_x." in name:
            out.names[name] = by_rules(name, RULES).replace("fc1_x", "fc1")
        elif ".ada_lin.1." in name:
            gate1, gate2, scale1, scale2, shift1, shift2 = value.chunk(6)
            ours = by_rules(name, RULES).replace("ada_lin.1", "adaln")
            out.put(name, ours, torch.cat([shift1, scale1, gate1, shift2, scale2, gate2]))
        else:
            out.put(name, by_rules(name, RULES), value)
    return out


def _angles(grid: tuple[int, int], width: int, kind: str, *, cells: Entities | None) -> Tensor:
    """The official table of a kind: "cos" or "sin" (L, d), row by row or cell by cell; "" the speeds (d / 4,)."""
    if not kind:
        return 10000.0 ** (-torch.arange(0, width // 2, 2).float() / (width // 2))
    table = rotary_table(grid, width)[..., ("cos", "sin").index(kind)].repeat_interleave(2, dim=-1)
    return table if cells is None else cells.gather(table.unsqueeze(0)).flatten(0, 2)


def _near(value: Tensor, expected: Tensor) -> bool:
    return value.shape == expected.shape and torch.allclose(value.float(), expected, atol=1e-3)


def _check_mask(value: Tensor, count: int) -> None:
    cell = torch.arange(value.shape[-1]) * count // value.shape[-1]
    readable = value[0, 0] == 0
    if not torch.equal(readable, cell.unsqueeze(1) >= cell):
        raise MgenError(f"mask is not block-causal over {count} cells, as xAR's is: this is another model")


register_format(
    "xar",
    Format(
        trunk="block-causal",
        config=config,
        notes=notes,
        rename=rename,
        ema="model_ema",
        tokenizer="kl16",
    ),
)
