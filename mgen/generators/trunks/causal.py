"""Causal trunk: each row sees itself and the rows before it. LlamaGen, Hita's generator, Token-Shuffle.

Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (arXiv 2406.06525); Zheng et al., "Holistic
Tokenizer for Autoregressive Image Generation" (Hita, arXiv 2507.02358); Ma et al., "Token-Shuffle" (arXiv 2504.17789).

The sequence is the class, then the tokens: S global ones where there are, then those of the grid row by row. Row p is the input at
place p (row 0 the class, row p token p − 1) and its context predicts token p; the last token is never an input.

Notation: B batch, L rows (tokens or windows), S global ones, D width, F hidden width of the MLP.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mgen.generators.embedder import TokenRows
from mgen.generators.trunk import FULL, Capabilities, Layout, PassOptions, Trunk, normal, register_trunk, table
from mgen.nn import Cache, Epsilon, check_heads, gather_rows
from mgen.nn.causal import CausalBlock, CausalRows, LiveKV, check_rotary, rotary_table
from mgen.nn.dropout import dropout
from mgen.utils.errors import MgenError
from mgen.utils.schema import Depth, Rate, Size, schema


@schema
class CausalConfig:
    """Settings; defaults are those of LlamaGen-B.

    Args:
        dim, depth, heads, hidden: D, blocks, attention heads, F. base: of the rotary angles. eps: of the norms.
        first_row: rotary position of the row in front of the grid's tokens (the class; the last global token): "zeros" makes its
            queries and keys vanish in every layer, which published weights were trained with; "identity" leaves them as they are.
        dropout: on embedded tokens, the attention's output and the MLP's, in training.
    """

    dim: Size = 768
    depth: Depth = 12
    heads: Size = 12
    hidden: Size = 2048
    base: Annotated[float, Field(ge=1, le=1e12)] = 10000.0
    eps: Epsilon = 1e-5
    first_row: Literal["zeros", "identity"] = "zeros"
    dropout: Rate = 0.1

    def __post_init__(self) -> None:
        check_heads(self.dim, self.heads)
        check_rotary(self.dim // self.heads)


class CausalCache(Cache):
    """Keys and values of every layer, of which the first `done` rows are filled."""

    def __init__(self, layers: list[LiveKV]) -> None:
        super().__init__()
        self.live, self.done = layers, 0

    def free(self) -> None:
        """Nothing is freed between steps: later rows read all before them."""


@register_trunk("causal", CausalConfig)
class Causal(Trunk):
    """Decoder-only trunk with rotary positions on the grid, or in the sequence where there is none, and learned ones for global tokens."""

    capabilities = Capabilities(order="causal", cached_steps=False)
    masks_inputs = False
    initial_values = (normal, normal)  # as the official code

    def __init__(self, config: CausalConfig, *, layout: Layout) -> None:
        super().__init__()
        c, self.config, self.width, self.context_width = config, config, config.dim, config.dim
        self.length, self.global_tokens = layout.length, layout.global_tokens
        if self.global_tokens:
            self.global_position = table(self.global_tokens, c.dim)
        self.blocks = nn.ModuleList(
            CausalBlock(c.dim, c.heads, hidden=c.hidden, eps=c.eps, dropout=c.dropout) for _ in range(c.depth)
        )
        self.norm = nn.RMSNorm(c.dim, eps=c.eps)
        front = torch.zeros(1, c.dim // c.heads // 2, 2)
        front[..., 0] = float(c.first_row == "identity")  # cos 1, sin 0
        # Of the row in front and of every row that is an input; made from the configuration, so no part of the weights.
        grid = layout.grid or (layout.length - layout.global_tokens,)
        rotary = torch.cat([front, rotary_table(grid, c.dim // c.heads, c.base)[:-1]])
        self.register_buffer("rotary", rotary, persistent=False)
        self.rotary: Tensor

    def start(self, classes: Tensor, *, prefix: Tensor | None = None, carry: bool = False) -> Cache:
        """See Trunk.start; keys and values are allocated when the first ones come."""
        super().start(classes, prefix=prefix)
        return CausalCache([LiveKV(self.length) for _ in self.blocks])

    def rows(self, first: int, stop: int) -> CausalRows:
        """Rows first … stop − 1 of the sequence with their positions."""
        s = self.global_tokens
        shift = self.global_position[first : min(stop, s)] if first < s else None
        return CausalRows(first, stop, shift, self.rotary[max(first - s, 0) : max(stop - s, 0)])

    def inputs(self, rows: TokenRows, classes: Tensor, first: int, stop: int) -> Tensor:
        """Inputs (B, stop − first, D) of the rows first … stop − 1."""
        parts = [classes.unsqueeze(1)] if first == 0 else []  # (B, 1, D)
        if stop - 1 > max(first - 1, 0):
            parts.append(rows.span(max(first - 1, 0), stop - 1))  # of row p the token p − 1
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def forward(self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL) -> Tensor:
        """See Trunk.forward.

        With a cache, of a run that asks for one position after the other: the rows that are new since the last call are computed
        and the last of them is the context, (B, 1, D), of the first unknown token.
        """
        cache = options.cache
        if cache is None:
            z = self.norm(self._blocks(rows, classes, self.rows(0, self.length)))
            return z if options.positions is None else gather_rows(z, options.positions)
        assert isinstance(cache, CausalCache)
        fewest, most = options.counts(rows.known)
        if fewest != most:
            raise MgenError("a batch of the causal trunk continues from equally many given tokens: use batch_size 1")
        at = self.rows(cache.done, most + 1)
        z = self._blocks(rows, classes, at, cache.live)
        cache.done = at.stop
        return self.norm(z[:, -1:])

    def _blocks(self, rows: TokenRows, classes: Tensor, at: CausalRows, live: list[LiveKV] | None = None) -> Tensor:
        x = dropout(self.inputs(rows, classes, at.first, at.stop), self.config.dropout, self.training)
        for i, block in enumerate(self.blocks):
            x = block(x, at, None if live is None else live[i])
        return x
