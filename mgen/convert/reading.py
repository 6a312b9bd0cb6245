"""What all converters use: sizes from shapes, new names by rules, and the result."""

import math
import re
from dataclasses import dataclass, field

from torch import Tensor

from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.wrappers import State as State

Rules = tuple[tuple[str, str], ...]
# The embedding and the head of a BERT, which MaskGIT's PyTorch ports share.
BERT: Rules = (
    (r"^(?:token_emb|x_embedder)\.word_embeddings\.", "embedder.table."),
    (r"^(?:token_emb|x_embedder)\.position_embeddings\.", "trunk.position."),
    (r"^(?:token_emb|x_embedder)\.LayerNorm\.", "trunk.token_norm."),
    (r"^mlm_layer\.fc\.", "head.fc."),
    (r"^mlm_layer\.ln\.", "head.norm."),
    (r"^mlm_layer\.bias$", "head.bias"),
)
# Layers of an attention, by LDM and by diffusers before 2023 → diffusers.
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
ATTENTION |= {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass
class Renamed:
    """Our state, the official name → our name of every tensor, the ignored ones with the reason, and notes for the user."""

    state: State = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, official: str, ours: str, value: Tensor) -> None:
        self.state[ours] = value.contiguous()
        self.names[official] = ours


def by_rules(name: str, rules: Rules) -> str:
    """The name after all rules, pairs of a regular expression and its replacement, in their order."""
    for pattern, ours in rules:
        name = re.sub(pattern, ours, name)
    return name


def attention(name: str, value: Tensor) -> tuple[str, Tensor]:
    """diffusers' name of a layer of an autoencoder's attention, and its 1×1 convolution as a linear layer; others unchanged."""
    if (m := re.match(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)$", name)) and m[2] in ATTENTION:
        name = f"{m[1]}.{ATTENTION[m[2]]}.{m[3]}"
    return name, value[:, :, 0, 0] if ".attentions." in name and value.ndim == 4 else value


def untold(what: str, give: str) -> str:
    """The note on settings that were taken from the published sizes."""
    return f"{what}: weights do not tell; give {give} if the model was trained otherwise"


def count(state: State, pattern: str) -> int:
    """Layers whose number is the group of `pattern`, a regular expression for the beginning of a name."""
    layers = 1 + max(int(m[1]) for name in state if (m := re.match(pattern, name)))
    if layers > len(state):
        raise MgenError(
            f"names that begin with {pattern} count up to {layers - 1}, in {len(state)} tensors: some are missing"
        )
    return layers


def ids(side: int, vocab_size: int, *, global_tokens: int = 0) -> Settings:
    """The `tokens` section of ids on a square grid, global ones in front."""
    place = {"length": side * side + global_tokens, "grid": [side, side]}
    own = {"global_tokens": global_tokens} if global_tokens else {}
    return {"kind": "index", **place, "vocab_size": vocab_size, **own}


def vectors(length: int, channels: int) -> Settings:
    """The `tokens` section of vectors on a square grid, or without one where they fill none; with 16 numbers with the scale of KL16."""
    scale, side = 0.2325 if channels == 16 else None, math.isqrt(length)
    grid = [side, side] if side * side == length else None
    return {"kind": "vector", "length": length, "grid": grid, "channels": channels, "scale": scale}


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio by which the hidden layer of an MLP of this width has just this size, though a product of floats is rounded down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
