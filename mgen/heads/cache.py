"""Head cache: what a denoising MLP computed in some calls of a chain, used again in the calls after them.

Yan et al., "LazyMAR: Accelerating Masked Autoregressive Models via Feature Caching" (arXiv 2503.12450): from one step of a reverse chain
to the next, the difference between the answers with and without the class and what the residual blocks add hardly change. A refresh call
computes everything; of the calls up to the next one only the rows of the class are computed, some blocks are replaced by the change that
they made, and of the other blocks the kept output of the MLP passes a fresh gate. The store is made anew for every chain.

Notation: N calls of a chain, i = N − 1 … 0 counts them down, W width of the MLP, C numbers of a token, n tokens, R rows of the network
(n, or 2n with null rows behind those of the class).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from mgen.nn.denoising import Ahead, Network
from mgen.utils.errors import MgenError
from mgen.utils.schema import Listed, Natural, Share, schema

# refresh: all rows and blocks. blocks: the blocks that are not skipped, whole. gates: of these the gates alone.
Kind = Literal["refresh", "blocks", "gates"]


@schema
class HeadCache:
    """The setting `head.cache:` of the heads that are a denoising MLP. LazyMAR: every 7, blocks [1, 4], warm 0.1.

    Args:
        every: a refresh is the first call and those with i a multiple of this, the last one (i = 0) among them; 1: all, the plain draw.
            With guidance the calls between compute the rows of the class alone.
        blocks: first and last residual block, from 0, that are skipped between; of the others the MLP's output is kept. None or []:
            all blocks are computed in every call.
        warm: the share of the chain's calls at its beginning in which the blocks that are not skipped are computed in any case:
            those with i > (1 − warm) · N.
    """

    every: Annotated[int, Field(ge=1)] = 1
    blocks: Listed[tuple[Natural, ...]] | None = None
    warm: Share = 0.0

    def __post_init__(self) -> None:
        if self.blocks and (len(self.blocks) != 2 or self.blocks[0] > self.blocks[1]):
            raise MgenError(
                f"head.cache.blocks is {list(self.blocks)}: give the first and the last block that are skipped, such as [1, 4]"
            )

    @property
    def skipped(self) -> range:
        """Numbers of the blocks that are skipped between refresh calls."""
        return range(self.blocks[0], self.blocks[1] + 1) if self.blocks else range(0)

    def kind(self, i: int, calls: int) -> Kind:
        """What call i of N is, which counts down to 0."""
        if i == calls - 1 or i % self.every == 0:
            return "refresh"
        # 1e-9: a share such as 0.07 of 100 calls is 7.000000000000001.
        return "gates" if self.skipped and calls - i >= self.warm * calls - 1e-9 else "blocks"

    def plan(self, calls: int, *, depth: int, device: torch.device) -> "CachePlan | None":
        """The calls of a chain by a network of so many blocks; None: nothing is kept. MgenError for blocks that are not there."""
        if self.skipped and self.skipped[-1] >= depth:
            there = f"{depth} blocks, 0 … {depth - 1}" if depth else "no blocks"
            raise MgenError(
                f"head.cache.blocks is {list(self.blocks or ())}: this head has {there}; name some of these, or none: []"
            )
        if self.every == 1:
            return None
        kinds = [self.kind(i, calls) for i in reversed(range(calls))]
        numbers: dict[Kind, list[int]] = {}
        made: list[Call] = []
        for j, (kind, after) in enumerate(zip(kinds, [*kinds[1:], "refresh"])):
            own = numbers.setdefault(kind, [])
            made.append(Call(kind, len(own), after != "refresh"))
            own.append(j)
        steps = {kind: torch.tensor(own, device=device) for kind, own in numbers.items()}
        return CachePlan(calls=tuple(made), steps=steps, skipped=self.skipped)

    def refuse(self, name: str, reason: str) -> None:
        """Raise MgenError for a cache at a head that has none."""
        if self.every > 1:
            raise MgenError(
                f"head.cache.every is {self.every}, but {reason}: head {name!r} has no cache. Leave head.cache out"
            )


class Call(NamedTuple):
    """A call of the network: its kind, its place among those of its kind, and whether the next call uses what it computes."""

    kind: Kind
    place: int
    kept: bool


@dataclass(frozen=True)
class CachePlan:
    """The calls of a chain, made once per run. steps: of each kind, its calls by number (int64). skipped: blocks, between refresh calls."""

    calls: tuple[Call, ...]
    steps: dict[Kind, Tensor]
    skipped: range

    @property
    def whole(self) -> "CachePlan":
        """The same calls, in which no block is skipped."""
        return replace(self, skipped=range(0))


class Kept(NamedTuple):
    """Of the rows of the class: what the skipped blocks added together, and the MLP's output of every other block, (n, W) each."""

    change: Tensor
    outputs: list[Tensor]


class CachedMLP(Protocol):
    """What is asked of the denoising MLP of a head; mgen.heads.diffusion.DenoisingMLP says what each answers."""

    @property
    def cond(self) -> Callable[[Tensor], Tensor]: ...

    def embed(self, x: Tensor) -> Tensor: ...

    def answer(self, h: Tensor, modulations: list[Tensor]) -> Tensor: ...

    def some_modulations(self, y: Tensor, *, skipped: range, gates: bool) -> list[Tensor]: ...

    def remembered(self, h: Tensor, modulations: list[Tensor], *, skipped: range, rows: int) -> tuple[Tensor, Kept]: ...

    def shortened(
        self, h: Tensor, modulations: list[Tensor], *, kept: Kept, skipped: range, gates: bool
    ) -> tuple[Tensor, Kept]: ...


class CachedNetwork:
    """The network of a chain whose blocks are skipped as a plan says.

    Args:
        head: the MLP. z: context (R, D). embedding: time embeddings (N, W) of the calls.
        rows: n, the first rows of the context; calls that are no refresh answer for these alone.
    """

    def __init__(self, head: CachedMLP, z: Tensor, embedding: Tensor, plan: CachePlan, *, rows: int) -> None:
        self.head, self.plan, self.rows, self.all_rows = head, plan, rows, len(z)
        cond = head.cond(z)  # (R, W)
        # Of the steps of each kind together, ahead of the chain, and no more than these read.
        self.ahead = {kind: self._ahead(kind, cond, embedding[steps]) for kind, steps in plan.steps.items()}
        self._kept: Kept | None = None

    def _ahead(self, kind: Kind, cond: Tensor, embedding: Tensor) -> Ahead[Tensor]:
        skipped = range(0) if kind == "refresh" else self.plan.skipped
        cond = cond if kind == "refresh" else cond[: self.rows]
        return Ahead(
            lambda part: self.head.some_modulations(
                embedding[part].unsqueeze(1) + cond, skipped=skipped, gates=kind == "gates"
            ),
            count=len(embedding),
            rows=len(cond),
        )

    def __call__(self, x: Tensor, j: int) -> Tensor:
        """Answers (R, …) of a refresh call, (n, …) of others, for noisy tokens (n, C) or (R, C)."""
        call, skipped, head = self.plan.calls[j], self.plan.skipped, self.head
        group, place = self.ahead[call.kind](call.place)
        modulations = [part[place] for part in group]
        if call.kind != "refresh":
            h = head.embed(x[: self.rows])
            if not skipped:
                return head.answer(h, modulations)
            assert self._kept is not None  # the first call is a refresh
            answer, self._kept = head.shortened(
                h, modulations, kept=self._kept, skipped=skipped, gates=call.kind == "gates"
            )
            return answer
        h = head.embed(x)
        h = h if len(h) == self.all_rows else h.repeat(2, 1)
        if not (skipped and call.kept):
            return head.answer(h, modulations)
        answer, self._kept = head.remembered(h, modulations, skipped=skipped, rows=self.rows)
        return answer


class KeptDifference:
    """A guided network whose null rows are computed in refresh calls; in others they are the class's rows less the difference kept.

    Args:
        whole: network of all rows (2n), asked in refresh calls. own: of the class's rows (n), asked in the others. rows: n.
    """

    def __init__(self, whole: Network, own: Network, plan: CachePlan, *, rows: int) -> None:
        self.whole, self.own, self.plan, self.rows = whole, own, plan, rows
        self._difference = torch.empty(0)

    def __call__(self, x: Tensor, j: int) -> Tensor:
        """Answers (2n, …) for noisy tokens (n, C) or (2n, C), of which the first n are read."""
        call = self.plan.calls[j]
        if call.kind != "refresh":
            own = self.own(x[: self.rows], j)
            return torch.cat([own, own - self._difference])
        answer = self.whole(x, j)
        if call.kept:
            own, null = answer.chunk(2)
            self._difference = own - null
        return answer


def keep_difference(whole: Network, own: Network, plan: CachePlan | None, *, rows: int) -> Network:
    """`whole`, with the difference of its null rows kept where there is a plan; see KeptDifference."""
    return whole if plan is None else KeptDifference(whole, own, plan, rows=rows)
