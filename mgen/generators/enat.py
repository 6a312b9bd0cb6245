"""ENAT: visible tokens are encoded, masked ones decoded from them, and features are carried from step to step.

Ni et al., "ENAT: Rethinking Spatial-temporal Interactions in Token-based Image Synthesis" (NeurIPS 2024, arXiv 2411.06959).
A block attends from its tokens to themselves and to a context in one softmax. In the encoder these are the newly revealed tokens
and the features of those revealed earlier (as the previous evaluation left them, projected); in the decoder the masked tokens
and all visible features. The class enters by adaptive layer norms alone.

Notation: B batch, L image tokens, O tokens with features from the evaluation before, N newly revealed ones, V = O + N, H masked
ones, M asked positions, D width.

| size | D | encoder + decoder blocks | heads | parameters |
|---|---|---|---|---|
| S, B (weights not published; sizes inferred) | 512, 768 | 14 + 2 | 8, 12 | 96.0, 214.9 M |
| L (published, 256 and 512 px) | 1024 | 22 + 2 | 16 | 565.9, 566.7 M |
| fmnist (demo, 32 px) | 128 | 7 + 2 | 4 | 3.5 M |
"""

from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks the base class up in this namespace)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mgen.generators.base import Generator, check_unit, count_known, id_head, reset_windows
from mgen.nn import (
    MLP,
    Local,
    Memory,
    WindowEmbedding,
    Windows,
    attend,
    gather_rows,
    slot,
    span,
    take,
    token_embedding,
)
from mgen.nn.attention import Rows
from mgen.nn.memory import KeyValues
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError
from mgen.utils.modeling import public


class ContextBlock(nn.Module):
    """x += gate · attn(x; context, x); x += gate · MLP(x), with adaptive layer norms.

    The modulation (B, 8, D) of a block: shift and scale of x, of the context; gate of the attention; shift, scale, gate of the MLP.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise MgenError(f"heads {heads} does not divide the width {dim}")
        self.heads = heads
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.q = nn.Linear(dim, dim)
        self.kv_context = nn.Linear(dim, 2 * dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.mlp = MLP(dim, 4 * dim, approximate="tanh")
        self.adaln = nn.Linear(dim, 8 * dim)

    def _modulate(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, self.norm(x), 1 + scale)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        context: Tensor | None = None,
        *,
        positions: Rows | None = None,
        readable: Tensor | None = None,
        kept: KeyValues | None = None,
        rows: Tensor | None = None,
        until: int | None = None,
    ) -> Tensor:
        """(B, N, D) → (B, N, D), or (B, Q, D) at `positions`.

        Args:
            context: (B, O, D), read but not changed. readable: bool (B, O + N), None: all.
            kept, rows, until: where the keys of context and x, in this order, are stored or written; see Attention.
        """
        shift, scale, shift_c, scale_c, gate, shift_m, scale_m, gate_m = modulation.unsqueeze(2).unbind(1)  # (B, 1, D)
        h = self._modulate(x, shift, scale)
        kv = self.kv(h)
        if context is not None:
            kv = torch.cat([self.kv_context(self._modulate(context, shift_c, scale_c)), kv], dim=1)  # (B, O + N, 2D)
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, O + N, d)
        if kept is not None:
            k, v = kept.store(k, v) if rows is None else kept.put(k, v, rows, until)
        if not x.shape[1]:  # nothing is new: only the keys were wanted
            return x
        if positions is not None:
            x, h = gather_rows(x, positions), gather_rows(h, positions)
        q = self.q(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out = attend(q, k, v, readable=readable).transpose(1, 2).flatten(2)  # (B, Q, D)
        x = torch.addcmul(x, gate, self.proj(out))
        return torch.addcmul(x, gate_m, self.mlp(self._modulate(x, shift_m, scale_m)))


@public
class ENAT(Generator):
    """Class-conditional masked generator on ids whose computation follows the visible tokens.

    Args:
        side: h = w of the token grid; L = side². codes: the vocabulary is codes and the mask.
        dim, heads: of the trunk. encoder_depth, decoder_depth: blocks for visible and for masked tokens.
        num_classes: classes; the null class is one more. dropout: on embeddings, in training.
        shuffle: side of the windows that the trunk computes as one row each (Token-Shuffle, arXiv 2504.17789); 1: none.
        shuffle_blocks: residual MLPs on either side of the trunk, with windows.
        mask_unit: what is masked and drawn as one: "window".
        class_names: for captions and file names; no part of the network.
    """

    SIZES = {
        "S": dict(dim=512, encoder_depth=14, decoder_depth=2, heads=8),
        "B": dict(dim=768, encoder_depth=14, decoder_depth=2, heads=12),
        "L": dict(dim=1024, encoder_depth=22, decoder_depth=2, heads=16),
        "L-512": dict(side=32, dim=1024, encoder_depth=22, decoder_depth=2, heads=16),
        "fmnist": dict(side=8, codes=512, dim=128, encoder_depth=7, decoder_depth=2, heads=4)
        | dict(num_classes=10, dropout=0.0),
    }
    carries = True

    @register_to_config
    def __init__(
        self,
        *,
        side: int = 16,
        codes: int = 1024,
        dim: int = 1024,
        encoder_depth: int = 22,
        decoder_depth: int = 2,
        heads: int = 16,
        num_classes: int = 1000,
        dropout: float = 0.1,
        shuffle: int = 1,
        shuffle_blocks: int = 2,
        mask_unit: str = "window",
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        check_unit(shuffle, mask_unit, name="ENAT")
        self.windows = Windows((side, side), shuffle)
        self.token_embed = token_embedding(
            windows=self.windows,
            blocks=shuffle_blocks,
            rows=codes + 1,
            length=side * side,
            dim=dim,
            eps=1e-6,
            dropout=dropout,
        )
        self.class_embed = nn.Embedding(num_classes + 1, dim)
        self.carry_norm = nn.LayerNorm(dim, eps=1e-6)
        self.carry_mlp = MLP(dim, 4 * dim, approximate="tanh")
        self.encoder_blocks = nn.ModuleList(ContextBlock(dim, heads) for _ in range(encoder_depth))
        self.decoder_blocks = nn.ModuleList(ContextBlock(dim, heads) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(dim)
        self.head = id_head(table=self.token_embed.word, codes=codes, shuffle=shuffle, blocks=shuffle_blocks)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for block in self._blocks():
            nn.init.zeros_(block.adaln.weight)
        if isinstance(self.token_embed, WindowEmbedding):
            reset_windows(self.token_embed.join, self.head)

    def _blocks(self) -> list[Any]:
        return [*self.encoder_blocks, *self.decoder_blocks]

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
        """Of every block (B, 8, D): functions of the class (B,) alone."""
        y = nn.functional.silu(self.class_embed(condition))
        return [block.adaln(y).unflatten(-1, (8, -1)) for block in self._blocks()]

    def memory(self, condition: Tensor) -> Memory:
        """See Generator.memory."""
        memory = Memory()
        memory.values["modulations"] = self.modulations(condition)
        return memory

    def _modulations(self, condition: Tensor, memory: Memory | None) -> tuple[list[Tensor], list[Tensor]]:
        """Of the encoder's and of the decoder's blocks."""
        all_ = memory.values.get("modulations") if memory is not None else None
        all_ = self.modulations(condition) if all_ is None else [m[: len(condition)] for m in all_]
        return all_[: len(self.encoder_blocks)], all_[len(self.encoder_blocks) :]

    def hidden(self, positions: Tensor) -> Tensor:
        """Mask tokens at positions (B, n): (B, n, D)."""
        ids = positions if self.unit is None else positions.unsqueeze(-1).expand(-1, -1, self.unit.side**2)
        return self.token_embed(torch.full_like(ids, self.mask_id), positions)

    def encode(
        self,
        tokens: Tensor,
        known: Tensor,
        condition: Tensor,
        *,
        visible: tuple[int, int] | None = None,
        memory: Memory | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features (B, V, D) of the visible tokens, their places (B, V), and bool (B, V), False for fillers (None: no fillers).

        Where `memory` holds features of an earlier evaluation, only tokens revealed since are encoded. It is left with the
        features of this one, if it carries them.
        """
        b = len(tokens)
        fewest, most = visible if visible is not None else count_known(known)
        before = memory.values.get("before") if memory is not None else None
        if before is None or not before["most"]:
            context, readable, old = None, None, tokens.new_empty(b, 0)
            hidden, least, count = ~known, fewest, most
        else:
            z = before["features"][:b]  # (B, O, D)
            context, old, was = z + self.carry_mlp(self.carry_norm(z)), before["places"][:b], before["known"][:b]
            readable = before["readable"]
            readable = None if readable is None else readable[:b]
            hidden, least, count = was | ~known, fewest - before["most"], most - before["fewest"]
        new = hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]  # (B, N)
        if readable is not None or least != count:
            first = old.new_ones(old.shape, dtype=torch.bool) if readable is None else readable
            readable = torch.cat([first, ~hidden.gather(1, new)], dim=1)  # (B, O + N)
        x = self.token_embed(take(tokens, new), new)  # (B, N, D)
        keep = memory is not None and memory.keep
        for i, (block, modulation) in enumerate(zip(self.encoder_blocks, self._modulations(condition, memory)[0])):
            if count or keep:
                kept = slot(memory, f"encoder.{i}", grows=True)
                x = block(x, modulation, context, readable=readable, kept=kept)
        features, places = (x if context is None else torch.cat([context, x], dim=1)), torch.cat([old, new], dim=1)
        if memory is not None and memory.carry:
            counts = {"fewest": fewest, "most": most, "known": known.clone()}
            memory.values["before"] = {"features": features, "places": places, "readable": readable, **counts}
        return features, places, readable

    def decode(
        self,
        features: Tensor,
        known: Tensor,
        condition: Tensor,
        readable: Tensor | None = None,
        *,
        visible: tuple[int, int] | None = None,
        positions: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """The masked tokens (B, H, D) in ascending order, or those at `positions` (B, M), read from visible features (B, V, D)."""
        fewest, most = visible if visible is not None else count_known(known)
        length, front = known.shape[1], features.shape[1]
        hidden = known.to(torch.uint8).argsort(dim=1, stable=True)[:, : length - fewest]  # (B, H)
        if readable is not None or fewest != most:
            first = known.new_ones(len(known), front) if readable is None else readable
            readable = torch.cat([first, ~known.gather(1, hidden)], dim=1)  # (B, V + H)
        x = self.hidden(hidden)
        ranks = (~known).cumsum(1) - 1  # which of the masked tokens a position is
        if memory is not None and memory.keep:
            memory.values["rows"] = ranks + front
            memory.values["front"] = front
        read = None if positions is None else ranks.gather(1, positions).clamp(min=0)
        context = features if front else None
        for i, (block, modulation) in enumerate(zip(self.decoder_blocks, self._modulations(condition, memory)[1])):
            rows = read if i == len(self.decoder_blocks) - 1 else None
            x = block(x, modulation, context, positions=rows, readable=readable, kept=slot(memory, f"decoder.{i}"))
        return x if self.decoder_blocks or read is None else gather_rows(x, read)

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
        """See Generator.context. Without `positions`, rows of known tokens hold their features, unused by sampling and loss."""
        visible = visible if visible is not None else count_known(known)
        features, places, readable = self.encode(tokens, known, condition, visible=visible, memory=memory)
        x = self.decode(features, known, condition, readable, visible=visible, positions=positions, memory=memory)
        if positions is None:
            x = self.arrange(features, places, readable, x, known)
        return self.norm(x)

    @staticmethod
    def arrange(features: Tensor, places: Tensor, readable: Tensor | None, decoded: Tensor, known: Tensor) -> Tensor:
        """Features (B, V, D) at `places` and decoded tokens (B, H, D) in the order of the image: (B, L, D)."""
        hidden = known.to(torch.uint8).argsort(dim=1, stable=True)[:, : decoded.shape[1]]
        values, order = torch.cat([features, decoded], dim=1), torch.cat([places, hidden], dim=1)
        real = torch.cat([known.gather(1, places) if readable is None else readable, ~known.gather(1, hidden)], dim=1)
        # Fillers go to a place of their own, behind the image.
        order = torch.where(real, order, known.shape[1]).unsqueeze(-1).expand_as(values)
        return values.new_zeros(len(known), known.shape[1] + 1, values.shape[2]).scatter(1, order, values)[:, :-1]

    def local(self, tokens: Tensor, condition: Tensor, memory: Memory, step: Local) -> Tensor:
        """See Generator.local. There is no prefix here; carried features change at full evaluations only."""
        encoder, decoder = self._modulations(condition, memory)
        places, front, n = step.positions, memory.values["front"], step.drawn
        x = self.token_embed(take(tokens, places[:, :n]), places[:, :n])  # (B, n, D)
        rows = span(n, x) + front + step.fresh[0]
        for i, (block, modulation) in enumerate(zip(self.encoder_blocks, encoder)):
            if n:
                x = block(x, modulation, kept=memory.layer(f"encoder.{i}"), rows=rows, until=front + step.done)
        seen = x if n else None
        x = self.hidden(places[:, n:])
        rows = memory.values["rows"][: len(x)].gather(1, places)
        wanted = slice(step.asked[0] - step.fresh[0] - n, step.asked[1] - step.fresh[0] - n)
        for i, (block, modulation) in enumerate(zip(self.decoder_blocks, decoder)):
            last = i == len(self.decoder_blocks) - 1
            kept = memory.layer(f"decoder.{i}")
            x = block(x, modulation, seen, positions=wanted if last else None, kept=kept, rows=rows)
        return self.norm(x)

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        condition: Tensor,
        known: Tensor,
        *,
        memory: Memory | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Training: loss and hit of every masked token; `memory` holds the features of a previous step, if it is simulated."""
        z = self.context(tokens, known, condition, memory=memory)
        return self.masked_loss(z, tokens, known, label_smoothing=label_smoothing)

    def look(self, tokens: Tensor, condition: Tensor, known: Tensor) -> Memory:
        """The features that an evaluation of this state leaves for the next one (training simulates the previous step so)."""
        memory = Memory()
        memory.carry = True
        self.encode(tokens, known, condition, memory=memory)
        memory.carry = False
        return memory
