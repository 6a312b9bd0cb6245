"""Transformer that is told the class by adaptive norms in every block: the trunk of Halton-MaskGIT.

Besnier et al., "Halton Scheduler for Masked Generative Image Transformer" (ICLR 2025, arXiv 2503.17076). Pre-norm blocks with
modulations as in DiT (arXiv 2212.09748), q and k normalized over all heads together, gated MLP, register tokens (arXiv
2309.16588).

Notation: B batch, L rows, M positions asked for, D width, F hidden width of the MLP, S registers.
"""

from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mgen.generators.embedder import TokenRows
from mgen.generators.trunk import FULL, Layout, PassOptions, Trunk, register_trunk, table
from mgen.nn import Blocks, Cache, CachedStep, Keys, Rows, run_blocks
from mgen.nn.modulated import ModulatedBlock, ModulatedNorm
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows
from mgen.utils.schema import Depth, Rate, Size, schema


@schema
class AdaLNConfig:
    """Settings; defaults are those of Halton-MaskGIT base.

    Args:
        dim: D. depth: blocks. heads: a head has dim // heads numbers, so heads need not divide dim. hidden: F.
        registers: S, tokens beside those of the image.
        dropout: on the attention probabilities, on the attention's output and inside the MLP, in training.
    """

    dim: Size = 768
    depth: Depth = 12
    heads: Size = 12
    hidden: Size = 2048
    registers: Annotated[int, Field(ge=0, le=1024)] = 1
    dropout: Rate = 0.1

    def __post_init__(self) -> None:
        if self.heads > self.dim:
            raise MgenError(f"heads is {self.heads}: at most one for each of the {self.dim} numbers of dim")


class ModulatedCache(Cache):
    """The modulations of every block, functions of the class alone."""

    def __init__(self, modulations: list[Tensor]) -> None:
        super().__init__()
        self.modulations = modulations


@register_trunk("adaln", AdaLNConfig)
class AdaLN(Trunk):
    """Bidirectional trunk with adaptive layer norms and registers."""

    partial_windows = True

    def __init__(self, config: AdaLNConfig, *, layout: Layout) -> None:
        super().__init__()
        c, self.config, self.width, self.context_width = config, config, config.dim, config.dim
        self.layout = layout
        self.position = nn.Embedding(layout.length, c.dim)
        self.register = table(c.registers, c.dim)
        self.blocks = Blocks(
            ModulatedBlock(c.dim, c.heads, head_dim=c.dim // c.heads, hidden=c.hidden, dropout=c.dropout)
            for _ in range(c.depth)
        )
        self.norm = ModulatedNorm(c.dim)

    def data_rows(self) -> DataRows:
        return {"position.weight": {0: self.layout.rows}}

    def initialize(self, module: nn.Module) -> None:
        """Official initial values: Xavier for linear layers, normal 0.02 for tables; the blocks' modulations start at zero."""
        super().initialize(module)
        if isinstance(module, ModulatedBlock):
            for packed, parts in ((module.attn.qkv, 3), (module.mlp.fc1, 2)):
                for part in packed.weight.data.chunk(parts):
                    nn.init.xavier_uniform_(part)
            nn.init.zeros_(module.adaln.weight)

    def modulations(self, classes: Tensor) -> list[Tensor]:
        """Of every block (B, 6D), then of the last norm (B, 2D), for class vectors (B, D)."""
        y = F.silu(classes)
        return [*(block.adaln(y) for block in self.blocks), self.norm.adaln(y)]

    def start(self, classes: Tensor, *, prefix: Tensor | None = None, carry: bool = False) -> Cache:
        super().start(classes, prefix=prefix)
        return ModulatedCache(self.modulations(classes))

    def forward(self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL) -> Tensor:
        x = self.with_registers(rows.masked() + self.position.weight)  # (B, S + L, D)
        # Only the positions that will be read pass the end of the last block. The registers stand in front of them; the
        # official code has them behind, which attention without positions cannot tell.
        first, asked = self.config.registers, options.positions
        read = slice(first, None) if asked is None else asked + first
        return self._blocks(x, classes, options.cache, read, lambda name: {"kept": options.layer(name)})

    def cached_step(self, rows: TokenRows, classes: Tensor, cache: Cache, step: CachedStep) -> Tensor:
        at = step.rows(self.config.registers)  # (B, S + n) or (B, n)
        x = rows.at(step.positions, step.known) + self.position(step.positions)  # (B, n, D)
        if step.prefix:
            x = self.with_registers(x)
        wanted = step.wanted(self.config.registers)
        return self._blocks(x, classes, cache, wanted, lambda name: {"kept": cache.layer(name), "rows": at})

    def with_registers(self, x: Tensor) -> Tensor:
        """Rows (B, n, D) behind the registers: (B, S + n, D)."""
        return torch.cat([self.register.to(x.dtype).expand(len(x), -1, -1), x], dim=1)

    def _blocks(
        self, x: Tensor, classes: Tensor, cache: Cache | None, read: Rows, keys: Callable[[str], Keys]
    ) -> Tensor:
        """All blocks on x (B, N, D), then its rows `read`, normalized; `keys` says what a block's attention stores or reads."""
        if isinstance(cache, ModulatedCache):  # a batch smaller than the cache's stands for its first rows
            modulations = [part[: len(x)] for part in cache.modulations]
        else:
            modulations = self.modulations(classes)
        x = run_blocks(self.blocks, x, read, lambda i: {"modulation": modulations[i], **keys(f"{i}")})
        return self.norm(x, modulations[-1])
