"""Masked autoencoder: the trunk of MAR and its kin. The encoder sees the visible tokens only, the decoder all positions.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022, arXiv 2111.06377), with Li et al.'s buffer of class slots
(MAR, arXiv 2406.11838).

Notation: B batch, L tokens to be drawn of C numbers, V visible ones, M asked positions, S rows in front of the tokens, D width.
"""

from typing import Any

import torch
from torch import Tensor

from mgen.generators.base import count_known
from mgen.nn import Local, Memory, gather_rows, slot, span, take


class MaskedAutoencoder:
    """Full and local evaluations. Subclasses give the tables and say what stands in front of the tokens and behind them.

    Attributes:
        trunk: the module with token_norm, encoder_blocks, encoder_norm, decoder_embed, decoder_blocks, decoder_norm.
        slots: S. length: L.
        encoder_table, decoder_table: positions of the tokens (L, D); the decoder's has the S rows in front of them and what stands
            behind them too. head_table: (L, D), added to the context.
        mask_table: one mask token (1, D), or one for each token and each row behind them (L + …, D).
    """

    trunk: Any
    slots: int
    length: int
    encoder_table: Tensor
    decoder_table: Tensor
    head_table: Tensor
    mask_table: Tensor

    def front(self, condition: Tensor) -> Tensor:
        """The rows in front of the tokens (B, S, D), with their positions, for classes (B,)."""
        raise NotImplementedError

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, …) as rows (B, n, D), without position."""
        raise NotImplementedError

    def block(self, part: str, i: int, x: Tensor, **keys: Any) -> Tensor:
        """Block i of the "encoder" or "decoder"; `keys` as in PreNormBlock."""
        return getattr(self.trunk, f"{part}_blocks")[i](x, **keys)

    def finish(self, x: Tensor) -> Tensor:
        """What becomes of the context (B, M, D) last."""
        return x

    def hidden(self, positions: Tensor) -> Tensor:
        """Mask tokens at positions (B, n): (B, n, D)."""
        if len(self.mask_table) == 1:
            return self.mask_table.expand(*positions.shape, -1)
        return self.mask_table[positions]

    def encode(
        self,
        tokens: Tensor,
        known: Tensor,
        condition: Tensor,
        visible: tuple[int, int] | None = None,
        memory: Memory | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The encoder on the front and the visible tokens.

        Returns:
            features (B, S + V, D), with V the most tokens any row knows; the places (B, V) of the tokens in the image,
            ascending; and bool (B, S + V), False where a row with fewer known tokens is filled up (None: none is).
        """
        fewest, most = visible if visible is not None else count_known(known)
        places = (~known).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]  # (B, V)
        front = self.front(condition)  # (B, S, D)
        seen = self.embed(take(tokens, places)) + self.encoder_table[places]
        x = self.trunk.token_norm(torch.cat([front, seen], dim=1))  # (B, S + V, D)
        readable = None
        if fewest != most:
            readable = torch.cat([known.new_ones(len(known), self.slots), known.gather(1, places)], dim=1)
        for i in range(len(self.trunk.encoder_blocks)):
            x = self.block("encoder", i, x, readable=readable, kept=slot(memory, f"encoder.{i}", grows=True))
        if memory is not None:
            memory.values["visible"] = most
        return self.trunk.encoder_norm(x), places, readable

    def decode(
        self,
        features: Tensor,
        places: Tensor,
        readable: Tensor | None = None,
        positions: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Context (B, M, D) at `positions` (B, M), or (B, L, D), of the encoder's result."""
        slots, b, length = self.slots, len(features), self.length
        rows = self.trunk.decoder_embed(features)
        masks = self.mask_table.to(rows.dtype)
        seen = rows[:, slots:]
        if readable is not None:  # a filler stands at an unknown place, where the mask token belongs anyway
            seen = torch.where(readable[:, slots:].unsqueeze(-1), seen, self.hidden(places).to(rows.dtype))
        image = masks.expand(b, max(len(masks), length), -1)
        image = image.scatter(1, places.unsqueeze(-1).expand(-1, -1, rows.shape[-1]), seen)  # (B, L + …, D)
        x = torch.cat([rows[:, :slots], image], dim=1) + self.decoder_table  # (B, S + L + …, D)
        # Only the positions that will be read pass the end of the last block.
        read = positions + slots if positions is not None else None
        if read is None and x.shape[1] > slots + length:
            read = (span(length, x) + slots).contiguous()
        for i in range(len(self.trunk.decoder_blocks)):
            last = i == len(self.trunk.decoder_blocks) - 1
            x = self.block("decoder", i, x, positions=read if last else None, kept=slot(memory, f"decoder.{i}"))
        x = self.trunk.decoder_norm(x)
        if positions is not None:
            return self.finish(x + self.head_table[positions])  # (B, M, D)
        return self.finish((x if read is not None else x[:, slots:]) + self.head_table)  # (B, L, D)

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
        """See Generator.context; tokens are (B, L, C) or ids (B, L)."""
        return self.decode(*self.encode(tokens, known, condition, visible, memory), positions, memory)

    def encode_local(self, tokens: Tensor, condition: Tensor, memory: Memory, step: Local) -> Tensor:
        """Encoder features (B, n, D) of the drawn tokens among those computed anew, behind the front's if it is too."""
        slots, drawn = self.slots, step.positions[:, : step.drawn]  # (B, n)
        x = self.embed(take(tokens, drawn)) + self.encoder_table[drawn]
        # The encoder holds visible tokens only: those of the group stand behind them, each in a place of its own.
        behind = slots + memory.values["visible"]
        rows = span(step.drawn, x) + behind + step.fresh[0]
        if step.prefix:
            x = torch.cat([self.front(condition), x], dim=1)  # (B, S + n, D)
            rows = torch.cat([span(slots, x), rows], dim=1)
        x = self.trunk.token_norm(x)
        for i in range(len(self.trunk.encoder_blocks) if x.shape[1] else 0):
            x = self.block("encoder", i, x, kept=memory.layer(f"encoder.{i}"), rows=rows, until=behind + step.done)
        return self.trunk.encoder_norm(x)

    def local(self, tokens: Tensor, condition: Tensor, memory: Memory, step: Local) -> Tensor:
        """See Generator.local."""
        slots, places = self.slots, step.positions
        x = self.trunk.decoder_embed(self.encode_local(tokens, condition, memory, step))
        rows, wanted = step.rows(slots), step.wanted(slots)
        hidden = self.hidden(places[:, step.drawn :]).to(x.dtype)
        x = torch.cat([x, hidden], dim=1) + self.decoder_table[rows]  # (B, S + n, D) or (B, n, D)
        for i in range(len(self.trunk.decoder_blocks)):
            last = i == len(self.trunk.decoder_blocks) - 1
            kept = memory.layer(f"decoder.{i}")
            x = self.block("decoder", i, x, positions=wanted if last else None, kept=kept, rows=rows)
        return self.finish(
            self.trunk.decoder_norm(x) + self.head_table[step.group[:, slice(*step.asked)]]
        )  # (B, asked, D)


def class_vector(model: Any, condition: Tensor) -> Tensor:
    """What every slot of the buffer holds (B, D): the class's vector, or `fake_latent` for the null class."""
    null = (condition == model.null_class).unsqueeze(1)
    return torch.where(null, model.fake_latent, model.class_embed(condition.clamp(max=model.null_class - 1)))


def masked_places(known: Tensor) -> tuple[tuple[int, int], Tensor | None]:
    """Fewest and most known tokens of a row of known (B, L), and where all rows know as many the masked places (B, M)."""
    fewest, most = count_known(known)
    if fewest != most:
        return (fewest, most), None
    return (fewest, most), known.to(torch.uint8).argsort(dim=1, stable=True)[:, : known.shape[1] - most]


def copies_loss(head: Any, z: Tensor, tokens: Tensor, where: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A diffusion head's loss and ε error (B, K, M) of K copies of the tokens (B, L, C) at `where` (B, M).

    Args:
        z: context (B, M, D). t, noise: of all positions, (B, K, L) and (B, K, L, C).
    """
    copies = where.unsqueeze(1).expand(-1, t.shape[1], -1)  # (B, K, M)
    noise = noise.gather(2, copies.unsqueeze(-1).expand(-1, -1, -1, noise.shape[-1]))
    target = gather_rows(tokens, where).unsqueeze(1)  # (B, 1, M, C)
    return head.loss(z.unsqueeze(1), target, t=t.gather(2, copies), noise=noise)
