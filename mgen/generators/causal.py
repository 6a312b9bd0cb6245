"""Causal generator: tokens are drawn one after the other, each from those before it. LlamaGen, Hita's generator, Token-Shuffle.

Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (arXiv 2406.06525); Zheng et al., "Holistic
Tokenizer for Autoregressive Image Generation" (Hita, arXiv 2507.02358); Ma et al., "Token-Shuffle" (arXiv 2504.17789).

The sequence is the class, then the tokens: S global ones where there are, then those of the grid row by row, or its windows. Row p
is the input at place p (row 0 the class, row p token p − 1) and its context predicts token p; the last token is never an input.

Notation: B batch, L tokens (windows), S global ones, N = L − S of the grid, V codes, D width, F hidden width of the MLP.

| size | D | depth | heads | F | tokens × codes | parameters |
|---|---|---|---|---|---|---|
| B (published, side 16 and 24) | 768 | 12 | 12 | 2048 | 256 × 16384 | 110.9 M |
| L (published, side 16 and 24) | 1024 | 24 | 16 | 2816 | 256 × 16384 | 342.9 M |
| XL (published) | 1280 | 36 | 20 | 3584 | 576 × 16384 | 774.7 M |
| XXL (published) | 1536 | 48 | 24 | 4096 | 576 × 16384 | 1411.0 M |
| 3B (published) | 3200 | 24 | 32 | 8704 | 576 × 16384 | 3096.7 M |
| hita-B (published) | 768 | 12 | 12 | 2048 | (128 + 441) × 16384 | 136.2 M |
| hita-L (published) | 1024 | 24 | 16 | 2816 | (128 + 441) × 16384 | 376.6 M |
| hita-XL (published) | 1280 | 36 | 20 | 3584 | (128 + 441) × 16384 | 816.8 M |
| hita-XXL (published) | 1536 | 48 | 24 | 4096 | (128 + 441) × 16384 | 1461.5 M |
| hita-2B (published) | 1920 | 48 | 32 | 5120 | (128 + 441) × 16384 | 2251.5 M |
| fmnist (32 px) | 192 | 7 | 6 | 512 | 64 × 512 | 3.3 M |
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  (diffusers looks the base class up in this namespace)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mgen.generators.base import Generator, id_head, reset_windows
from mgen.nn import Memory, TokenShuffle, Windows, gather_rows
from mgen.nn.causal import CausalBlock, LiveKeys, Rows, lay_out, rotary_table
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.modeling import public


def _size(dim: int, depth: int, heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    return dict(dim=dim, depth=depth, heads=heads, hidden=hidden, **more)


_HITA: dict[str, Any] = dict(side=21, global_tokens=128)


@public
class CausalGenerator(Generator):
    """Class-conditional generator on ids that draws one token after the other.

    Args:
        side: h = w of the token grid; N = side². codes: V, of each codebook.
        global_tokens: S, tokens of the image as a whole, which stand first and have a codebook of their own.
        dim, depth, heads, hidden: D, blocks, heads, F. base: of the rotary angles. eps: of the norms.
        num_classes: classes; the null class has the id `num_classes`.
        first_row: rotary position of the row in front of the grid's tokens (the class; the last global token): "zeros" makes its
            queries and keys vanish in every layer, which published weights were trained with; "identity" leaves them as they are.
        last_global: table in which sampling looks up the last global id: "published" that of the grid's ids, as the official
            code does though it trains otherwise; "consistent" that of the global ones, as in training.
        shuffle: side of the windows that are one row of the sequence each and are drawn at once (Token-Shuffle); 1: none.
        shuffle_blocks: residual MLPs on either side of the trunk, with windows.
        dropout: on embedded tokens, the attention's output and the MLP's, in training.
        class_names: for captions and file names; no part of the network.
    """

    SIZES = {
        "B": _size(768, 12, 12, 2048),
        "L": _size(1024, 24, 16, 2816),
        "XL": _size(1280, 36, 20, 3584, side=24),
        "XXL": _size(1536, 48, 24, 4096, side=24),
        "3B": _size(3200, 24, 32, 8704, side=24),
        "hita-B": _size(768, 12, 12, 2048, **_HITA),
        "hita-L": _size(1024, 24, 16, 2816, **_HITA),
        "hita-XL": _size(1280, 36, 20, 3584, **_HITA),
        "hita-XXL": _size(1536, 48, 24, 4096, **_HITA),
        "hita-2B": _size(1920, 48, 32, 5120, **_HITA),
        "fmnist": _size(192, 7, 6, 512, side=8, codes=512, num_classes=10, dropout=0.0),
    }
    causal = True

    @register_to_config
    def __init__(
        self,
        *,
        side: int = 16,
        codes: int = 16384,
        global_tokens: int = 0,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 2048,
        base: float = 10000.0,
        eps: float = 1e-5,
        num_classes: int = 1000,
        first_row: Literal["zeros", "identity"] = "zeros",
        last_global: Literal["published", "consistent"] = "published",
        shuffle: int = 1,
        shuffle_blocks: int = 2,
        dropout: float = 0.1,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        check_choice("first_row", first_row, ("zeros", "identity"))
        check_choice("last_global", last_global, ("published", "consistent"))
        if global_tokens and shuffle != 1:
            raise MgenError(f"shuffle {shuffle} joins tokens of a grid, global ones have no place in it: use shuffle 1")
        if global_tokens < 0:
            raise MgenError(f"global_tokens is {global_tokens}: a number of tokens of at least 0 is needed")
        self.windows = Windows((side, side), shuffle)
        self.class_embed = nn.Embedding(num_classes + 1, dim)
        self.token_embed = nn.Embedding(codes, dim)
        if global_tokens:
            self.global_embed = nn.Embedding(codes, dim)
            self.global_position = nn.Parameter(torch.zeros(global_tokens, dim))
        self.blocks = nn.ModuleList(
            CausalBlock(dim, heads, hidden=hidden, eps=eps, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.output = nn.Linear(dim, codes * (2 if global_tokens else 1), bias=False)
        h, w = (n // shuffle for n in self.windows.grid)
        front = torch.zeros(1, dim // heads // 2, 2)
        front[..., 0] = float(first_row == "identity")  # cos 1, sin 0
        # Of the row in front and of every row that is an input; made from the configuration, so no part of the weights.
        table = torch.cat([front, rotary_table((h, w), dim // heads, base)[:-1]])
        self.register_buffer("rotary", table, persistent=False)
        self.rotary: Tensor

        plain: dict[str, Any] = dict(table=self.output, transform=False, bias=False, detach=False)
        self.head: Any = id_head(
            **plain, codes=codes, global_tokens=global_tokens, shuffle=shuffle, blocks=shuffle_blocks
        )
        for table_ in self.modules():
            if isinstance(table_, nn.Linear | nn.Embedding):
                nn.init.normal_(table_.weight, std=0.02)
        nn.init.zeros_(self.output.weight)
        if global_tokens:
            nn.init.normal_(self.global_position, std=0.02)
        if shuffle > 1:
            self.join = TokenShuffle(dim, shuffle, blocks=shuffle_blocks)
            reset_windows(self.join, self.head)

    @property
    def spec(self) -> TokenSpec:
        c = self.config
        length = c.global_tokens + c.side * c.side
        return TokenSpec(
            kind="index", length=length, grid=(c.side, c.side), vocab_size=c.codes, global_tokens=c.global_tokens
        )

    @property
    def null_class(self) -> int:
        return self.config.num_classes

    def memory(self, condition: Tensor) -> Memory:
        """See Generator.memory; keys and values are laid out when the first ones come."""
        memory, length = Memory(), self.unit_spec.length
        memory.values["layers"] = [LiveKeys(length) for _ in self.blocks]
        memory.values["done"] = 0
        return memory

    def lay_out(self, rows: int) -> None:
        """See Generator.lay_out."""
        lay_out(self, rows)

    def rows(self, first: int, stop: int) -> Rows:
        """Rows first … stop − 1 of the sequence with their positions."""
        s = self.config.global_tokens
        shift = self.global_position[first : min(stop, s)] if first < s else None
        return Rows(first, stop, shift, self.rotary[max(first - s, 0) : max(stop - s, 0)])

    def embed(self, tokens: Tensor, condition: Tensor, first: int, stop: int, *, sampling: bool) -> Tensor:
        """Inputs (B, stop − first, D) of the rows first … stop − 1."""
        c, parts = self.config, []
        if first == 0:
            parts.append(self.class_embed(condition).unsqueeze(1))  # (B, 1, D)
        ids = tokens[:, max(first - 1, 0) : stop - 1]  # of row p the token p − 1
        border = c.global_tokens - int(sampling and c.last_global == "published")  # so many ids are looked up as global
        whole = ids[:, : max(0, border - max(first - 1, 0))]
        if whole.shape[1]:
            parts.append(self.global_embed(whole))
        if whole.shape[1] < ids.shape[1]:
            x = self.token_embed(ids[:, whole.shape[1] :])
            parts.append(self.join(x) if self.unit is not None else x)
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def context(
        self,
        tokens: Tensor,
        known: Tensor,
        condition: Tensor,
        *,
        positions: Tensor | None = None,
        visible: tuple[int, int] | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """See Generator.context.

        With a memory, of a run that asks for one position after the other: the rows that are new since the last call are computed
        and the last of them is the context, (B, 1, D), of the first unknown token.
        """
        if memory is None:
            rows = self.rows(0, self.unit_spec.length)
            z = self.norm(self._trunk(self.embed(tokens, condition, rows.first, rows.stop, sampling=False), rows))
            return z if positions is None else gather_rows(z, positions)
        fewest, most = visible if visible is not None else (int(known.sum(1).amin()), int(known.sum(1).amax()))
        if fewest != most:
            raise MgenError("images of a batch go on from as many given tokens: use batch_size 1 for others")
        rows = self.rows(memory.values["done"], most + 1)
        x = self.embed(tokens, condition, rows.first, rows.stop, sampling=True)
        z = self._trunk(x, rows, memory.values["layers"])
        memory.values["done"] = rows.stop
        return self.norm(z[:, -1:])

    def _trunk(self, x: Tensor, rows: Rows, kept: list[LiveKeys] | None = None) -> Tensor:
        x = F.dropout(x, self.config.dropout, self.training)
        for i, block in enumerate(self.blocks):
            x = block(x, rows, None if kept is None else kept[i])
        return x

    def forward(
        self, tokens: Tensor, condition: Tensor, known: Tensor, *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Training: loss and hit (0 or 1) of every token that is not `known`, both flat; its mean is the published loss."""
        return super().forward(tokens, condition, known, label_smoothing=label_smoothing)
