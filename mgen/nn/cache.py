"""What a trunk keeps between the forward passes of one run: keys and values, and whatever else its own cache class names.

A *full* pass sees all tokens. Where *cached steps* follow, it leaves the keys and values of every attention layer in place; a cached
step then computes the rows of a few positions, overwrites their keys and values and attends to all (Liu et al., "ReCAP", arXiv
2505.19089). *Lazy steps* do the same with positions that are found on the way (Yan et al., "LazyMAR", arXiv 2503.12450). Notation:
B batch, H heads, d head width, N keys, n rows computed anew.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.nn.kernels import slow_kernel


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


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Which rows of a lazy step pass the later layers of the decoder.

    Args:
        layer: number of the layer behind whose attention rows are dropped. share: of all rows, those that are kept at least; 1: all.
        extra: rows that are kept at least beside those of the positions drawn now and in the step before.
    """

    layer: int
    share: float
    extra: int


@dataclass(frozen=True, kw_only=True)
class LazyStep:
    """What a lazy step computes and whose context it returns.

    Args:
        latest: positions (B, p) whose tokens were revealed since the last full or lazy step. drawn: positions (B, n) to be drawn now.
        finished: context is returned as heads take it; False: as `Trunk.to_context` takes it.
    """

    latest: Tensor
    drawn: Tensor
    pruning: Pruning
    finished: bool = True

    def count(self, rows: int) -> int:
        """How many of so many rows are kept."""
        least = self.drawn.shape[1] + self.latest.shape[1] + self.pruning.extra
        return min(rows, max(least, int(rows * self.pruning.share)))

    def kept(self, v: Tensor, before: Tensor, prefix_length: int) -> Tensor:
        """The rows (B, K) that are kept, those to be drawn in front, of S prefix rows and the tokens behind.

        The others are those whose values v (B, H, N, d) differ most, by their cosine, from those `before` this step; the tokens
        revealed last stand at a cosine of 0.
        """
        drawn, n = self.drawn + prefix_length, self.drawn.shape[1]
        score = F.cosine_similarity(v.float(), before.float(), dim=-1).mean(1)  # (B, N)
        score = score.scatter(1, self.latest + prefix_length, 0.0).scatter(1, drawn, -torch.inf)
        return torch.cat([drawn, score.argsort(dim=1, stable=True)[:, n : self.count(score.shape[1])]], dim=1)


class KVCache:
    """Keys and values (B, H, N, d) of one attention layer, stored by a full pass and overwritten in place by cached steps."""

    k: Tensor
    v: Tensor
    room = 0  # rows kept free behind those of a full pass, for tokens that are not there yet
    images: int | None = None  # so many rows of the batch are kept, the first ones; None: all

    def store(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep k and v (B, H, N, d); returns them, in one piece where products would copy a view in every step that reads it."""
        k, v = (k.contiguous(), v.contiguous()) if slow_kernel(k) else (k, v)
        self.k, self.v = first_images(k, self.images), first_images(v, self.images)
        if self.room:
            free = self.k.new_empty(*self.k.shape[:2], self.room, self.k.shape[3])
            self.k, self.v = torch.cat([self.k, free], dim=2), torch.cat([self.v, free], dim=2)
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


def first_images(x: Tensor, count: int | None) -> Tensor:
    """x (B, …), or a copy of its first rows, which does not keep all of x in memory."""
    return x if count is None or count == len(x) else x[:count].clone()


def span(count: int, like: Tensor) -> Tensor:
    """0 … count − 1 for every row of `like` (B, …): (B, count)."""
    return torch.arange(count, device=like.device).expand(len(like), -1)
