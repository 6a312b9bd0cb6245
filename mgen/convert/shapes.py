"""What the shapes of official weights tell, in the form of a model configuration."""

import re

from mgen.convert.reading import State
from mgen.utils.config import Settings


def ids(side: int, vocab_size: int, *, global_tokens: int = 0) -> Settings:
    """The `tokens` section of ids on a square grid, global ones in front."""
    place = {"length": side * side + global_tokens, "grid": [side, side]}
    return {"kind": "index", **place, "vocab_size": vocab_size} | (
        {"global_tokens": global_tokens} if global_tokens else {}
    )


def vectors(side: int, channels: int) -> Settings:
    """The `tokens` section of vectors on a square grid; with 16 numbers they have the scale of KL16."""
    scale = 0.2325 if channels == 16 else None
    return {"kind": "vector", "length": side * side, "grid": [side, side], "channels": channels, "scale": scale}


def count(state: State, pattern: str) -> int:
    """Layers whose number is the group of `pattern`, a regular expression for the beginning of a name."""
    return 1 + max(int(m[1]) for name in state if (m := re.match(pattern, name)))
