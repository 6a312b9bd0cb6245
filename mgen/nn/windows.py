"""Windows of s × s neighboring tokens that are masked, drawn and computed as one (Token-Shuffle, arXiv 2504.17789).

`Windows` is the layout; `TokenShuffle` joins the embeddings of a window's tokens to one row of the same width, by which the trunk's
sequence is s² times shorter; `TokenUnshuffle` takes the rows of the trunk's result apart again.

Notation: B batch, h × w token grid, L = h·w tokens, W = L / s² windows, D width.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError


@dataclass(frozen=True)
class Windows:
    """The layout: grid (h, w) and side s of a window. Windows go row by row, and so do the tokens of a window."""

    grid: tuple[int, int]
    side: int

    def __post_init__(self) -> None:
        h, w = self.grid
        if h % self.side or w % self.side:
            raise MgenError(
                f"windows.side is {self.side}: a whole number that divides the token grid of {h}×{w} is needed"
            )

    @property
    def count(self) -> int:
        """W."""
        return self.grid[0] * self.grid[1] // self.side**2

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        """Windows of these tokens: s² ids, or one vector of s²·C numbers."""
        s, (h, w) = self.side, self.grid
        kind: Literal["vector", "multi-index"] = "vector" if tokens.kind == "vector" else "multi-index"
        return replace(tokens, kind=kind, length=self.count, grid=(h // s, w // s), channels=s * s * tokens.channels)

    def gather(self, x: Tensor) -> Tensor:
        """Rows (B, L, …) by window: (B, W, s², …)."""
        s, (h, w) = self.side, self.grid
        x = x.unflatten(1, (h // s, s, w // s, s)).transpose(2, 3)  # (B, h/s, w/s, s, s, …)
        return x.flatten(3, 4).flatten(1, 2)

    def scatter(self, x: Tensor) -> Tensor:
        """Rows by window (B, W, s², …) back in the order of the grid: (B, L, …)."""
        s, (h, w) = self.side, self.grid
        x = x.unflatten(2, (s, s)).unflatten(1, (h // s, w // s)).transpose(2, 3)  # (B, h/s, s, w/s, s, …)
        return x.flatten(1, 4)

    def to_windows(self, tokens: Tensor) -> Tensor:
        """Ids (B, L) as windows (B, W, s²), or vectors (B, L, C) as windows (B, W, s²·C)."""
        return self.gather(tokens).flatten(2)

    def to_tokens(self, tokens: Tensor) -> Tensor:
        """Back: ids (B, L) or vectors (B, L, C)."""
        x = tokens.unflatten(2, (self.side**2, -1))
        return self.scatter(x if tokens.is_floating_point() else x.squeeze(-1))

    def whole(self, known: Tensor) -> Tensor:
        """Windows (B, W) of which every token is known (B, L)."""
        return self.gather(known).all(-1)

    def expand(self, known: Tensor) -> Tensor:
        """Tokens (B, L) of known windows (B, W)."""
        return self.scatter(known.unsqueeze(-1).expand(-1, -1, self.side**2))

    def positions(self, windows: Tensor) -> Tensor:
        """Tokens (B, n, s²) of windows (B, n), by their number in the grid."""
        s, columns = self.side, self.grid[1]
        corner = windows // (columns // s) * s * columns + windows % (columns // s) * s  # the first token of each
        inside = windows.new_tensor([row * columns + column for row in range(s) for column in range(s)])
        return corner.unsqueeze(-1) + inside

    def unfold(self, *, tokens: Tensor, known: Tensor, positions: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """What a sampler shows after a step (see mgen.samplers.step.Step), by tokens instead of windows."""
        own = drawn.unflatten(2, (self.side**2, -1)).flatten(1, 2)  # (B, n·s², C)
        return {
            "tokens": self.to_tokens(tokens),
            "known": self.expand(known),
            "positions": self.positions(positions).flatten(1),
            "drawn": own if drawn.is_floating_point() else own.squeeze(-1),
        }


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
