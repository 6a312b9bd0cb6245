"""BERT of the original MaskGIT and of TiTok: a post-norm transformer that reads the class as a token in front.

Chang et al., "MaskGIT: Masked Generative Image Transformer" (CVPR 2022, arXiv 2202.04200), google-research/maskgit: one table
for ids, classes and the mask (classes.table: shared), and no null class, so no guidance. Yu et al., "An Image is Worth 32 Tokens for
Reconstruction and Generation" (TiTok, arXiv 2406.07550): the same with a null class, a table of the head's own and the exact GELU.

Notation: B batch, L rows, M positions asked for, D width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from mgen.generators.embedder import TokenRows
from mgen.generators.trunk import FULL, Layout, PassOptions, Trunk, register_trunk, truncated_normal
from mgen.nn import Cache, CachedStep, PostNormBlock, check_heads, run_blocks
from mgen.nn.dropout import dropout
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import Depth, Rate, Size, schema


@schema
class BERTConfig:
    """Settings; defaults are the published ones.

    Args:
        dim: D. depth, heads, hidden: blocks, attention heads, hidden width of the MLP.
        approximate: "none" or "tanh", the form of the MLP's GELU.
        dropout: on embeddings, attention probabilities and both outputs of a block, in training.
    """

    dim: Size = 768
    depth: Depth = 24
    heads: Size = 16
    hidden: Size = 3072
    approximate: Literal["none", "tanh"] = "tanh"
    dropout: Rate = 0.1

    def __post_init__(self) -> None:
        check_heads(self.dim, self.heads)


@register_trunk("bert", BERTConfig)
class BERT(Trunk):
    """Bidirectional post-norm trunk with the class as first token."""

    partial_windows = True
    initial_values = (truncated_normal, truncated_normal)  # as the official code

    def __init__(self, config: BERTConfig, *, layout: Layout) -> None:
        super().__init__()
        c, self.config, self.width, self.context_width = config, config, config.dim, config.dim
        self.layout = layout
        self.position = nn.Embedding(1 + layout.length, c.dim)
        self.norm = nn.LayerNorm(c.dim, eps=1e-12)
        self.blocks = nn.ModuleList(
            PostNormBlock(c.dim, c.heads, hidden=c.hidden, approximate=c.approximate, dropout=c.dropout)
            for _ in range(c.depth)
        )

    def data_rows(self) -> DataRows:
        return {"position.weight": {0: (Rows("class token", (1,)), *self.layout.rows)}}

    def embed(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """Rows (B, n, D) with their positions `at` (B, n) in the sequence, None: the first n."""
        place = self.position.weight[: x.shape[1]] if at is None else self.position(at)
        return dropout(self.norm(x + place), self.config.dropout, self.training)

    def forward(self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL) -> Tensor:
        x = self.embed(torch.cat([classes.unsqueeze(1), rows.masked()], dim=1))  # (B, 1 + L, D)
        # Only the positions that will be read pass the end of the last block; the class token stands in front of them.
        read = None if options.positions is None else options.positions + 1
        x = run_blocks(self.blocks, x, read, lambda i: {"kept": options.layer(f"{i}")})
        return x[:, 1:] if read is None else x  # (B, L, D) or (B, M, D)

    def cached_step(self, rows: TokenRows, classes: Tensor, cache: Cache, step: CachedStep) -> Tensor:
        at = step.rows(1)  # (B, 1 + n) or (B, n)
        x = rows.at(step.positions, step.known)
        if step.prefix:
            x = torch.cat([classes.unsqueeze(1), x], dim=1)
        x = self.embed(x, at)
        return run_blocks(self.blocks, x, step.wanted(1), lambda i: {"kept": cache.layer(f"{i}"), "rows": at})
