"""MAR: a masked auto-encoder over real tokens with a diffusion head.

Li et al., "Autoregressive Image Generation without Vector Quantization" (NeurIPS 2024, arXiv 2406.11838); trunk of He et al., "Masked
Autoencoders" (arXiv 2111.06377): the encoder sees the visible tokens only, the decoder all positions.

Notation: B batch, L image tokens of C numbers, V visible ones, M asked positions, S buffer slots, D width, K copies.

| size | D | depth | heads | head depth × width | parameters |
|---|---|---|---|---|---|
| B (published) | 768 | 12 + 12 | 12 | 6 × 1024 | 207.9 M |
| L (published) | 1024 | 16 + 16 | 16 | 8 × 1280 | 478.3 M |
| H (published) | 1280 | 20 + 20 | 16 | 12 × 1536 | 942.4 M |
| fmnist (embedded demo, 32 px) | 192 | 3 + 3 | 6 | 3 × 192 | 3.5 M |
"""

from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks the base class up in this namespace)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mgen.generators.base import Generator, count_known
from mgen.heads import DiffusionHead
from mgen.layers import Local, Memory, PreNormBlock, gather_rows, slot, span
from mgen.modeling import public
from mgen.tokens import TokenSpec


def _size(*, dim: int, depth: int, heads: int, head_depth: int, head_width: int) -> dict[str, Any]:
    """Arguments of a model whose encoder and decoder are alike."""
    halves = {
        f"{part}_{name}": v
        for part in ("encoder", "decoder")
        for name, v in (("dim", dim), ("depth", depth), ("heads", heads))
    }
    return {**halves, "head_depth": head_depth, "head_width": head_width}


@public
class MAR(Generator):
    """Class-conditional masked generator on vectors.

    Args:
        side: h = w of the token grid; L = side². channels: C. scale: of the tokenizer (see TokenSpec); None: training notes it.
        encoder_dim, encoder_depth, encoder_heads and decoder_…: of the two halves of the trunk; mlp_ratio: of both.
        buffer: S, slots in front of the image tokens, all holding the class vector.
        head_width, head_depth: of the diffusion head.
        num_classes: classes; the null class has the id `num_classes` and the vector `fake_latent`.
        attn_dropout, dropout: on attention probabilities; on the attention's output and the layers of the MLPs; in training.
        class_names: for captions and file names; no part of the network.
    """

    SIZES = {
        "B": _size(dim=768, depth=12, heads=12, head_depth=6, head_width=1024),
        "L": _size(dim=1024, depth=16, heads=16, head_depth=8, head_width=1280),
        "H": _size(dim=1280, depth=20, heads=16, head_depth=12, head_width=1536),
        "fmnist": _size(dim=192, depth=3, heads=6, head_depth=3, head_width=192)
        | dict(side=8, channels=4, scale=None, buffer=4, num_classes=10, attn_dropout=0.0, dropout=0.0),
    }

    @register_to_config
    def __init__(
        self,
        *,
        side: int = 16,
        channels: int = 16,
        scale: float | None = 0.2325,
        encoder_dim: int = 768,
        encoder_depth: int = 12,
        encoder_heads: int = 12,
        decoder_dim: int = 768,
        decoder_depth: int = 12,
        decoder_heads: int = 12,
        mlp_ratio: float = 4.0,
        buffer: int = 64,
        head_width: int = 1024,
        head_depth: int = 6,
        num_classes: int = 1000,
        attn_dropout: float = 0.1,
        dropout: float = 0.1,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        length = side * side
        self.class_embed = nn.Embedding(num_classes, encoder_dim)
        self.fake_latent = nn.Parameter(torch.zeros(1, encoder_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, decoder_dim))
        self.encoder_position = nn.Parameter(torch.zeros(buffer + length, encoder_dim))
        self.decoder_position = nn.Parameter(torch.zeros(buffer + length, decoder_dim))
        self.head_position = nn.Parameter(torch.zeros(length, decoder_dim))
        self.token_proj = nn.Linear(channels, encoder_dim)
        self.token_norm = nn.LayerNorm(encoder_dim, eps=1e-6)

        def block(dim: int, heads: int) -> PreNormBlock:
            return PreNormBlock(dim, heads, mlp_ratio=mlp_ratio, eps=1e-6, attn_dropout=attn_dropout, dropout=dropout)

        self.encoder_blocks = nn.ModuleList(block(encoder_dim, encoder_heads) for _ in range(encoder_depth))
        self.encoder_norm = nn.LayerNorm(encoder_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(encoder_dim, decoder_dim)
        self.decoder_blocks = nn.ModuleList(block(decoder_dim, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for table in (
            self.class_embed.weight,
            self.fake_latent,
            self.mask_token,
            self.encoder_position,
            self.decoder_position,
            self.head_position,
        ):
            nn.init.normal_(table, std=0.02)
        self.head = DiffusionHead(channels=channels, context_dim=decoder_dim, width=head_width, depth=head_depth)

    @property
    def spec(self) -> TokenSpec:
        c = self.config
        return TokenSpec(
            kind="vector", length=c.side * c.side, grid=(c.side, c.side), channels=c.channels, scale=c.scale
        )

    @property
    def null_class(self) -> int:
        return self.config.num_classes

    def _buffer(self, condition: Tensor) -> Tensor:
        """The slots in front of the image tokens (B, S, D)."""
        null = (condition == self.null_class).unsqueeze(1)
        vector = torch.where(null, self.fake_latent, self.class_embed(condition.clamp(max=self.null_class - 1)))
        return vector.unsqueeze(1) + self.encoder_position[: self.config.buffer]

    def encode(
        self,
        tokens: Tensor,
        known: Tensor,
        condition: Tensor,
        visible: tuple[int, int] | None = None,
        memory: Memory | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The encoder on the buffer and the visible tokens.

        Returns:
            features (B, S + V, D), with V the most tokens any row knows; the places (B, V) of the tokens in the image,
            ascending; and bool (B, S + V), False where a row with fewer known tokens is filled up (None: none is).
        """
        fewest, most = visible if visible is not None else count_known(known)
        places = (~known).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]  # (B, V)
        slots = self.config.buffer
        front = self._buffer(condition)  # (B, S, D)
        seen = self.token_proj(gather_rows(tokens.to(front.dtype), places)) + self.encoder_position[slots:][places]
        x = self.token_norm(torch.cat([front, seen], dim=1))  # (B, S + V, D)
        readable = None
        if fewest != most:
            readable = torch.cat([known.new_ones(len(known), slots), known.gather(1, places)], dim=1)
        for i, block in enumerate(self.encoder_blocks):
            x = block(x, readable=readable, kept=slot(memory, f"encoder.{i}", grows=True))
        if memory is not None:
            memory.values["visible"] = most
        return self.encoder_norm(x), places, readable

    def decode(
        self,
        features: Tensor,
        places: Tensor,
        readable: Tensor | None = None,
        positions: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Context (B, M, D) at `positions` (B, M), or (B, L, D), of the encoder's result."""
        slots, b = self.config.buffer, len(features)
        rows = self.decoder_embed(features)
        mask_token = self.mask_token.to(rows.dtype)
        if readable is not None:  # a filler stands at an unknown place, where the mask token belongs anyway
            rows = torch.where(readable.unsqueeze(-1), rows, mask_token)
        image = mask_token.expand(b, self.spec.length, -1)
        image = image.scatter(1, places.unsqueeze(-1).expand(-1, -1, rows.shape[-1]), rows[:, slots:])  # (B, L, D)
        x = torch.cat([rows[:, :slots], image], dim=1) + self.decoder_position  # (B, S + L, D)
        # Only the positions that will be read pass the end of the last block.
        read = None if positions is None else positions + slots
        for i, block in enumerate(self.decoder_blocks):
            last = i == len(self.decoder_blocks) - 1
            x = block(x, positions=read if last else None, kept=slot(memory, f"decoder.{i}"))
        if positions is None:
            return self.decoder_norm(x)[:, slots:] + self.head_position  # (B, L, D)
        return self.decoder_norm(x) + self.head_position[positions]  # (B, M, D)

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
        """See Generator.context; tokens are (B, L, C)."""
        return self.decode(*self.encode(tokens, known, condition, visible, memory), positions, memory)

    def encode_local(self, tokens: Tensor, condition: Tensor, memory: Memory, step: Local) -> Tensor:
        """Encoder features (B, n, D) of the drawn tokens among those computed anew, behind the buffer's if it is too."""
        slots, drawn = self.config.buffer, step.positions[:, : step.drawn]  # (B, n)
        x = self.token_proj(gather_rows(tokens.to(self.encoder_position.dtype), drawn))
        x = x + self.encoder_position[slots:][drawn]
        # The encoder holds visible tokens only: those of the group stand behind them, each in a place of its own.
        behind = slots + memory.values["visible"]
        rows = span(step.drawn, x) + behind + step.fresh[0]
        if step.prefix:
            x = torch.cat([self._buffer(condition), x], dim=1)  # (B, S + n, D)
            rows = torch.cat([span(slots, x), rows], dim=1)
        x = self.token_norm(x)
        for i, block in enumerate(self.encoder_blocks if x.shape[1] else ()):
            x = block(x, kept=memory.layer(f"encoder.{i}"), rows=rows, until=behind + step.done)
        return self.encoder_norm(x)

    def local(self, tokens: Tensor, condition: Tensor, memory: Memory, step: Local) -> Tensor:
        """See Generator.local."""
        slots, places = self.config.buffer, step.positions
        x = self.decoder_embed(self.encode_local(tokens, condition, memory, step))
        hidden = self.mask_token.to(x.dtype).expand(len(x), places.shape[1] - step.drawn, -1)
        rows, wanted = step.rows(slots), step.wanted(slots)
        x = torch.cat([x, hidden], dim=1) + self.decoder_position[rows]  # (B, S + n, D) or (B, n, D)
        for i, block in enumerate(self.decoder_blocks):
            last = i == len(self.decoder_blocks) - 1
            x = block(x, positions=wanted if last else None, kept=memory.layer(f"decoder.{i}"), rows=rows)
        return self.decoder_norm(x) + self.head_position[step.group[:, slice(*step.asked)]]  # (B, asked, D)

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        condition: Tensor,
        known: Tensor,
        *,
        t: Tensor,
        noise: Tensor,
        head_tokens: str = "masked",
    ) -> tuple[Tensor, Tensor]:
        """Training: loss and ε error of the K copies of every masked token, both (number of masked tokens · K,).

        Args:
            tokens: (B, L, C). condition: class ids (B,). known: bool (B, L).
            t, noise: timesteps (B, K, L) and noise (B, K, L, C), see DiffusionHead.draw.
            head_tokens: "masked", or "all": as the published code, which passes visible tokens through the head too and
                multiplies their loss by zero; the same loss for more work.
        """
        fewest, most = visible = count_known(known)
        if head_tokens == "masked" and fewest == most:
            where = known.to(torch.uint8).argsort(dim=1, stable=True)[:, : known.shape[1] - most]  # (B, M)
            z = self.context(tokens, known, condition, positions=where, visible=visible).unsqueeze(1)  # (B, 1, M, D)
            copies = where.unsqueeze(1).expand(-1, t.shape[1], -1)  # (B, K, M)
            t = t.gather(2, copies)
            noise = noise.gather(2, copies.unsqueeze(-1).expand(-1, -1, -1, noise.shape[-1]))
            target = gather_rows(tokens, where).unsqueeze(1)  # (B, 1, M, C)
            losses, mse = self.head.loss(z, target, t=t, noise=noise)
            return losses.flatten(), mse.flatten()
        z = self.context(tokens, known, condition, visible=visible)
        masked = (~known).unsqueeze(1).expand_as(t)  # (B, K, L)
        if head_tokens == "all":
            losses, mse = self.head.loss(z.unsqueeze(1), tokens.unsqueeze(1), t=t, noise=noise)
            return losses[masked], mse[masked]
        row, copy, place = masked.nonzero(as_tuple=True)
        return self.head.loss(z[row, place], tokens[row, place], t=t[masked], noise=noise[masked])
