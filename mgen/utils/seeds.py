"""Counter-based seeds: derived from what they are for, so that nothing depends on processes, batch size or restarts."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def fold(*parts: int | str) -> int:
    """A 63-bit seed from integers and names, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """A generator seeded by `fold(*parts)`. The same seed gives other numbers on a GPU than on a CPU."""
    import torch

    return torch.Generator(device).manual_seed(fold(*parts))
