"""MAR: a masked auto-encoder over real tokens with a diffusion head; with a head over channels it is TokenBridge's generator.

Li et al., "Autoregressive Image Generation without Vector Quantization" (NeurIPS 2024, arXiv 2406.11838); trunk of He et al., "Masked
Autoencoders" (arXiv 2111.06377): the encoder sees the visible tokens only, the decoder all positions.

Notation: B batch, L image tokens of C numbers, M masked positions, S buffer slots, D width, K copies.

| size | D | depth | heads | head depth × width | parameters |
|---|---|---|---|---|---|
| B (published) | 768 | 12 + 12 | 12 | 6 × 1024 | 207.9 M |
| L (published) | 1024 | 16 + 16 | 16 | 8 × 1280 | 478.3 M |
| H (published) | 1280 | 20 + 20 | 16 | 12 × 1536 | 942.4 M |
| bridge-B (TokenBridge, not published) | 768 | 12 + 12 | 12 | channels, 4 × 768 | 218.0 M |
| bridge-L (TokenBridge, published) | 1024 | 16 + 16 | 16 | channels, 4 × 1024 | 486.9 M |
| bridge-H (TokenBridge, published) | 1280 | 20 + 20 | 16 | channels, 6 × 1024 | 910.0 M |
| fmnist (embedded demo, 32 px) | 192 | 3 + 3 | 6 | 3 × 192 | 3.5 M |
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks the base class up in this namespace)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mgen.generators.autoencoder import MaskedAutoencoder, class_vector, copies_loss, masked_places
from mgen.generators.base import Generator, check_unit, id_head, reset_windows
from mgen.heads import ChannelHead, DiffusionHead
from mgen.nn import Local, Memory, PreNormBlock, TokenShuffle, Windows, take
from mgen.nn.levels import dequantize, describe, gaussian_levels
from mgen.nn.windows import ResidualMLP
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.modeling import public


def _size(*, dim: int, depth: int, heads: int, head_depth: int, head_width: int, **more: Any) -> dict[str, Any]:
    """Arguments of a model whose encoder and decoder are alike."""
    halves = {
        f"{part}_{name}": v
        for part in ("encoder", "decoder")
        for name, v in (("dim", dim), ("depth", depth), ("heads", heads))
    }
    return {**halves, "head_depth": head_depth, "head_width": head_width, **more}


@public
class MAR(MaskedAutoencoder, Generator):
    """Class-conditional masked generator on vectors, or on vectors quantised channel by channel (TokenBridge).

    Args:
        side: h = w of the token grid; L = side². channels: C. scale: of the tokenizer (see TokenSpec); None: training notes it.
        encoder_dim, encoder_depth, encoder_heads and decoder_…: of the two halves of the trunk; mlp_ratio: of both.
        buffer: S, slots in front of the image tokens, all holding the class vector.
        head_kind: "diffusion"; "categorical": tokens are ids of `codes`, global ones first where there are (see MaskGIT); or
            "channels": tokens are ids of C quantised numbers (kind "multi-index"), which enter the trunk as the
            numbers they stand for and are drawn one after the other (Wang et al., TokenBridge, arXiv 2503.16430).
        head_width, head_depth: of the head. head_heads, head_first, channel_order: of the head over channels, see ChannelHead.
        levels, low, high, span, form: of the quantiser, see mgen.nn.levels; for the head over channels.
        codes, global_tokens: vocabulary, and tokens of the image as a whole; for the categorical head.
        shuffle: side of the windows that the trunk computes as one row each (Token-Shuffle, arXiv 2504.17789); 1: none. A diffusion
            head draws the s²·C numbers of a window together. shuffle_blocks: residual MLPs on either side of the trunk.
        mask_unit: what is masked and drawn as one: "window".
        num_classes: classes; the null class has the id `num_classes` and the vector `fake_latent`.
        attn_dropout, dropout: on attention probabilities; on the attention's output and the layers of the MLPs; in training.
        class_names: for captions and file names; no part of the network.
    """

    SIZES = {
        "B": _size(dim=768, depth=12, heads=12, head_depth=6, head_width=1024),
        "L": _size(dim=1024, depth=16, heads=16, head_depth=8, head_width=1280),
        "H": _size(dim=1280, depth=20, heads=16, head_depth=12, head_width=1536),
        "bridge-B": _size(dim=768, depth=12, heads=12, head_depth=4, head_width=768, head_kind="channels"),
        "bridge-L": _size(dim=1024, depth=16, heads=16, head_depth=4, head_width=1024, head_kind="channels"),
        "bridge-H": _size(dim=1280, depth=20, heads=16, head_depth=6, head_width=1024, head_kind="channels"),
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
        head_kind: Literal["diffusion", "categorical", "channels"] = "diffusion",
        head_width: int = 1024,
        head_depth: int = 6,
        head_heads: int = 8,
        head_first: Literal["published", "consistent"] = "published",
        channel_order: Sequence[int] | None = None,
        levels: int = 64,
        low: float = -5.0,
        high: float = 5.0,
        span: float = 3.0,
        form: str = "published",
        codes: int = 1024,
        global_tokens: int = 0,
        shuffle: int = 1,
        shuffle_blocks: int = 2,
        mask_unit: str = "window",
        num_classes: int = 1000,
        attn_dropout: float = 0.1,
        dropout: float = 0.1,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        check_choice("head_kind", head_kind, ("diffusion", "categorical", "channels"))
        check_unit(shuffle, mask_unit, name="MAR")
        if shuffle != 1 and (global_tokens or head_kind == "channels") or global_tokens and head_kind != "categorical":
            raise MgenError(
                f"shuffle {shuffle}, global_tokens {global_tokens}, head_kind {head_kind!r}: global tokens are ids, windows are of ids or "
                "vectors of a grid"
            )
        self.windows = Windows((side, side), shuffle)
        length = global_tokens + self.windows.count
        self.class_embed = nn.Embedding(num_classes, encoder_dim)
        self.fake_latent = nn.Parameter(torch.zeros(1, encoder_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, decoder_dim))
        self.encoder_position = nn.Parameter(torch.zeros(buffer + length, encoder_dim))
        self.decoder_position = nn.Parameter(torch.zeros(buffer + length, decoder_dim))
        self.head_position = nn.Parameter(torch.zeros(length, decoder_dim))
        rows = codes * (2 if global_tokens else 1)
        ids = head_kind == "categorical"
        self.token_proj: Any = nn.Embedding(rows, encoder_dim) if ids else nn.Linear(channels, encoder_dim)
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
        if ids:
            nn.init.normal_(self.token_proj.weight, std=0.02)
            own: dict[str, Any] = dict(
                table=self.token_proj, codes=codes, global_tokens=global_tokens, context_dim=decoder_dim, detach=False
            )
            self.head: Any = id_head(**own, shuffle=shuffle, blocks=shuffle_blocks)
        if shuffle > 1:
            self.join = TokenShuffle(encoder_dim, shuffle, blocks=shuffle_blocks)
            reset_windows(self.join, getattr(self, "head", None))
            if not ids:  # windows stay whole in the head
                self.out_blocks = nn.Sequential(*(ResidualMLP(decoder_dim) for _ in range(shuffle_blocks)))
                for out in self.out_blocks:
                    out.reset_parameters()  # type: ignore[operator]
        size = dict(channels=channels, context_dim=decoder_dim, width=head_width, depth=head_depth)
        if head_kind == "diffusion":
            self.head = DiffusionHead(**{**size, "channels": channels * shuffle**2})
        elif head_kind == "channels":
            self.register_buffer("levels_table", gaussian_levels(levels, span=span, form=form)[0])
            self.head = ChannelHead(
                **size, levels=levels, heads=head_heads, order=channel_order, first=head_first, mlp_ratio=mlp_ratio
            )

    @property
    def spec(self) -> TokenSpec:
        c = self.config
        if c.head_kind == "categorical":
            place = dict(length=c.global_tokens + c.side**2, grid=(c.side, c.side))
            return TokenSpec(kind="index", vocab_size=c.codes, global_tokens=c.global_tokens, **place)
        shape = dict(length=c.side * c.side, grid=(c.side, c.side), channels=c.channels, scale=c.scale)
        if c.head_kind == "channels":
            levels = describe(form=c.form, low=c.low, high=c.high, span=c.span)
            return TokenSpec(kind="multi-index", vocab_size=c.levels, levels=levels, **shape)
        return TokenSpec(kind="vector", **shape)

    @property
    def null_class(self) -> int:
        return self.config.num_classes

    # -- what MaskedAutoencoder asks for -------------------------------------------------------------------------------

    @property
    def trunk(self) -> "MAR":
        return self

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.config.buffer

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.config.global_tokens + self.windows.count

    @property
    def encoder_table(self) -> Tensor:  # type: ignore[override]
        return self.encoder_position[self.slots :]

    @property
    def decoder_table(self) -> Tensor:  # type: ignore[override]
        return self.decoder_position

    @property
    def head_table(self) -> Tensor:  # type: ignore[override]
        return self.head_position

    @property
    def mask_table(self) -> Tensor:  # type: ignore[override]
        return self.mask_token

    def front(self, condition: Tensor) -> Tensor:
        """The buffer (B, S, D): every slot holds the class vector."""
        return class_vector(self, condition).unsqueeze(1) + self.encoder_position[: self.slots]

    def embed(self, tokens: Tensor) -> Tensor:
        """Vectors (B, n, C), ids (B, n, C) of quantised ones, ids (B, n), or windows of these: (B, n, D)."""
        c = self.config
        if c.head_kind == "categorical":
            x = self.token_proj(tokens)  # (B, n, D) or (B, n, s², D)
            return x if self.unit is None else self.join(x)
        if c.head_kind == "channels":
            tokens = dequantize(tokens, self.levels_table, low=c.low, high=c.high, span=c.span)
        tokens = tokens.to(self.encoder_position.dtype)
        if self.unit is None:
            return self.token_proj(tokens)
        return self.join(self.token_proj(tokens.unflatten(-1, (c.shuffle**2, -1))))

    def context(self, tokens: Tensor, known: Tensor, condition: Tensor, **options: Any) -> Tensor:
        """See Generator.context."""
        return super().context(self.joint_ids(tokens), known, condition, **options)

    def local(self, tokens: Tensor, condition: Tensor, memory: Memory, step: Local) -> Tensor:
        """See Generator.local."""
        return super().local(self.joint_ids(tokens), condition, memory, step)

    def finish(self, x: Tensor) -> Tensor:
        """See MaskedAutoencoder.finish."""
        return x if self.unit is None or self.config.head_kind == "categorical" else self.out_blocks(x)

    # -- training ------------------------------------------------------------------------------------------------------

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        condition: Tensor,
        known: Tensor,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        head_tokens: str = "masked",
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Training: loss and figure (ε error, or accuracy) of every masked token, of a diffusion head of its K copies.

        Args:
            tokens: (B, L, C). condition: class ids (B,). known: bool (B, L).
            t, noise: timesteps (B, K, L) and noise (B, K, L, C), see DiffusionHead.draw; for a diffusion head.
            label_smoothing: for a head over channels.
            head_tokens: "masked", or "all": as the published code, which passes visible tokens through the head too and
                multiplies their loss by zero; the same loss for more work.
        """
        visible, where = masked_places(known)
        if t is None or noise is None:
            if where is not None and not self.spec.global_tokens:
                z = self.context(tokens, known, condition, positions=where, visible=visible)  # (B, M, D)
                losses, hits = self.head.loss(z, take(tokens, where), label_smoothing=label_smoothing)
                return losses.flatten(), hits.flatten()
            z = self.context(tokens, known, condition, visible=visible)
            return self.masked_loss(z, tokens, known, label_smoothing=label_smoothing)
        if head_tokens == "masked" and where is not None:
            z = self.context(tokens, known, condition, positions=where, visible=visible)  # (B, M, D)
            losses, mse = copies_loss(self.head, z, tokens, where, t, noise)
            return losses.flatten(), mse.flatten()
        z = self.context(tokens, known, condition, visible=visible)
        masked = (~known).unsqueeze(1).expand_as(t)  # (B, K, L)
        if head_tokens == "all":
            losses, mse = self.head.loss(z.unsqueeze(1), tokens.unsqueeze(1), t=t, noise=noise)
            return losses[masked], mse[masked]
        row, copy, place = masked.nonzero(as_tuple=True)
        return self.head.loss(z[row, place], tokens[row, place], t=t[masked], noise=noise[masked])
