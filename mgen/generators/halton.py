"""Halton-MaskGIT: a masked transformer that is told the class by adaptive norms in every block.

Besnier et al., "Halton Scheduler for Masked Generative Image Transformer" (ICLR 2025, arXiv 2503.17076). Pre-norm blocks with
modulations as in DiT (arXiv 2212.09748), q and k normalised over all heads together, gated MLP, a register token (arXiv
2309.16588). The head is the token table itself, and has a logit for the mask too.

Notation: B batch, L image tokens, M asked positions, D width, F hidden width of the MLP, S registers.

| size | D | depth | heads | F | L × codes | parameters |
|---|---|---|---|---|---|---|
| tiny (published) | 384 | 6 | 6 | 1024 | 256 × 16384 | 23.0 M |
| small (published; heads of 85) | 512 | 12 | 6 | 1536 | 256 × 16384 | 69.3 M |
| base (published) | 768 | 12 | 12 | 2048 | 256 × 16384 | 142.2 M |
| large (published at 384 px: side 24, 480.0 M) | 1024 | 24 | 16 | 2816 | 256 × 16384 | 479.7 M |
| fmnist (embedded demo, 32 px) | 192 | 6 | 6 | 512 | 64 × 512 | 4.2 M |
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  (diffusers looks the base class up in this namespace)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mgen.generators.base import Generator
from mgen.heads import CategoricalHead
from mgen.nn import Local, Memory, slot
from mgen.nn.attention import Rows
from mgen.nn.modulated import ModulatedBlock, ModulatedNorm
from mgen.tokens import TokenSpec
from mgen.utils.errors import check_choice
from mgen.utils.modeling import public


@public
class HaltonMaskGIT(Generator):
    """Class-conditional masked generator on ids.

    Args:
        side: h = w of the token grid; L = side².
        codes: vocabulary of the tokenizer. The mask has the id `codes`.
        dim, depth, heads: of the trunk; a head has dim // heads numbers, so heads need not divide dim. hidden: F.
        num_classes: classes, not counting the null class, which has the id `num_classes`.
        registers: S, tokens beside those of the image.
        dropout: on the attention probabilities, on the attention's output and inside the MLP, in training.
        class_names: for captions and file names; no part of the network.
    """

    SIZES = {
        "tiny": dict(dim=384, depth=6, heads=6, hidden=1024),
        "small": dict(dim=512, depth=12, heads=6, hidden=1536),
        "base": dict(dim=768, depth=12, heads=12, hidden=2048),
        "large": dict(dim=1024, depth=24, heads=16, hidden=2816),
        "fmnist": dict(side=8, codes=512, dim=192, depth=6, heads=6, hidden=512, num_classes=10, dropout=0.0),
    }

    @register_to_config
    def __init__(
        self,
        *,
        side: int = 16,
        codes: int = 16384,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 2048,
        num_classes: int = 1000,
        registers: int = 1,
        dropout: float = 0.1,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        self.token_embed = nn.Embedding(codes + 1, dim)
        self.position_embed = nn.Embedding(side * side, dim)
        self.class_embed = nn.Embedding(num_classes + 1, dim)
        self.register = nn.Parameter(torch.zeros(registers, dim))
        self.blocks = nn.ModuleList(
            ModulatedBlock(dim, heads, head_dim=dim // heads, hidden=hidden, dropout=dropout) for _ in range(depth)
        )
        self.norm = ModulatedNorm(dim)
        self.head = CategoricalHead(table=self.token_embed, codes=codes, transform=False, mask_drawn=True, detach=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for linear layers, normal 0.02 for tables and registers; the blocks' modulations start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _xavier(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.register, std=0.02)
        for block in self.blocks:
            assert isinstance(block, ModulatedBlock)
            _xavier(block.attn.qkv.weight, parts=3)
            _xavier(block.mlp.fc1.weight, parts=2)
            nn.init.zeros_(block.adaln.weight)

    @property
    def spec(self) -> TokenSpec:
        side = self.config.side
        return TokenSpec(kind="index", length=side * side, grid=(side, side), vocab_size=self.config.codes)

    @property
    def null_class(self) -> int:
        return self.config.num_classes

    @property
    def mask_id(self) -> int:
        return self.config.codes

    def modulations(self, condition: Tensor) -> list[Tensor]:
        """Of every block (B, 6D), then of the last norm (B, 2D): they know nothing but the class (B,)."""
        y = F.silu(self.class_embed(condition))
        return [*(block.adaln(y) for block in self.blocks), self.norm.adaln(y)]  # type: ignore[operator, misc]

    def memory(self, condition: Tensor) -> Memory:
        """See Generator.memory."""
        memory = Memory()
        memory.values["modulations"] = self.modulations(condition)
        return memory

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
        """See Generator.context. A known token may be the mask itself, which this network can draw."""
        x = self.token_embed(torch.where(known, tokens, self.mask_id)) + self.position_embed.weight  # (B, L, D)
        # Only the positions that will be read pass the end of the last block. The registers stand in front of them; the
        # official code has them behind, which attention without positions cannot tell.
        slots = self.config.registers
        read = slice(slots, None) if positions is None else positions + slots
        x = self._with_registers(x)
        return self._trunk(x, condition, memory, read, lambda name: {"kept": slot(memory, name)})

    def local(self, tokens: Tensor, condition: Tensor, memory: Memory, step: Local) -> Tensor:
        """See Generator.local."""
        slots = self.config.registers
        rows = step.rows(slots)  # (B, S + n) or (B, n)
        x = self.token_embed(step.ids(tokens, self.mask_id)) + self.position_embed(step.positions)  # (B, n, D)
        if step.prefix:
            x = self._with_registers(x)
        return self._trunk(
            x, condition, memory, step.wanted(slots), lambda name: {"kept": memory.layer(name), "rows": rows}
        )

    def _with_registers(self, x: Tensor) -> Tensor:
        return torch.cat([self.register.to(x.dtype).expand(len(x), -1, -1), x], dim=1)  # (B, S + L, D)

    def _trunk(
        self, x: Tensor, condition: Tensor, memory: Memory | None, read: Rows, keys: Callable[[str], dict[str, Any]]
    ) -> Tensor:
        """All blocks on x (B, N, D), then its rows `read`, normalised; `keys` says what a block's attention stores or reads."""
        stored = None if memory is None else memory.values.get("modulations")
        # A batch smaller than the memory's stands for its first rows.
        modulations = self.modulations(condition) if stored is None else [part[: len(x)] for part in stored]
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            x = block(x, modulations[i], positions=read if last else None, **keys(f"{i}"))
        return self.norm(x, modulations[-1])

    def forward(
        self,
        tokens: Tensor,
        condition: Tensor,
        known: Tensor,
        *,
        label_smoothing: float = 0.0,
        loss_tokens: str = "all",
    ) -> tuple[Tensor, Tensor]:
        """Training: loss and hit (0 or 1) of every token that counts, both flat.

        Args:
            loss_tokens: "all": given tokens too, as published, (B · L,); "masked": the masked ones alone.
        """
        check_choice("loss_tokens", loss_tokens, ("all", "masked"))
        if loss_tokens == "masked":
            return super().forward(tokens, condition, known, label_smoothing=label_smoothing)
        z = self.context(tokens, known, condition)
        return self.head.loss(z.flatten(0, 1), tokens.flatten(), label_smoothing=label_smoothing)


def _xavier(weight: Tensor, parts: int = 1) -> None:
    """Xavier's uniform values for each of the layers that are packed below one another in `weight`."""
    for part in weight.data.chunk(parts):
        nn.init.xavier_uniform_(part)
