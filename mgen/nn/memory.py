"""What a trunk keeps between the evaluations of one run: keys and values, features, modulations.

A *full* evaluation sees all tokens. Where a *local* one follows, it leaves the keys and values of every attention layer in place;
the local evaluation then computes the rows of a few positions, writes their keys and values over the old ones and attends to all
(Liu et al., "ReCAP", arXiv 2505.19089). Notation: B batch, H heads, d head width, N keys, n rows computed anew.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Local:
    """A local evaluation: which positions are computed anew, and whose context is asked for.

    Args:
        group: positions (B, G) that are decoded between two full evaluations, in the order in which they are revealed.
        done: so many of them, the first ones, have their token already; the others are masked.
        fresh: from, to in the group: computed anew. asked: from, to in the group, inside `fresh`: context is returned.
        prefix: compute the class token (buffer, register) anew too, as published; False: it stays as it was.
    """

    group: Tensor
    done: int
    fresh: tuple[int, int]
    asked: tuple[int, int]
    prefix: bool = True

    @property
    def positions(self) -> Tensor:
        """Positions (B, n) that are computed anew."""
        return self.group[:, slice(*self.fresh)]

    @property
    def drawn(self) -> int:
        """How many of `positions`, the first ones, have their token."""
        return max(0, min(self.done, self.fresh[1]) - self.fresh[0])

    def ids(self, tokens: Tensor, mask_id: int) -> Tensor:
        """Ids (B, n) or (B, n, C) at `positions` of tokens (B, L) or (B, L, C), the mask where there is none yet."""
        index = self.positions.view(*self.positions.shape, *[1] * (tokens.ndim - 2))
        ids = tokens.gather(1, index.expand(-1, -1, *tokens.shape[2:]))
        ids[:, self.drawn :] = mask_id
        return ids

    def rows(self, slots: int) -> Tensor:
        """Rows computed anew (B, n), or (B, slots + n) with the prefix, in a sequence of `slots` in front of the image tokens."""
        rows = self.positions + slots
        return torch.cat([span(slots, rows), rows], dim=1) if self.prefix else rows

    def wanted(self, slots: int) -> slice:
        """Where in `rows(slots)` context is asked for."""
        front = (slots if self.prefix else 0) - self.fresh[0]
        return slice(front + self.asked[0], front + self.asked[1])


class KeyValues:
    """Keys and values (B, H, N, d) of one attention layer, stored by a full evaluation and overwritten in place by local ones."""

    k: Tensor
    v: Tensor
    room = 0  # rows kept free behind those of a full evaluation, for tokens that are not there yet

    def store(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep k and v (B, H, N, d); returns them."""
        self.k, self.v = (self._with_room(x, self.room) for x in (k, v)) if self.room else (k, v)
        return k, v

    @staticmethod
    def _with_room(x: Tensor, room: int) -> Tensor:
        wider = x.new_empty(*x.shape[:2], x.shape[2] + room, x.shape[3])
        wider[:, :, : x.shape[2]] = x
        return wider

    def put(self, k: Tensor, v: Tensor, rows: Tensor, until: int | None = None) -> tuple[Tensor, Tensor]:
        """Write k and v (B, H, n, d) at rows (B, n); returns all keys and values, or the first `until` of them.

        A batch smaller than the stored one stands for its first images (the class rows without the null rows of guidance).
        """
        index = rows[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        out = []
        for kept, new in ((self.k, k), (self.v, v)):
            kept = kept[: len(new)]
            kept.scatter_(2, index, new.to(kept.dtype))
            out.append(kept if until is None else kept[:, :, :until])
        return out[0], out[1]


class Memory:
    """Everything one run keeps. `values` is the trunk's own.

    `keep` asks the coming full evaluation for keys and values; `room` says how many tokens local ones will reveal after it.
    `carry` asks trunks that reuse features (ENAT) to leave those of a full evaluation for the next.
    """

    def __init__(self) -> None:
        self.keep, self.carry, self.room = False, False, 0
        self.values: dict[str, Any] = {}
        self._layers: dict[str, KeyValues] = {}

    def layer(self, name: str) -> KeyValues:
        """The keys and values of the attention layer `name`."""
        return self._layers.setdefault(name, KeyValues())

    def forget(self) -> None:
        """Free the keys and values; the trunk's own values stay."""
        self._layers.clear()
        self.keep, self.room = False, 0

    def bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(
            x.numel() * x.element_size() for kv in self._layers.values() for x in (kv.k, kv.v) if isinstance(x, Tensor)
        )


def slot(memory: Memory | None, name: str, *, grows: bool = False) -> KeyValues | None:
    """Where a full evaluation leaves the keys and values of layer `name`; None if no local evaluation follows.

    `grows`: the layer reads revealed tokens only, so those of the local evaluations come behind the stored ones.
    """
    if memory is None or not memory.keep:
        return None
    layer = memory.layer(name)
    layer.room = memory.room if grows else 0
    return layer


def span(count: int, like: Tensor) -> Tensor:
    """0 … count − 1 for every row of `like` (B, …): (B, count)."""
    return torch.arange(count, device=like.device).expand(len(like), -1)
