"""Channel head: context vector → one small id per channel of a token, drawn one after the other by a causal transformer.

Wang et al., "Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation" (TokenBridge, arXiv 2503.16430,
§3.3). Slot i is the i-th id drawn, that of the tokenizer's channel order[i]. Every slot has a condition
c_i = cond(z) + slot_condition_i, from which come shifts, scales and gates (adaLN of DiT, arXiv 2212.09748), and an input: the id
of the slot before.

Notation: B batch, M positions, D width of the context, C channels (and slots), Q levels, E width of the transformer, H heads,
d = E / H, n = B·M tokens, R rows of the network (n, or 2n where both halves of the guidance pass), S slots computed at once.

Sampling keeps keys and values, so a slot costs one pass of its own; modulations know nothing of drawn ids: those of all slots
are one product per block, ahead of the slots.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.heads.head import Draw, Head, HeadInputs, HeadNoise, HeadSettings, NoiseSpec, mix, register_head
from mgen.heads.logit_filter import TopK, TopP, choose, keep_likeliest
from mgen.nn.attention import attend_filled
from mgen.nn.blocks import MLP, Blocks
from mgen.nn.halves import separate, sharing
from mgen.nn.modulated import modulate
from mgen.nn.sizes import Ratio, check_heads
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import Layers, Listed, Natural, Size, schema

# Numbers that the modulations of one piece of the rows may take: 512 MB in fp32, 315 tokens of the published L.
PIECE = 2**27
# The number of a slot and the ids (R,) of the slot before, None at first → logits (R, Q).
SlotNetwork = Callable[[int, Tensor | None], Tensor]


@schema
class ChannelSettings(HeadSettings):
    """How a channel head draws the ids of a token.

    Args:
        top_k: only the k likeliest levels of a channel can be drawn; None: all.
        top_p: only the likeliest levels that together reach this probability can be drawn, 0 < top_p ≤ 1; None: all.
        guide: what guidance mixes: "context", the vectors that the head takes, one pass for both (published), or "logits",
            which takes a pass of the head for each.
    """

    top_k: TopK = None
    top_p: TopP = None
    guide: Literal["context", "logits"] = "context"


class SlotAttention(nn.Module):
    """Causal self-attention over slots, with an affine layer norm on the q and k of every head."""

    def __init__(self, width: int, heads: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads, eps=eps)
        self.k_norm = nn.LayerNorm(width // heads, eps=eps)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, kept: Tensor | None = None, slot: int = 0) -> Tensor:
        """(R, S, E) → (R, S, E): all slots at once, or with `kept` (2, R, H, C, d) the one slot of this number.

        Keys and values of the slots before are read from `kept`, its own are written there.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (R, H, S, d) each
        q, k = self.q_norm(q).type_as(v), self.k_norm(k).type_as(v)
        if kept is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            kept[0, :, :, slot : slot + 1], kept[1, :, :, slot : slot + 1] = k, v
            out = attend_filled(q, kept[0], kept[1], slot + 1)
        return self.proj(out.transpose(1, 2).flatten(2))  # (R, S, E)


class SlotBlock(nn.Module):
    """x += gate1 · attn(LN(x) · (1 + scale1) + shift1); x += gate2 · mlp(LN(x) · (1 + scale2) + shift2); LN is affine."""

    called_apart = ("adaln",)  # parts that others call, see mgen.training.sharded

    def __init__(self, width: int, heads: int, *, hidden: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = SlotAttention(width, heads, eps=eps)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden)
        self.adaln = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, modulation: Tensor, kept: Tensor | None = None, slot: int = 0) -> Tensor:
        """x (R, S, E), modulation (R, S, 6E): shift, scale, gate of the attention, then of the MLP; rest as SlotAttention."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)  # (R, S, E) each
        x = torch.addcmul(x, gate1, self.attn(modulate(self.norm1(x), shift1, scale1), kept, slot))
        return torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))


@schema
class ChannelConfig:
    """Settings; defaults are those of TokenBridge-L.

    Args:
        width: E. depth, heads: of the transformer. mlp_ratio: hidden width over E.
        order: the tokenizer's channel of every slot, a permutation of 0 … C − 1; None: ascending.
        first: input of the first slot in sampling. "published": its condition c_0, as the official sampler has it;
            "consistent": cond(z) alone, as in training.
    """

    width: Size = 1024
    depth: Layers = 4
    heads: Size = 8
    mlp_ratio: Ratio = 4.0
    order: Listed[tuple[Natural, ...]] | None = None
    first: Literal["published", "consistent"] = "published"

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, width_name="width")


@register_head("channels", ChannelConfig)
class ChannelHead(Head[ChannelSettings]):
    """p(ids of a token | context) = Π_i p(id of slot i | ids of the slots before, context).

    Raises:
        MgenError: an order that is no permutation, a single level.
    """

    token_kinds = ("multi-index",)

    def __init__(self, config: ChannelConfig, inputs: HeadInputs) -> None:
        super().__init__()
        c, tokens, width = config, inputs.tokens, config.width
        channels, levels = tokens.channels, tokens.vocab_size
        if levels is None or min(channels, levels) < 1:
            raise MgenError(f"head 'channels' draws ids of quantized channels; these tokens are {tokens.sizes()}")
        self.order = tuple(range(channels) if c.order is None else c.order)
        if sorted(self.order) != list(range(channels)):
            raise MgenError(
                f"head.order is {list(self.order)}: expected each of 0 … {channels - 1} once, in the order of drawing"
            )
        self.config, self.channels, self.levels, self.heads, self.inner = c, channels, levels, c.heads, width
        self.width = inputs.width
        self.cond = nn.Linear(inputs.width, width)
        self.slot_condition = nn.Parameter(torch.zeros(channels, width))
        self.slot_position = nn.Parameter(torch.zeros(channels, width))
        self.tokens = nn.Embedding((channels - 1) * levels, width)  # rows of a slot behind those of the slot before
        self.blocks = Blocks(SlotBlock(width, c.heads, hidden=int(width * c.mlp_ratio)) for _ in range(c.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.out_adaln = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, channels * levels)  # likewise

    def initialize(self, default: Callable[[nn.Module], None]) -> None:
        """Xavier for linear layers (`out` by slot), normal 0.02 for what tells slots apart, 1 for ids; modulations zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for rows in self.out.weight.data.split(self.levels):
            nn.init.xavier_uniform_(rows)
        for table in (self.slot_condition, self.slot_position):
            nn.init.normal_(table, std=0.02)
        nn.init.normal_(self.tokens.weight)
        for layer in (self.out_adaln, *(block.adaln for block in self.blocks)):
            nn.init.zeros_(layer.weight)

    def data_rows(self, table: tuple[Rows, ...] = ()) -> DataRows:
        slots, ids = (Rows("channels", (self.channels,)),), (Rows("ids of channels", (self.channels, self.levels)),)
        out: DataRows = {name: {0: slots} for name in ("slot_condition", "slot_position")}
        inputs = (Rows("ids of channels", (self.channels - 1, self.levels)),)
        return out | {"tokens.weight": {0: inputs}, "out.weight": {0: ids}, "out.bias": {0: ids}}

    # -- the network ---------------------------------------------------------------------------------------------------

    def modulations(self, conditions: Tensor) -> list[Tensor]:
        """Of every block (…, 6E), then of the output (…, 2E), for the conditions (…, E) of slots."""
        y = F.silu(conditions)
        return [*(block.adaln(y) for block in self.blocks), self.out_adaln(y)]

    def first_input(self, cond: Tensor, *, sampling: bool) -> Tensor:
        """Of the first slot, before its position is added, (R, E) for cond(z) (R, E)."""
        return cond + self.slot_condition[0] if sampling and self.config.first == "published" else cond

    def final_norm(self, x: Tensor, modulation: Tensor) -> Tensor:
        """What `out` takes, (…, E), of the last block's result x (…, E) and modulation (…, 2E): scale, then shift."""
        scale, shift = modulation.chunk(2, dim=-1)
        return modulate(F.layer_norm(self.norm(x), x.shape[-1:], eps=1e-6), shift, scale)

    def forced(self, z: Tensor, ids: Tensor, *, sampling: bool = False) -> Tensor:
        """Logits (…, C, Q) fp32 of every slot, in slot order, given the true ids of the slots before: one causal pass.

        Args:
            z: context (…, D). ids: (…, C) int64 in the tokenizer's order of channels.
            sampling: with the first input of sampling (see `first`) instead of that of training.
        """
        shape, ids, cond = ids.shape, self.by_slot(ids).flatten(0, -2), self.cond(z).flatten(0, -2)  # (n, C), (n, E)
        rows = ids[:, :-1] + self.levels * torch.arange(self.channels - 1, device=ids.device)
        first = self.first_input(cond, sampling=sampling).unsqueeze(1)  # (n, 1, E)
        x = torch.cat([first, self.tokens(rows).to(first.dtype)], dim=1) + self.slot_position  # (n, C, E)
        modulations = self.modulations(cond.unsqueeze(1) + self.slot_condition)
        for block, modulation in zip(self.blocks, modulations):
            x = block(x, modulation)
        table = self.out.weight.unflatten(0, (self.channels, -1))  # (C, Q, E)
        logits = torch.einsum("nce,cqe->ncq", self.final_norm(x, modulations[-1]), table).float()
        return (logits + self.out.bias.view(self.channels, -1)).view(*shape, -1)

    def by_slot(self, ids: Tensor) -> Tensor:
        """Ids (…, C) of channels, put in slot order."""
        columns = ids.unbind(-1)
        return torch.stack([columns[channel] for channel in self.order], dim=-1)

    def loss(
        self, z: Tensor, target: Tensor, *, noise: HeadNoise | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy and share of right guesses, means over the C channels of a token, both (…,).

        Args:
            z: context (…, D). target: ids (…, C) int64 in the tokenizer's order of channels.
        """
        logits, goal = self.forced(z, target).flatten(0, -2), self.by_slot(target).flatten()  # (n·C, Q), (n·C,)
        losses = F.cross_entropy(logits, goal, reduction="none", label_smoothing=label_smoothing)
        hits = (logits.argmax(-1) == goal).float()
        return losses.view(target.shape).mean(-1), hits.view(target.shape).mean(-1)

    # -- sampling ------------------------------------------------------------------------------------------------------

    def noise_spec(self, settings: Settings) -> NoiseSpec:
        """A draw takes one uniform number per channel."""
        return NoiseSpec(shape=(self.channels,))

    def plan(self, settings: Settings) -> ChannelSettings:
        return ChannelSettings.of(settings)

    def sample(
        self,
        z: Tensor,
        *,
        noise: Tensor,
        plan: ChannelSettings = ChannelSettings(),  # noqa: B008  (frozen)
        temperature: float = 1.0,
        guidance: float | Tensor | None = None,
    ) -> Draw:
        """Draw the ids of a token at each position; arguments as in Head, and:

        Args:
            noise: uniform (B, M, C) in [0, 1), used by inverting the distribution function, or Gumbel (B, M, C, Q), used as
                argmax(logits / temperature + noise); in the tokenizer's order of channels.
            temperature: divides the logits of the draw; held above 1e-4, where the draw is the likeliest id.
            guidance: on what `plan.guide` names.

        Returns:
            ids (B, M, C) int64 in the tokenizer's order, and the sum (B, M) of their log-probabilities at temperature 1, before
            top-k and top-p.
        """
        b, m = noise.shape[:2]
        if plan.guide == "context":
            z, guidance = mix(z, guidance), None
        halves = z.unflatten(0, (-1, b)).flatten(1, 2)  # (1 or 2, n, D)
        noise = noise.flatten(0, 1)  # (n, C) or (n, C, Q)
        row = self.channels * self.inner * (6 * len(self.blocks) + 2) * len(halves)  # numbers of its modulations
        # Pieces of about equal size: a small rest would cost a whole pass of its own.
        pieces = -(-b * m // max(1, PIECE // row)) or 1
        guides: Sequence[float | Tensor | None] = [guidance] * pieces
        if isinstance(guidance, Tensor):  # one for each image
            guides = guidance.repeat_interleave(m).tensor_split(pieces)
        drawn = [
            self._draw(part.flatten(0, 1), numbers, plan, max(temperature, 1e-4), guide)
            for part, numbers, guide in zip(halves.tensor_split(pieces, dim=1), noise.tensor_split(pieces), guides)
        ]
        ids, scores = (torch.cat(parts) for parts in zip(*drawn))
        return Draw(ids.view(b, m, -1), scores.view(b, m))

    def conditioned(self, z: Tensor) -> SlotNetwork:
        """The network of a draw, given the contexts z (R, D): called for one slot after the other, it keeps what later ones read."""
        cond = self.cond(z)  # (R, E)
        modulations = self.modulations(cond + self.slot_condition.unsqueeze(1))  # (C, R, 6E or 2E) each
        shape = 2, len(z), self.heads, self.channels, self.inner // self.heads
        kept = [cond.new_zeros(shape) for _ in self.blocks]  # zeros: see attend_filled
        weights, biases = self.out.weight.split(self.levels), self.out.bias.split(self.levels)
        tables = self.tokens.weight.split(self.levels) if self.channels > 1 else ()

        def network(slot: int, before: Tensor | None) -> Tensor:
            x = self.first_input(cond, sampling=True) if before is None else F.embedding(before, tables[slot - 1])
            x = (x + self.slot_position[slot]).unsqueeze(1)  # (R, 1, E)
            for block, modulation, layer in zip(self.blocks, modulations, kept):
                x = block(x, modulation[slot].unsqueeze(1), layer, slot)
            x = self.final_norm(x.squeeze(1), modulations[-1][slot])
            return F.linear(x, weights[slot], biases[slot])

        return network

    def guided_by(self, guide: Head[Any]) -> Self:
        """See Head.guided_by. Contexts of two models mean different things: guidance mixes logits, as with `guide: logits`."""
        self.check_guide(guide)
        assert isinstance(guide, ChannelHead)
        if self.order != guide.order:
            raise MgenError(
                f"the guide's head draws channels in the order {list(guide.order)}, this model's in {list(self.order)}: only answers of "
                "one kind can be mixed"
            )
        own = self

        def plan(settings: Settings) -> ChannelSettings:
            if settings.get("guide") == "context":
                raise MgenError(
                    "head.guide is context, which mixes context vectors of one model: with a guide use logits, or leave it out"
                )
            return ChannelSettings.of({**settings, "guide": "logits"})

        def conditioned(z: Tensor) -> SlotNetwork:
            first, second = separate(z, own.width, guide.width)
            networks = own.conditioned(first), guide.conditioned(second)

            def both(slot: int, before: Tensor | None) -> Tensor:
                halves = (None, None) if before is None else before.chunk(2)
                return torch.cat([network(slot, half) for network, half in zip(networks, halves)])

            return both

        return sharing(self, plan=plan, conditioned=conditioned)

    def _draw(
        self, z: Tensor, noise: Tensor, plan: ChannelSettings, temperature: float, guidance: float | Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Ids (n, C) and log-probabilities (n,) of context z (R, D), slot by slot."""
        n, halves = len(noise), 1 if guidance is None else 2
        network, before = self.conditioned(z), None
        ids = torch.empty(n, self.channels, dtype=torch.int64, device=z.device)
        score = torch.zeros(n, device=z.device)
        for slot, channel in enumerate(self.order):
            logits = mix(network(slot, before).float(), guidance)  # (n, Q)
            scaled = keep_likeliest(logits / temperature, top_k=plan.top_k, top_p=plan.top_p)
            chosen = choose(scaled, noise[:, channel])  # (n,)
            ids[:, channel] = chosen
            score += logits.log_softmax(-1).gather(1, chosen.unsqueeze(1)).squeeze(1)
            before = chosen.repeat(halves)
        return ids, score
