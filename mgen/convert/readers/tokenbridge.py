"""TokenBridge: `tokenbridge_{large,huge}/checkpoint-last.pth` (keys `model` and `model_ema`), fp32; the trunk has MAR's names.

`model_ema` is made of the parameters alone: the level values stand in `model` only.
"""

import re
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mgen.convert.format import Format, register_format
from mgen.convert.readers import mar
from mgen.convert.reading import Renamed, State, by_rules, count, mlp_ratio, untold
from mgen.nn.levels import PUBLISHED_ORDER, gaussian_levels
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError

if TYPE_CHECKING:
    from mgen.generators import Cascade, Generator
    from mgen.tokenizers import Tokenizer

BUFFERS = ("reconstruction_values", "boundaries", "channel_mask")
TOP = {
    **{name: ours for name, ours in mar.TOP.items() if ours != "trunk.head_position"},
    "output_pos_embed": "trunk.head_position",
    "channel_embed": "head.slot_position",
    "timesteps_embeddings": "head.slot_condition",
}
RULES = (
    *(rule for rule in mar.RULES if "diffloss" not in rule[0]),
    (r"^condition_proj\.", "head.cond."),
    (r"^channel_blocks\.(\d+)\.adaLN_modulation\.1\.", r"head.blocks.\1.adaln."),
    (r"^channel_blocks\.", "head.blocks."),
    (r"^channel_norm\.", "head.norm."),
    (r"^channel_final\.adaLN_modulation\.1\.", "head.out_adaln."),
)
# One table or layer per slot of the head: ours are one, with the slots' rows one behind the other.
STACKED = {"token_embeddings": "head.tokens", "channel_heads": "head.out"}


def config(state: State) -> Settings:
    """The configuration as far as shapes tell it; the trunk's heads and the order of channels are those published."""
    width, channels = state["condition_proj.weight"].shape[0], state["z_proj.weight"].shape[1]
    made = mar.trunk_config(state, state["output_pos_embed"].shape[1])
    levels = {"form": "published", "low": -5.0, "high": 5.0, "span": 3.0}
    own = {"kind": "multi-index", "vocab_size": state["channel_heads.0.weight"].shape[0], "levels": levels}
    return {
        **made,
        "tokens": {**made["tokens"], **own},
        "head": {
            "type": "channels",
            "width": width,
            "depth": count(state, r"channel_blocks\.(\d+)\."),
            "heads": width // state["channel_blocks.0.attn.q_norm.weight"].shape[0],
            "mlp_ratio": mlp_ratio(state["channel_blocks.0.mlp.fc1.weight"].shape[0], width),
            "order": PUBLISHED_ORDER if channels == len(PUBLISHED_ORDER) else None,
        },
    }


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    out = mar.notes(config)
    if config["head"]["order"] is None:
        out.append(untold(f"{config['tokens']['channels']} channels, drawn in ascending order", "head.order=[…]"))
    return out


def rename(state: State, config: Settings) -> Renamed:
    """Our names; tables lose their leading 1, what is separate for every slot becomes one tensor.

    Args:
        config: its tokens.levels.span is needed for a file without levels, and to tell other levels from the published ones.

    Raises:
        MgenError: a mask that is not causal, or levels that do not ascend or are not as many as the head's.
    """
    out = Renamed()
    stacked: dict[str, list[tuple[int, str]]] = {}
    for name, value in state.items():
        if name in BUFFERS or mar.put_classes(out, state, name):
            continue
        if name in TOP:
            out.put(name, TOP[name], value.flatten(0, -2))
        elif m := re.fullmatch(r"(token_embeddings|channel_heads)\.(\d+)\.(weight|bias)", name):
            stacked.setdefault(f"{STACKED[m[1]]}.{m[3]}", []).append((int(m[2]), name))
        else:
            out.put(name, by_rules(name, RULES), value)
    for ours, parts in stacked.items():
        parts.sort()
        whole = torch.cat([state[name] for _, name in parts])
        for _, name in parts:
            out.put(name, ours, whole)
    _levels(state, out, config["tokens"]["levels"]["span"])
    return out


def _levels(state: State, out: Renamed, span: float) -> None:
    """The level values, and checks of the other buffers, which follow from them or from the number of channels."""
    levels = state["channel_heads.0.weight"].shape[0]
    expected, boundaries = gaussian_levels(levels, span=span)
    if "reconstruction_values" in state:
        values = state["reconstruction_values"]
        if not _near(values, expected):
            if len(values) != levels or (values.diff() <= 0).any():
                raise MgenError(f"reconstruction_values: expected {levels} ascending numbers, the levels of the head")
            out.notes.append(f"the levels are not the published ones of span {span:g}: they are taken from the file")
        out.put("reconstruction_values", "embedder.level_values", values)
    else:
        out.state["embedder.level_values"] = expected
        out.notes.append(f"no level values in the file: those of {levels} levels of span {span:g} are computed anew")
    if "boundaries" in state:
        other = "" if _near(state["boundaries"], boundaries) else " (not the published ones)"
        out.ignored["boundaries"] = f"cells of the levels, nothing is decided by them{other}"
    if "channel_mask" in state:
        mask = state["channel_mask"]
        if mask.device.type != "meta" and not torch.equal(mask < 0, torch.ones_like(mask, dtype=torch.bool).triu(1)):
            raise MgenError(
                "channel_mask is not causal, as TokenBridge's is: this is another head, which mgen does not know"
            )
        out.ignored["channel_mask"] = "causal, as the head is without it"


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.device.type == "meta" or bool(torch.allclose(a.float(), b, rtol=0, atol=1e-4)))


def quantized_for(generator: "Generator | Cascade", tokenizer: "Tokenizer") -> "Tokenizer":
    """`tokenizer`, or where it makes the numbers that the generator's ids stand for, a QuantizedKL of it with the same levels."""
    from mgen.tokenizers import QuantizedKL

    spec = generator.tokens
    if spec.kind != "multi-index" or spec.levels is None or tokenizer.spec.kind != "vector":
        return tokenizer
    made = QuantizedKL.wrap(
        tokenizer, levels=spec.vocab_size, channel_order=generator.head.config.order, **asdict(spec.levels)
    )
    made.level_values.copy_(generator.embedder.level_values)
    return made


register_format(
    "tokenbridge",
    Format(
        trunk="mae",
        config=config,
        notes=notes,
        rename=rename,
        ema="model_ema",
        buffers=BUFFERS,
        tokenizer="kl16",
    ),
)
