"""What a trunk keeps between the forward passes of one run: keys and values, and whatever else its own cache class names.

A *full* pass sees all tokens. Where *cached steps* follow, it leaves the keys and values of every attention layer in place; a cached
step then computes the rows of a few positions, overwrites their keys and values and attends to all (Liu et al., "ReCAP", arXiv
2505.19089). Notation: B batch, H heads, d head width, N keys, n rows computed anew.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CachedStep:
    """Which positions a cached step computes anew, and whose context it returns.

    Args:
        group: positions (B, G) decoded between two full passes, in the order in which they are revealed.
        done: how many of them, the first ones, already have their token; the others are masked.
        fresh, asked: ranges (from, to) in the group: that is computed anew; inside it, whose context is returned.
        prefix: compute the prefix rows (class token, buffer, register) anew too, as published; False keeps them.
        finished: context is returned as heads take it; False: as `Trunk.to_context` takes it.
    """

    group: Tensor
    done: int
    fresh: tuple[int, int]
    asked: tuple[int, int]
    prefix: bool = True
    finished: bool = True

    @property
    def positions(self) -> Tensor:
        """Positions (B, n) that are computed anew."""
        return self.group[:, slice(*self.fresh)]

    @property
    def drawn(self) -> int:
        """How many of `positions`, the first ones, have their token."""
        return max(0, min(self.done, self.fresh[1]) - self.fresh[0])

    @property
    def known(self) -> Tensor:
        """Which of `positions` have their token, bool (B, n)."""
        return span(self.positions.shape[1], self.positions) < self.drawn

    def rows(self, prefix_length: int) -> Tensor:
        """Rows computed anew (B, n), or (B, S + n) with the prefix, in a sequence with S prefix rows in front of the tokens."""
        rows = self.positions + prefix_length
        return torch.cat([span(prefix_length, rows), rows], dim=1) if self.prefix else rows

    def wanted(self, prefix_length: int) -> slice:
        """Where in `rows(prefix_length)` context is asked for."""
        front = (prefix_length if self.prefix else 0) - self.fresh[0]
        return slice(front + self.asked[0], front + self.asked[1])


class KVCache:
    """Keys and values (B, H, N, d) of one attention layer, stored by a full pass and overwritten in place by cached steps."""

    k: Tensor
    v: Tensor
    room = 0  # rows kept free behind those of a full pass, for tokens that are not there yet

    def store(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep k and v (B, H, N, d); returns them."""
        self.k, self.v = k, v
        if self.room:
            free = k.new_empty(*k.shape[:2], self.room, k.shape[3])
            self.k, self.v = torch.cat([k, free], dim=2), torch.cat([v, free], dim=2)
        return k, v

    def put(self, k: Tensor, v: Tensor, rows: Tensor, until: int | None = None) -> tuple[Tensor, Tensor]:
        """Write k and v (B, H, n, d) at rows (B, n); returns all keys and values, or the first `until` of them.

        A batch smaller than the stored one stands for its first images (class rows without the null rows of guidance).
        """
        index = rows[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        out = []
        for kept, new in ((self.k, k), (self.v, v)):
            kept = kept[: len(new)]
            kept.scatter_(2, index, new.to(kept.dtype))
            out.append(kept if until is None else kept[:, :, :until])
        return out[0], out[1]


class Cache:
    """Everything one run keeps for a trunk. Trunks that keep more than keys and values have a subclass with typed fields."""

    def __init__(self) -> None:
        self._layers: dict[str, KVCache] = {}

    def layer(self, name: str) -> KVCache:
        """The keys and values of the attention layer `name`."""
        return self._layers.setdefault(name, KVCache())

    def free(self) -> None:
        """Free the keys and values of the last full pass; everything else stays."""
        self._layers.clear()

    def bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(x.nbytes for kv in self._layers.values() for x in vars(kv).values() if isinstance(x, Tensor))


def span(count: int, like: Tensor) -> Tensor:
    """0 … count − 1 for every row of `like` (B, …): (B, count)."""
    return torch.arange(count, device=like.device).expand(len(like), -1)
