"""Hi-MAR: low-resolution pivots first, then the tokens, with one trunk for both.

Zheng et al., "Hierarchical Masked Autoregressive Models with Low-Resolution Token Pivots" (ICML 2025, arXiv 2505.20288). Stage 0
draws the S tokens of the image at a lower resolution; stage 1 draws the L tokens of the image, given the context vectors ("features")
of the pivots, not the pivots themselves. All blocks are shared and modulated by the stage.

Notation: B batch, S pivots, L tokens of C numbers (or ids), N buffer slots, D width, K copies of a token in the loss.

| size | D | depth | heads | pivot head | dense head | parameters |
|---|---|---|---|---|---|---|
| B (published) | 768 | 12 + 12 | 12 | MLP 6 × 1024 | transformer 6 × 512 | 244.5 M |
| L (published) | 1024 | 16 + 16 | 16 | MLP 8 × 1280 | transformer 8 × 512 | 529.2 M |
| H (published) | 1280 | 20 + 20 | 16 | MLP 12 × 1536 | transformer 12 × 768 | 1090.6 M |
| fmnist (32 px) | 160 | 3 + 3 | 5 | MLP 2 × 128 | transformer 3 × 128 | 3.5 M |
| fmnist-ids (32 px) | 128 | 3 + 3 | 4 | categorical | categorical | 1.7 M |
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  (diffusers looks the base class up in this namespace)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mgen.generators.autoencoder import MaskedAutoencoder, class_vector, copies_loss, masked_places
from mgen.generators.base import Generator
from mgen.heads import CategoricalHead, DiffusionHead, DiffusionTransformerHead
from mgen.nn import Local, Memory, ScaledBlock, gather_rows
from mgen.tokens import TokenSpec
from mgen.utils.errors import check_choice
from mgen.utils.modeling import public


def _size(
    *, dim: int, depth: int, heads: int, mlp: tuple[int, int] = (6, 1024), dense: tuple[int, int, int] = (6, 512, 8)
) -> dict[str, Any]:
    own = dict(dim=dim, encoder_depth=depth, decoder_depth=depth, heads=heads)
    own |= dict(pivot_head_depth=mlp[0], pivot_head_width=mlp[1])
    return own | dict(head_depth=dense[0], head_width=dense[1], head_heads=dense[2])


_FMNIST = dict(side=8, pivot_side=4, channels=4, scale=None, buffer=4, num_classes=10, attn_dropout=0.0, dropout=0.0)


@public
class HiMAR(Generator):
    """Class-conditional masked generator in two stages. As a plain generator (`context`) it is its second stage without pivots.

    Args:
        side, pivot_side: of the two token grids; L = side², S = pivot_side². channels: C. scale: of the tokenizer (see TokenSpec).
        head_kind: of the second stage, "transformer" (diffusion over the whole map), "mlp" (diffusion token by token) or "categorical":
            tokens and pivots are then ids and both stages have categorical heads.
        codes: vocabulary, for ids.
        dim, encoder_depth, decoder_depth, heads, mlp_ratio: of the trunk. decoder_heads: None, as many as the encoder's.
        buffer: N, slots that hold the class vector.
        pivot_head_width, pivot_head_depth: of the MLP head of the pivots.
        head_width, head_depth, head_heads, head_mlp_ratio: of the second stage's.
        num_classes: classes; the null class has the id `num_classes` and the vector `fake_latent`.
        attn_dropout, dropout: on attention probabilities; on the attention's output and the layers of the MLPs; in training.
        class_names: for captions and file names; no part of the network.
    """

    SIZES = {
        "B": _size(dim=768, depth=12, heads=12),
        "L": _size(dim=1024, depth=16, heads=16, mlp=(8, 1280), dense=(8, 512, 8)),
        "H": _size(dim=1280, depth=20, heads=16, mlp=(12, 1536), dense=(12, 768, 12)),
        "fmnist": _size(dim=160, depth=3, heads=5, mlp=(2, 128), dense=(3, 128, 4)) | _FMNIST,
        "fmnist-ids": _size(dim=128, depth=3, heads=4) | _FMNIST | dict(head_kind="categorical", codes=512),
    }
    staged = True  # a sampler draws the pivots first

    @register_to_config
    def __init__(
        self,
        *,
        side: int = 16,
        pivot_side: int = 8,
        channels: int = 16,
        scale: float | None = 0.2325,
        head_kind: Literal["transformer", "mlp", "categorical"] = "transformer",
        codes: int | None = None,
        dim: int = 768,
        encoder_depth: int = 12,
        decoder_depth: int = 12,
        heads: int = 12,
        decoder_heads: int | None = None,
        mlp_ratio: float = 4.0,
        buffer: int = 64,
        pivot_head_width: int = 1024,
        pivot_head_depth: int = 6,
        head_width: int = 512,
        head_depth: int = 6,
        head_heads: int = 8,
        head_mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        attn_dropout: float = 0.1,
        dropout: float = 0.1,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        check_choice("head_kind", head_kind, ("transformer", "mlp", "categorical"))
        length, pivots = side**2, pivot_side**2
        places = buffer + pivots + length

        def table(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape) * 0.02)

        def block(heads: int) -> ScaledBlock:
            return ScaledBlock(
                dim, heads, tasks=2, mlp_ratio=mlp_ratio, eps=1e-6, attn_dropout=attn_dropout, dropout=dropout
            )

        self.class_embed = nn.Embedding(num_classes, dim)
        self.fake_latent = table(1, dim)
        self.mask_token = table(2, pivots + length, dim)
        self.encoder_position, self.decoder_position = table(2, places, dim), table(2, places, dim)
        self.head_position = table(pivots + length, dim)
        self.token_proj: Any
        self.pivot_proj: Any
        if head_kind == "categorical":
            self.token_proj, self.pivot_proj = nn.Embedding(codes or 1024, dim), nn.Embedding(codes or 1024, dim)
            self.pivot_default = table(pivots, dim)
        else:
            self.token_proj, self.pivot_proj = nn.Linear(channels, dim), nn.Linear(channels, dim)
            self.pivot_default = table(pivots, channels)
        self.token_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feature_proj = nn.Linear(dim, dim)
        for part, depth, count in (
            ("encoder", encoder_depth, heads),
            ("decoder", decoder_depth, decoder_heads or heads),
        ):
            setattr(self, f"{part}_task", nn.Embedding(2, dim))
            setattr(self, f"{part}_modulation", nn.Linear(dim, 4 * dim))
            setattr(self, f"{part}_blocks", nn.ModuleList(block(count) for _ in range(depth)))
            setattr(self, f"{part}_norm", nn.LayerNorm(dim, eps=1e-6))
        self.decoder_embed = nn.Linear(dim, dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.head, self.pivot_head = self._heads()

    def _heads(self) -> tuple[Any, Any]:
        c = self.config
        if c.head_kind == "categorical":
            return tuple(  # type: ignore[return-value]
                CategoricalHead(table=table, codes=table.num_embeddings) for table in (self.token_proj, self.pivot_proj)
            )
        common = dict(channels=c.channels, context_dim=c.dim)
        pivot = DiffusionHead(**common, width=c.pivot_head_width, depth=c.pivot_head_depth)
        own = dict(width=c.head_width, depth=c.head_depth)
        if c.head_kind == "mlp":
            return DiffusionHead(**common, **own), pivot
        own |= dict(grid=(c.side, c.side), heads=c.head_heads, mlp_ratio=c.head_mlp_ratio)
        return DiffusionTransformerHead(**common, **own), pivot

    def _spec(self, side: int) -> TokenSpec:
        c = self.config
        if c.head_kind == "categorical":
            return TokenSpec(kind="index", length=side**2, grid=(side, side), vocab_size=self.token_proj.num_embeddings)
        return TokenSpec(kind="vector", length=side**2, grid=(side, side), channels=c.channels, scale=c.scale)

    @property
    def spec(self) -> TokenSpec:
        return self._spec(self.config.side)

    @property
    def pivot_spec(self) -> TokenSpec:
        """The pivots: the tokens of the image at side `pivot_side` / `side` of its size."""
        return self._spec(self.config.pivot_side)

    @property
    def null_class(self) -> int:
        return self.config.num_classes

    def first(self) -> "Stage":
        """The stage that draws pivots."""
        return Stage(self, 0)

    def second(self, features: Tensor | None = None, shown: Tensor | None = None) -> "Stage":
        """The stage that draws tokens.

        Args:
            features: context vectors (B, S, D) of the pivots, of the class's rows; None: no pivots, all are the learned stand-in.
            shown: bool (B, S), True where the stand-in takes the place of a feature; None: nowhere.
        """
        return Stage(self, 1, features, shown)

    def context(self, tokens: Tensor, known: Tensor, condition: Tensor, **options: Any) -> Tensor:
        """See Generator.context; without pivots."""
        return self.second().context(tokens, known, condition, **options)

    def local(self, tokens: Tensor, condition: Tensor, memory: Memory, step: Local) -> Tensor:
        """See Generator.local; without pivots."""
        return self.second().local(tokens, condition, memory, step)

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        pivots: Tensor,
        condition: Tensor,
        pivot_condition: Tensor,
        known: Tensor,
        pivot_known: Tensor,
        dropped: Tensor,
        *,
        chain: dict[str, Tensor] | None = None,
        pivot_chain: dict[str, Tensor] | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Tensor]:
        """Training of both stages; no gradient passes from the second to the first through the features.

        Args:
            tokens (B, L, C) or ids (B, L); pivots (B, S, C) or (B, S). condition, pivot_condition: class ids (B,) of the two stages,
                whose labels are dropped independently. known (B, L), pivot_known (B, S): bool.
            dropped: bool (B,), images whose second stage sees no pivots.
            chain, pivot_chain: t and noise, as `draw` of the two heads makes them for every image; for diffusion heads.

        Returns:
            per image (B,): "loss" and "figure" of the tokens, "pivot_loss" and "pivot_figure". Of a head that draws the whole map
            the mean over all elements, otherwise the sum over masked tokens.
        """
        visible, where = masked_places(pivot_known)
        z = self.first().context(pivots, pivot_known, pivot_condition, visible=visible)  # (B, S, D)
        pivot_loss, pivot_figure = _sums(self.pivot_head, z, pivots, pivot_known, where, pivot_chain, label_smoothing)
        visible, where = masked_places(known)
        stage = self.second(z.detach(), pivot_known | dropped.unsqueeze(1))
        z = stage.context(tokens, known, condition, visible=visible)  # (B, L, D)
        if getattr(self.head, "whole", False):
            assert chain is not None
            losses, figure = (x.mean(1) for x in self.head.loss(z, tokens, masked=~known, **chain))
        else:
            losses, figure = _sums(self.head, z, tokens, known, where, chain, label_smoothing)
        return {"loss": losses, "figure": figure, "pivot_loss": pivot_loss, "pivot_figure": pivot_figure}


def _sums(
    head: Any,
    z: Tensor,
    tokens: Tensor,
    known: Tensor,
    where: Tensor | None,
    chain: dict[str, Tensor] | None,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Loss and figure of each image's masked tokens, summed over them and averaged over copies: (B,) both.

    `where`: the masked places (B, M), where all images have as many.
    """
    if chain is None:
        losses, figure = head.loss(z[~known], tokens[~known], label_smoothing=label_smoothing)
        row = (~known).nonzero()[:, 0]
        return _by_row(losses, row, len(z)), _by_row(figure, row, len(z))
    if where is not None:
        losses, figure = copies_loss(head, gather_rows(z, where), tokens, where, **chain)  # (B, K, M)
        return losses.mean(1).sum(1), figure.mean(1).sum(1)
    row, copy, place = (~known).unsqueeze(1).expand_as(chain["t"]).nonzero(as_tuple=True)
    at = (row, copy, place)
    losses, figure = head.loss(z[row, place], tokens[row, place], t=chain["t"][at], noise=chain["noise"][at])
    copies = chain["t"].shape[1]
    return _by_row(losses, row, len(z)) / copies, _by_row(figure, row, len(z)) / copies


def _by_row(values: Tensor, row: Tensor, count: int) -> Tensor:
    return values.new_zeros(count).index_add(0, row, values)


class Stage(MaskedAutoencoder):
    """One of the two stages, as a generator that samplers take: the trunk with the stage's tables, head and tokens.

    Args:
        model: the network. index: 0 draws pivots, 1 tokens. features, shown: see HiMAR.second.
    """

    staged, carries, causal, unit = False, False, False, None

    def __init__(self, model: HiMAR, index: int, features: Tensor | None = None, shown: Tensor | None = None) -> None:
        c = model.config
        self.trunk, self.config, self.index = model, c, index
        self.null_class, self.num_classes = model.null_class, model.num_classes
        pivots, behind = c.pivot_side**2, c.buffer + c.pivot_side**2
        if index == 0:
            self.spec, self.head, self.slots = model.pivot_spec, model.pivot_head, c.buffer
            own = slice(None, pivots)
        else:
            self.spec, self.head, self.slots = model.spec, model.head, behind
            own = slice(pivots, None)
        self.length, self.unit_spec = self.spec.length, self.spec
        self.mask_table = model.mask_token[index, own]
        if index == 0:  # the tokens of the second stage stand behind, always masked
            self.mask_table = model.mask_token[0]
        self.encoder_table = model.encoder_position[index, self.slots : self.slots + self.length]
        self.decoder_table = model.decoder_position[index]
        self.head_table = model.head_position[own]
        self.modulations = {}
        for part in ("encoder", "decoder"):
            task = getattr(model, f"{part}_task").weight[index]
            vector = getattr(model, f"{part}_modulation")(F.silu(task))  # (4D,)
            blocks = getattr(model, f"{part}_blocks")
            self.modulations[part] = [block.modulation(vector, index) for block in blocks]
        self.pivots = None if index == 0 else self._pivots(features, shown)  # (B or 1, S, D)

    def _pivots(self, features: Tensor | None, shown: Tensor | None) -> Tensor:
        """The rows of the pivots (B, S, D), with their positions."""
        model, c = self.trunk, self.config
        default = model.pivot_default if c.head_kind == "categorical" else model.pivot_proj(model.pivot_default)
        rows = default.unsqueeze(0)  # (1, S, D)
        if features is not None:
            projected = model.feature_proj(features)
            rows = projected if shown is None else torch.where(shown.unsqueeze(-1), rows.to(projected.dtype), projected)
        return rows + model.encoder_position[1, c.buffer : self.slots]

    @property
    def device(self) -> torch.device:
        return self.trunk.device

    @property
    def evaluates_locally(self) -> bool:
        return True

    def memory(self, condition: Tensor) -> Memory:
        return Memory()

    def block(self, part: str, i: int, x: Tensor, **keys: Any) -> Tensor:
        return getattr(self.trunk, f"{part}_blocks")[i](x, modulation=self.modulations[part][i], **keys)

    def embed(self, tokens: Tensor) -> Tensor:
        proj = self.trunk.pivot_proj if self.index == 0 else self.trunk.token_proj
        return proj(tokens if isinstance(proj, nn.Embedding) else tokens.to(proj.weight.dtype))

    def front(self, condition: Tensor) -> Tensor:
        """The buffer, and in the second stage the pivots: (B, N, D) or (B, N + S, D)."""
        model, slots = self.trunk, self.config.buffer
        rows = class_vector(model, condition).unsqueeze(1) + model.encoder_position[self.index, :slots]  # (B, N, D)
        if self.pivots is None:
            return rows
        # The null rows of guidance, behind those of the class, see the same pivots.
        copies = -(-len(condition) // len(self.pivots)) if len(self.pivots) > 1 else 1
        pivots = (
            self.pivots.expand(len(condition), -1, -1) if len(self.pivots) == 1 else self.pivots.repeat(copies, 1, 1)
        )
        return torch.cat([rows, pivots[: len(condition)]], dim=1)
