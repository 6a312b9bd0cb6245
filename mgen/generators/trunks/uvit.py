"""U-ViT of the PyTorch MaskGIT line: AutoNAT, whose weights ReCAP calls MaskGIT-r, and TiTok's larger generator.

Ni et al., "Revisiting Non-Autoregressive Transformers for Efficient Image Synthesis" (AutoNAT, CVPR 2024, arXiv 2406.05478);
method of Chang et al., "MaskGIT" (CVPR 2022, arXiv 2202.04200); trunk of Bao et al., "All are Worth Words" (U-ViT, arXiv
2209.12152): a class token and the image tokens pass depth/2 blocks, a middle block and depth/2 blocks with long skips. TiTok (Yu et
al., arXiv 2406.07550) has no layer norms in front of the first block.

Notation: B batch, L rows, M positions asked for, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mgen.generators.embedder import TokenRows
from mgen.generators.trunk import FULL, Layout, PassOptions, Trunk, normal, register_trunk, truncated_normal
from mgen.nn import Cache, CachedStep, Keys, PreNormBlock, Ratio, Rows, check_heads, run_blocks
from mgen.nn.dropout import dropout
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows
from mgen.utils.schema import Depth, Rate, Size, schema


@schema
class UViTConfig:
    """Settings; defaults are those of AutoNAT-L.

    Args:
        dim: D. depth: blocks outside the middle one, an even number. heads: of the attention. mlp_ratio: hidden width over D.
        qkv_bias: biases of the q, k, v projection. skip: long skips from the first half to the second.
        embed_norm: layer norms of the embedded tokens and of the class; TiTok's generator has none.
        dropout: on embedded tokens, in training.
    """

    dim: Size = 768
    depth: Depth = 24
    heads: Size = 8
    mlp_ratio: Ratio = 4.0
    qkv_bias: bool = False
    skip: bool = True
    embed_norm: bool = True
    dropout: Rate = 0.1

    def __post_init__(self) -> None:
        check_heads(self.dim, self.heads)
        if self.depth % 2:
            raise MgenError(
                f"depth is {self.depth}: an even number is needed, as half of the blocks stand on either side of the middle one"
            )


@register_trunk("uvit", UViTConfig)
class UViT(Trunk):
    """Bidirectional trunk with a class token in front and long skips."""

    partial_windows = True
    initial_values = (truncated_normal, normal)  # as the official code

    def __init__(self, config: UViTConfig, *, layout: Layout) -> None:
        super().__init__()
        c, self.config, self.width, self.context_width = config, config, config.dim, config.dim
        self.layout = layout
        self.position = nn.Embedding(layout.length, c.dim)
        self.token_norm = nn.LayerNorm(c.dim, eps=1e-6) if c.embed_norm else nn.Identity()
        self.class_position = nn.Embedding(1, c.dim)
        self.class_norm = nn.LayerNorm(c.dim, eps=1e-6) if c.embed_norm else nn.Identity()

        def block(skip: bool = False) -> PreNormBlock:
            return PreNormBlock(c.dim, c.heads, mlp_ratio=c.mlp_ratio, bias=c.qkv_bias, skip=skip)

        self.in_blocks = nn.ModuleList(block() for _ in range(c.depth // 2))
        self.mid_block = block()
        self.out_blocks = nn.ModuleList(block(c.skip) for _ in range(c.depth // 2))
        self.norm = nn.LayerNorm(c.dim)

    def data_rows(self) -> DataRows:
        return {"position.weight": {0: self.layout.rows}}

    def embed(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Rows (B, n, D) with their positions (B, n), None: the first n."""
        place = self.position.weight[: x.shape[1]] if positions is None else self.position(positions)
        return dropout(self.token_norm(x + place), self.config.dropout, self.training)

    def class_token(self, classes: Tensor) -> Tensor:
        """The row of the class (B, 1, D)."""
        return self.class_norm(classes.unsqueeze(1) + self.class_position.weight)

    def forward(self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL) -> Tensor:
        x = torch.cat([self.class_token(classes), self.embed(rows.masked())], dim=1)  # (B, 1 + L, D)
        # Only the positions that will be read pass the end of the last block; the class token stands in front of them.
        read = None if options.positions is None else options.positions + 1
        x = self._blocks(x, read, lambda name: {"kept": options.layer(name)})
        return x[:, 1:] if read is None else x  # (B, L, D) or (B, M, D)

    def cached_step(self, rows: TokenRows, classes: Tensor, cache: Cache, step: CachedStep) -> Tensor:
        at = step.rows(1)
        x = self.embed(rows.at(step.positions, step.known), step.positions)  # (B, n, D)
        if step.prefix:
            x = torch.cat([self.class_token(classes), x], dim=1)  # (B, 1 + n, D)
        return self._blocks(x, step.wanted(1), lambda name: {"kept": cache.layer(name), "rows": at})

    def _blocks(self, x: Tensor, read: Rows | None, keys: Callable[[str], Keys]) -> Tensor:
        """All blocks on x (B, N, D), then its rows `read`; `keys` says what the attention of a block stores or reads."""
        skips = []
        for i, block in enumerate(self.in_blocks):
            x = block(x, **keys(f"in.{i}"))
            skips.append(x)
        x = self.mid_block(x, **keys("mid"))
        earlier = skips if self.config.skip else [None] * len(skips)
        x = run_blocks(self.out_blocks, x, read, lambda i: {"skip": earlier.pop(), **keys(f"out.{i}")})
        return self.norm(x)
