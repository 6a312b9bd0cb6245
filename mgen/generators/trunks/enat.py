"""ENAT: known tokens are encoded, masked ones decoded from them, and features are carried from step to step.

Ni et al., "ENAT: Rethinking Spatial-temporal Interactions in Token-based Image Synthesis" (NeurIPS 2024, arXiv 2411.06959).
A block attends from its tokens to themselves and to a context in one softmax. In the encoder these are the newly revealed tokens
and the features of those revealed earlier (as the previous full pass left them, projected); in the decoder the masked tokens
and all features. The class enters by adaptive layer norms alone.

Notation: B batch, L rows, O tokens with features from the pass before, N newly revealed ones, V = O + N, H masked ones, M positions
asked for, D width.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.generators.embedder import TokenRows
from mgen.generators.trunk import (
    FULL,
    Capabilities,
    Layout,
    PassOptions,
    Trunk,
    known_first,
    register_trunk,
    unknown_first,
)
from mgen.nn import MLP, Blocks, Cache, CachedStep, KVCache, Rows, attend, check_heads, gather_rows, run_blocks, span
from mgen.nn.dropout import dropout
from mgen.utils.fitting import DataRows
from mgen.utils.schema import Depth, Rate, Size, schema


@schema
class ENATConfig:
    """Settings; defaults are those of ENAT-L.

    Args: D, blocks for known and for masked tokens, attention heads, dropout on embeddings in training.
    """

    dim: Size = 1024
    encoder_depth: Depth = 22
    decoder_depth: Depth = 2
    heads: Size = 16
    dropout: Rate = 0.1

    def __post_init__(self) -> None:
        check_heads(self.dim, self.heads)


class ContextBlock(nn.Module):
    """x += gate · attn(x; context, x); x += gate · MLP(x), with adaptive layer norms.

    The modulation (B, 8, D) of a block: shift and scale of x, of the context; gate of the attention; shift, scale, gate of the MLP.
    """

    called_apart = ("adaln",)  # parts that others call, see mgen.training.sharded

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
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
        kept: KVCache | None = None,
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


@dataclass(frozen=True)
class Carried:
    """Features (B, V, D) that a full pass left: of tokens at `positions` (B, V), `readable` bool (B, V) or None, known (B, L)."""

    features: Tensor
    positions: Tensor
    readable: Tensor | None
    fewest: int
    most: int
    known: Tensor


class ENATCache(Cache):
    """Modulations of the class (None: not kept); features of the last full pass; the row of every position in the decoder."""

    def __init__(self, modulations: tuple[list[Tensor], list[Tensor]] | None, *, carry: bool) -> None:
        super().__init__()
        self.modulations, self.carry = modulations, carry
        self.carried: Carried | None = None
        self.seen = 0  # rows of known tokens in front of the masked ones
        self.rows: Tensor | None = None  # (B, L)


@register_trunk("enat", ENATConfig)
class ENAT(Trunk):
    """Trunk whose computation follows the known tokens."""

    capabilities = Capabilities(carried_features=True)
    lora_targets = ("q", "kv_context", "kv", "proj", "mlp.fc1", "mlp.fc2")

    def __init__(self, config: ENATConfig, *, layout: Layout) -> None:
        super().__init__()
        c, self.config, self.width, self.context_width = config, config, config.dim, config.dim
        self.layout = layout
        self.position = nn.Embedding(layout.length, c.dim)
        self.token_norm = nn.LayerNorm(c.dim, eps=1e-6)
        self.carry_norm = nn.LayerNorm(c.dim, eps=1e-6)
        self.carry_mlp = MLP(c.dim, 4 * c.dim, approximate="tanh")
        self.encoder_blocks = Blocks(ContextBlock(c.dim, c.heads) for _ in range(c.encoder_depth))
        self.decoder_blocks = Blocks(ContextBlock(c.dim, c.heads) for _ in range(c.decoder_depth))
        self.norm = nn.LayerNorm(c.dim)

    def data_rows(self) -> DataRows:
        return {"position.weight": {0: self.layout.rows}}

    def initialize(self, module: nn.Module) -> None:
        """Official initial values: Xavier for linear layers, normal 0.02 for tables; modulations start at zero."""
        super().initialize(module)
        if isinstance(module, ContextBlock):
            nn.init.zeros_(module.adaln.weight)

    def modulations(self, classes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of the encoder's and of the decoder's blocks, (B, 8, D) each: functions of the class alone."""
        y = F.silu(classes)
        halves = self.encoder_blocks, self.decoder_blocks
        encoder, decoder = ([block.adaln(y).unflatten(-1, (8, -1)) for block in blocks] for blocks in halves)
        return encoder, decoder

    def start(self, classes: Tensor, *, prefix: Tensor | None = None, carry: bool = False) -> Cache:
        super().start(classes, prefix=prefix)
        return ENATCache(self.modulations(classes), carry=carry)

    def _cached_modulations(self, classes: Tensor, cache: Cache | None) -> tuple[list[Tensor], list[Tensor]]:
        if not isinstance(cache, ENATCache) or cache.modulations is None:
            return self.modulations(classes)
        encoder, decoder = ([m[: len(classes)] for m in part] for part in cache.modulations)
        return encoder, decoder

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rows (B, n, D) at positions (B, n)."""
        return dropout(self.token_norm(x + self.position(positions)), self.config.dropout, self.training)

    def encode(
        self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features (B, V, D) of the known tokens, their positions (B, V), and bool (B, V), False for fillers (None: no fillers).

        Where `cache` holds features of an earlier pass, only tokens revealed since are encoded. It is left with the features of
        this one, if it carries them.
        """
        known, b, cache = rows.known, len(rows.known), options.cache
        fewest, most = options.counts(known)
        before = cache.carried if isinstance(cache, ENATCache) else None
        if before is None or not before.most:
            context, readable, old = None, None, known.new_empty(b, 0, dtype=torch.int64)
            hidden, least, count = ~known, fewest, most
        else:
            z = before.features[:b]  # (B, O, D)
            context, old = z + self.carry_mlp(self.carry_norm(z)), before.positions[:b]
            readable = None if before.readable is None else before.readable[:b]
            hidden, least, count = before.known[:b] | ~known, fewest - before.most, most - before.fewest
        new = known_first(~hidden, count)  # (B, N)
        if readable is not None or least != count:
            first = old.new_ones(old.shape, dtype=torch.bool) if readable is None else readable
            readable = torch.cat([first, ~hidden.gather(1, new)], dim=1)  # (B, O + N)
        x = self.embed(rows.at(new), new)  # (B, N, D)
        for i, (block, modulation) in enumerate(zip(self.encoder_blocks, self._cached_modulations(classes, cache)[0])):
            if count or options.keep is not None:
                kept = options.layer(f"encoder.{i}", grows=True)
                x = block(x, modulation, context, readable=readable, kept=kept)
        features, positions = (x if context is None else torch.cat([context, x], dim=1)), torch.cat([old, new], dim=1)
        if isinstance(cache, ENATCache) and cache.carry:
            cache.carried = Carried(features, positions, readable, fewest, most, known.clone())
        return features, positions, readable

    def decode(
        self,
        rows: TokenRows,
        features: Tensor,
        classes: Tensor,
        readable: Tensor | None = None,
        options: PassOptions = FULL,
    ) -> Tensor:
        """The masked tokens (B, H, D) in ascending order, or those at `options.positions`, read from features (B, V, D)."""
        known, cache, positions = rows.known, options.cache, options.positions
        fewest, most = options.counts(known)
        length, seen = known.shape[1], features.shape[1]
        hidden = unknown_first(known, length - fewest)  # (B, H)
        if readable is not None or fewest != most:
            first = known.new_ones(len(known), seen) if readable is None else readable
            readable = torch.cat([first, ~known.gather(1, hidden)], dim=1)  # (B, V + H)
        x = self.masked_rows(rows, hidden)
        ranks = (~known).cumsum(1) - 1  # which of the masked tokens a position is
        if isinstance(cache, ENATCache) and options.keep is not None:
            cache.rows, cache.seen = ranks + seen, seen
        read = None if positions is None else ranks.gather(1, positions).clamp(min=0)
        context = features if seen else None
        modulations, shared = self._cached_modulations(classes, cache)[1], {"context": context, "readable": readable}
        return run_blocks(
            self.decoder_blocks,
            x,
            read,
            lambda i: {"modulation": modulations[i], "kept": options.layer(f"decoder.{i}"), **shared},
        )

    def masked_rows(self, rows: TokenRows, positions: Tensor) -> Tensor:
        """Mask rows (B, n, D) at positions (B, n)."""
        return self.embed(rows.embedder.mask.expand(*positions.shape, -1), positions)

    def forward(self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL) -> Tensor:
        """See Trunk.forward. Without positions, rows of known tokens hold their features, unused by sampling and loss."""
        options = replace(options, visible=options.counts(rows.known))
        features, seen_at, readable = self.encode(rows, classes, options)
        x = self.decode(rows, features, classes, readable, options)
        if options.positions is None:
            x = self.arrange(features, seen_at, readable, x, rows.known)
        return self.norm(x)

    @staticmethod
    def arrange(features: Tensor, seen_at: Tensor, readable: Tensor | None, decoded: Tensor, known: Tensor) -> Tensor:
        """Features (B, V, D) at `seen_at` and decoded tokens (B, H, D) in the order of the image: (B, L, D)."""
        hidden = unknown_first(known, decoded.shape[1])
        values, order = torch.cat([features, decoded], dim=1), torch.cat([seen_at, hidden], dim=1)
        real = torch.cat([known.gather(1, seen_at) if readable is None else readable, ~known.gather(1, hidden)], dim=1)
        # Fillers go to a row of their own, behind the image.
        order = torch.where(real, order, known.shape[1]).unsqueeze(-1).expand_as(values)
        return values.new_zeros(len(known), known.shape[1] + 1, values.shape[2]).scatter(1, order, values)[:, :-1]

    def cached_step(self, rows: TokenRows, classes: Tensor, cache: Cache, step: CachedStep) -> Tensor:
        """See Trunk.cached_step. There is no prefix here; carried features change in full passes only."""
        assert isinstance(cache, ENATCache) and cache.rows is not None
        encoder, decoder = self._cached_modulations(classes, cache)
        positions, n = step.positions, step.drawn
        x = self.embed(rows.at(positions[:, :n]), positions[:, :n])  # (B, n, D)
        at = span(n, x) + cache.seen + step.fresh[0]
        for i, (block, modulation) in enumerate(zip(self.encoder_blocks, encoder)):
            if n:
                x = block(x, modulation, kept=cache.layer(f"encoder.{i}"), rows=at, until=cache.seen + step.done)
        known = x if n else None
        x = self.masked_rows(rows, positions[:, n:])
        at = cache.rows[: len(x)].gather(1, positions)
        wanted = slice(step.asked[0] - step.fresh[0] - n, step.asked[1] - step.fresh[0] - n)
        shared = {"context": known, "rows": at}
        x = run_blocks(
            self.decoder_blocks,
            x,
            wanted,
            lambda i: {"modulation": decoder[i], "kept": cache.layer(f"decoder.{i}"), **shared},
        )
        return self.norm(x)

    def carry(self, rows: TokenRows, classes: Tensor, options: PassOptions) -> None:
        self.encode(rows, classes, options)

    def encode_features(self, rows: TokenRows, classes: Tensor) -> ENATCache:
        """The features that a pass in this state leaves for the next one; training simulates the step before with it."""
        cache = ENATCache(None, carry=True)
        self.encode(rows, classes, PassOptions(cache=cache))
        cache.carry = False
        return cache
