"""MaskGIT, original: the BERT of google-research/maskgit, whose flax checkpoints are converted by mgen.convert.

Chang et al., "MaskGIT: Masked Generative Image Transformer" (CVPR 2022, arXiv 2202.04200). Post-norm transformer; one
vocabulary for codes, classes and the mask; the class is the first token. Trained without a null class, so there is no
guidance, unless the model is made with `null_class=True`.

Notation: B batch, L image tokens, M asked positions, D width.

| size | D | layers | heads | hidden | L × codes | parameters |
|---|---|---|---|---|---|---|
| imagenet256 (published) | 768 | 24 | 16 | 3072 | 256 × 1024 | 172.5 M |
| imagenet512 (published) | 768 | 24 | 16 | 3072 | 1024 × 1024 | 173.0 M |
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks the base class up in this namespace)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mgen.generators.base import Generator, initialise
from mgen.heads import CategoricalHead
from mgen.nn import Local, Memory, PostNormBlock, TokenEmbedding, slot
from mgen.nn.attention import Rows
from mgen.tokens import TokenSpec
from mgen.utils.modeling import public


@public
class MaskGITBert(Generator):
    """Class-conditional masked generator on ids.

    Args:
        side: h = w of the token grid; L = side².
        codes, num_classes: the vocabulary is codes, then classes, then (with `null_class`) the null class, then the mask.
        dim, depth, heads, hidden: of the trunk.
        dropout: on embeddings, attention probabilities and both outputs of a layer, in training.
        class_names: for captions and file names; no part of the network.
    """

    SIZES = {
        "imagenet256": dict(side=16, codes=1024, dim=768, depth=24, heads=16, hidden=3072),
        "imagenet512": dict(side=32, codes=1024, dim=768, depth=24, heads=16, hidden=3072),
    }

    @register_to_config
    def __init__(
        self,
        *,
        side: int = 16,
        codes: int = 1024,
        dim: int = 768,
        depth: int = 24,
        heads: int = 16,
        hidden: int = 3072,
        num_classes: int = 1000,
        null_class: bool = False,
        dropout: float = 0.1,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        self.mask_id = codes + num_classes + int(null_class)
        rows = self.mask_id + 1
        self.embed = TokenEmbedding(rows=rows, length=1 + side * side, dim=dim, eps=1e-12, dropout=dropout)
        self.blocks = nn.ModuleList(PostNormBlock(dim, heads, hidden=hidden, dropout=dropout) for _ in range(depth))
        self.head = CategoricalHead(
            table=self.embed.word, codes=codes, loss_rows=rows, approximate="tanh", eps=1e-12, detach=False
        )
        self.apply(partial(initialise, embedding=nn.init.trunc_normal_))

    @property
    def spec(self) -> TokenSpec:
        side = self.config.side
        return TokenSpec(kind="index", length=side * side, grid=(side, side), vocab_size=self.config.codes)

    @property
    def null_class(self) -> int | None:
        return self.config.num_classes if self.config.null_class else None

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
        """See Generator.context."""
        ids = torch.cat([condition.unsqueeze(1) + self.config.codes, torch.where(known, tokens, self.mask_id)], dim=1)
        x = self.embed(ids)  # (B, 1 + L, D)
        # Only the positions that will be read pass the end of the last layer; the class token stands in front of them.
        read = None if positions is None else positions + 1
        x = self._trunk(x, read, lambda name: {"kept": slot(memory, name)})
        return x[:, 1:] if positions is None else x  # (B, L, D) or (B, M, D)

    def local(self, tokens: Tensor, condition: Tensor, memory: Memory, step: Local) -> Tensor:
        """See Generator.local."""
        ids, rows = step.ids(tokens, self.mask_id), step.rows(1)  # (B, n), (B, 1 + n)
        if step.prefix:
            ids = torch.cat([condition.unsqueeze(1) + self.config.codes, ids], dim=1)
        return self._trunk(
            self.embed(ids, rows), step.wanted(1), lambda name: {"kept": memory.layer(name), "rows": rows}
        )

    def _trunk(self, x: Tensor, read: Rows | None, keys: Callable[[str], dict[str, Any]]) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, positions=read if i == len(self.blocks) - 1 else None, **keys(f"{i}"))
        return x
