"""A trunk that computes windows of tokens as one row each, while tokens are masked and drawn one by one (Token-Shuffle).

Ma et al., "Token-Shuffle" (arXiv 2504.17789). Any mask will do, but no cached step: a window may hold known and unknown tokens at
once, and what would be kept of it changes with every token. Windows that are masked and drawn as a whole are an embedder's
matter instead (`Windowed` in mgen.generators.embedders).

Notation: B batch, L tokens, W = L / s² windows, M positions asked for, D width.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from mgen.generators.embedder import TokenRows
from mgen.generators.trunk import FULL, Capabilities, PassOptions, Trunk
from mgen.nn import Cache, TokenShuffle, TokenUnshuffle, Windows, gather_rows
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, below


@dataclass(frozen=True)
class _Joined(TokenRows):
    """Rows of windows, joined already."""

    joined: Tensor | None = None

    def masked(self) -> Tensor:
        assert self.joined is not None
        return self.joined


class WindowedTrunk(Trunk):
    """Joins the rows of a window, runs the inner trunk on windows and takes its context apart again."""

    type_name = "windowed"

    def __init__(self, trunk: Trunk, windows: Windows, *, blocks: int) -> None:
        super().__init__()
        if not trunk.partial_windows:
            raise MgenError(
                f"windows.unit token: trunk {trunk.type_name!r} leaves unknown tokens out or keeps keys and values of known ones, so a "
                "window must be known or unknown as a whole: use windows.unit window"
            )
        self.inner, self.windows, self.config = trunk, windows, trunk.config
        self.width, self.context_width = trunk.width, trunk.context_width
        self.lora_targets = trunk.lora_targets  # type: ignore[misc]
        self.capabilities = Capabilities(order=trunk.capabilities.order, cached_steps=False)
        self.join = TokenShuffle(trunk.width, windows.side, blocks=blocks)
        self.window_settings = {"side": windows.side, "blocks": blocks, "unit": "token"}
        self.unshuffle = TokenUnshuffle(trunk.context_width, windows.side, blocks=blocks)

    @property
    def settings(self) -> dict[str, object]:
        return self.inner.settings

    def data_rows(self) -> DataRows:
        return below("inner", self.inner.data_rows())

    def initialize(self, module: nn.Module) -> None:
        self.inner.initialize(module)
        if module is self:
            self.join.reset_parameters()
            self.unshuffle.reset_parameters(self.join)

    def start(self, classes: Tensor, *, prefix: Tensor | None = None, carry: bool = False) -> Cache:
        return self.inner.start(classes, prefix=prefix)

    def forward(self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL) -> Tensor:
        x = self.join(self.windows.gather(rows.masked()))  # (B, W, D)
        joined = _Joined(rows.embedder, rows.tokens, rows.known, rows.sampling, x)
        x = self.inner(joined, classes, PassOptions(cache=options.cache))
        parts = self.windows.scatter(self.unshuffle.split(x))  # (B, L, D / s²); what is not asked for is not expanded
        return self.unshuffle.expand(parts if options.positions is None else gather_rows(parts, options.positions))
