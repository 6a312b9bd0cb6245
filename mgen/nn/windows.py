"""Windows of s × s neighboring tokens that are masked, drawn and computed as one (Token-Shuffle, arXiv 2504.17789).

`Windows` is the layout, one of `Entities`, which may also be rectangles, or interleaved, and keep a row for each token (xAR, arXiv
2502.20388). `TokenShuffle` joins the embeddings of a window's tokens to one row of the same width, by which the trunk's sequence is s²
times shorter; `TokenUnshuffle` takes the rows of the trunk's result apart again.

Notation: B batch, h × w token grid, L = h·w tokens, W windows or entities (L / s²), D width.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError


@dataclass(frozen=True)
class Entities:
    """Tokens of a grid (h, w) that are drawn as one: cells of a × b neighbors, of size (a, b), row by row.

    With `interleaved` the tokens of every a-th row and b-th column are one, a·b of them, ordered by where they begin.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    interleaved: bool = False

    def __post_init__(self) -> None:
        if any(side % part for side, part in zip(self.grid, self.size)):
            self._reject()

    def _reject(self) -> None:
        (h, w), (a, b) = self.grid, self.size
        raise MgenError(f"size is {a}×{b}: whole numbers that divide the token grid of {h}×{w} are needed")

    @property
    def name(self) -> str:
        """Of one, for messages."""
        return "subset" if self.interleaved else "cell"

    @property
    def steps(self) -> tuple[int, int]:
        """(h / a, w / b)."""
        return self.grid[0] // self.size[0], self.grid[1] // self.size[1]

    @property
    def places(self) -> tuple[int, int]:
        """The grid (r, c) of entities."""
        return self.size if self.interleaved else self.steps

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the tokens of one."""
        return self.steps if self.interleaved else self.size

    @property
    def count(self) -> int:
        """W."""
        return self.places[0] * self.places[1]

    @property
    def parts(self) -> int:
        """Tokens of one."""
        return self.shape[0] * self.shape[1]

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        """Entities of these tokens: so many ids, or one vector of so many times C numbers."""
        kind: Literal["vector", "multi-index"] = "vector" if tokens.kind == "vector" else "multi-index"
        return replace(tokens, kind=kind, length=self.count, grid=self.places, channels=self.parts * tokens.channels)

    def gather(self, x: Tensor) -> Tensor:
        """Rows (B, L, …) by entity: (B, W, parts, …)."""
        (a, b), (rows, columns) = self.size, self.steps
        x = x.unflatten(1, (rows, a, columns, b)).transpose(2, 3)  # (B, h/a, w/b, a, b, …)
        x = x.flatten(3, 4).flatten(1, 2)  # (B, h/a·w/b, a·b, …)
        return x.transpose(1, 2) if self.interleaved else x

    def scatter(self, x: Tensor) -> Tensor:
        """Rows by entity (B, W, parts, …) back in the order of the grid: (B, L, …)."""
        x = x.transpose(1, 2) if self.interleaved else x
        x = x.unflatten(2, self.size).unflatten(1, self.steps).transpose(2, 3)  # (B, h/a, a, w/b, b, …)
        return x.flatten(1, 4)

    def to_windows(self, tokens: Tensor) -> Tensor:
        """Ids (B, L) as entities (B, W, parts), or vectors (B, L, C) as entities (B, W, parts·C)."""
        return self.gather(tokens).flatten(2)

    def to_tokens(self, tokens: Tensor) -> Tensor:
        """Back: ids (B, L) or vectors (B, L, C)."""
        x = tokens.unflatten(2, (self.parts, -1))
        return self.scatter(x if tokens.is_floating_point() else x.squeeze(-1))

    def whole(self, known: Tensor) -> Tensor:
        """Entities (B, W) of which every token is known (B, L)."""
        return self.gather(known).all(-1)

    def expand(self, known: Tensor) -> Tensor:
        """Tokens (B, L) of known entities (B, W)."""
        return self.scatter(known.unsqueeze(-1).expand(-1, -1, self.parts))

    def positions(self, windows: Tensor) -> Tensor:
        """Tokens (B, n, parts) of entities (B, n), by their number in the grid."""
        every = torch.arange(self.count * self.parts, device=windows.device).unsqueeze(0)
        return self.gather(every)[0][windows]

    def unfold(self, *, tokens: Tensor, known: Tensor, positions: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """What a sampler shows after a step (see mgen.samplers.step.Step), by tokens instead of entities."""
        own = drawn.unflatten(2, (self.parts, -1)).flatten(1, 2)  # (B, n·parts, C)
        return {
            "tokens": self.to_tokens(tokens),
            "known": self.expand(known),
            "positions": self.positions(positions).flatten(1),
            "drawn": own if drawn.is_floating_point() else own.squeeze(-1),
        }


class Windows(Entities):
    """Square windows: grid (h, w) and side s. Windows go row by row, and so do the tokens of a window."""

    def __init__(self, grid: tuple[int, int], side: int) -> None:
        super().__init__(grid, (side, side))

    @property
    def name(self) -> str:
        return "window"

    @property
    def side(self) -> int:
        """s."""
        return self.size[0]

    def _reject(self) -> None:
        h, w = self.grid
        raise MgenError(f"windows.side is {self.side}: a whole number that divides the token grid of {h}×{w} is needed")


class ResidualMLP(nn.Module):
    """x + W₂ gelu(W₁ LN(x)), four times as wide inside; W₂ starts at zero."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def reset_parameters(self) -> None:
        """The identity."""
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


def _check_width(dim: int, side: int) -> None:
    if dim % side**2:
        raise MgenError(
            f"windows.side is {side}: the width {dim} is not a multiple of the {side**2} tokens of a window"
        )


class TokenShuffle(nn.Module):
    """Embeddings of a window's tokens → one row: each is compressed to D / s² numbers, these stand side by side and are fused.

    D must be a multiple of s². `blocks` residual MLPs stand behind (arXiv 2504.17789).
    """

    def __init__(self, dim: int, side: int, *, blocks: int = 2) -> None:
        super().__init__()
        _check_width(dim, side)
        self.compress = nn.Linear(dim, dim // side**2)
        self.blocks = nn.Sequential(*(ResidualMLP(dim) for _ in range(blocks)))

    def reset_parameters(self) -> None:
        """Orthogonal rows, blocks that do nothing yet."""
        nn.init.orthogonal_(self.compress.weight)
        nn.init.zeros_(self.compress.bias)
        for block in self.blocks:
            assert isinstance(block, ResidualMLP)
            block.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(…, s², D) → (…, D)."""
        return self.blocks(self.compress(x).flatten(-2))


class TokenUnshuffle(nn.Module):
    """The other way: residual MLPs, then s² parts of D / s² numbers, each expanded to D. Arguments as for TokenShuffle."""

    def __init__(self, dim: int, side: int, *, blocks: int = 2) -> None:
        super().__init__()
        _check_width(dim, side)
        self.parts = side**2
        self.blocks = nn.Sequential(*(ResidualMLP(dim) for _ in range(blocks)))
        self.expand = nn.Linear(dim // self.parts, dim)

    def reset_parameters(self, shuffle: TokenShuffle) -> None:
        """The transpose of what `shuffle` compresses by where widths agree, else orthogonal; blocks that do nothing yet."""
        if self.expand.weight.shape == shuffle.compress.weight.T.shape:
            self.expand.weight.data.copy_(shuffle.compress.weight.T)
        else:
            nn.init.orthogonal_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)
        for block in self.blocks:
            assert isinstance(block, ResidualMLP)
            block.reset_parameters()

    def split(self, x: Tensor) -> Tensor:
        """(…, D) → (…, s², D / s²), not expanded yet."""
        return self.blocks(x).unflatten(-1, (self.parts, -1))

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, s², D)."""
        return self.expand(self.split(x))
