"""Hita: image ⇄ holistic tokens of the whole image, followed by tokens of its patches, in one causal sequence.

Zheng et al., "Holistic Tokenizer for Autoregressive Image Generation" (ICCV 2025, arXiv 2507.02358). LlamaGen's convolutions and
codes compared by angle, around two transformers (fusion.py); encoding also uses features of a frozen DINOv2 (vision.py).

"Holistic" is the paper's word for what the rest of the code calls global tokens.

Notation: B batch, C image channels, S holistic tokens, h = w = image side / 2^(levels-1), N = h·w patch tokens, D width,
d and d' dimensions of a patch code and a holistic code, V vision tokens of width W.

| size | image | channels | D, depth, F | tokens S + N | codes × d, d' | vision | parameters |
|---|---|---|---|---|---|---|---|
| V (Hita-V) | 336 | 128 128 256 256 512 | 512, 3, 1368 | 128 + 441 | 16384 × 8, 12 | encodes with | 104.2 M |
| U (Hita-U) | 336 | 128 128 256 256 512 | 512, 3, 1368 | 128 + 441 | 16384 × 8, 12 | predicted too | 104.8 M |
| fmnist | 32, gray | 16 32 64 64 | 128, 2, 256 | 48 + 16 | 512 × 8, 12 | none | 2.2 M |
| fmnist-8 | 32, gray | 16 32 64 | 128, 2, 256 | 16 + 64 | 512 × 8, 12 | none | 1.9 M |
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mgen.nn.sizes import check_heads
from mgen.tokenizers.base import FMNIST, Tokenizer, Widths, register_tokenizer
from mgen.tokenizers.fusion import Gathering, Spreading, Stack
from mgen.tokenizers.quantizers import codebook_usage
from mgen.tokenizers.sphere import PlainQuantizer, code_quantizer, sphere_vq
from mgen.tokenizers.vision import HOW, VisionEncoder, load_vision
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError
from mgen.utils.estimates import checked_network
from mgen.utils.fitting import DataRows, Rows, below
from mgen.utils.schema import Depth, Layers, Natural, Rate, Size

STACKS = dict(dim=128, depth=2, heads=4, hidden=256, vocab_size=512, global_vocab_size=512, dropout=0.0, vision=None)


@register_tokenizer
class HitaTokenizer(Tokenizer):
    """Image ⇄ ids, the holistic ones first. Images are (B, C, H, W) in [-1, 1].

    With `vision`, encoding needs the frozen vision encoder that `use_vision` loads; decoding does not. The encoder is never saved.

    Args:
        image_size: H = W in pixels, a multiple of 2^(levels - 1). The weights work at any such size. in_channels: C.
        channels, layers, norm_groups, stem: of the convolutions, as in LlamaGenVQ.
        global_tokens: S. shift: number of positions by which the decoder reads a patch's feature early, 0 … S.
        dim, depth, heads, hidden: D, blocks of each of the three stacks, heads, F. dropout: in the stacks.
        inner: heads times head width in the first stack; None: D.
        vocab_size, latent: rows of the patches' codebook and d. global_vocab_size, global_latent: those of the holistic tokens.
        vision: W; None for a tokenizer without a vision encoder.
        vision_loss: also train the holistic tokens to predict the vision tokens (Hita-U).
        position_side: h = w of the position tables; None: that of `image_size`.
        normalized: of both codebooks, as in LlamaGenVQ.
    """

    SIZES = {
        "V": dict(),
        "U": dict(vision_loss=True),
        "fmnist": dict(FMNIST, **STACKS, channels=(16, 32, 64, 64), global_tokens=48),
        "fmnist-8": dict(FMNIST, **STACKS, channels=(16, 32, 64), global_tokens=16),
    }
    DECODER_WEIGHTS = ("vq.decoder.", "vq.post_quant_conv.", "from_holistic.", "spreading.")
    LATER = {"normalized": True}
    ENDS = ("vq.encoder.conv_in", "vq.decoder.conv_out")

    vision_encoder: VisionEncoder | None  # what `use_vision` loaded; it moves with the tokenizer to other devices

    # Many arguments on purpose: the saved configuration is flat, and token caches are matched by a hash of it; sections would make
    # caches of the same tokenizer look foreign.
    @register_to_config
    @checked_network
    def __init__(
        self,
        *,
        image_size: Size = 336,
        in_channels: Size = 3,
        channels: Widths = (128, 128, 256, 256, 512),
        layers: Layers = 2,
        norm_groups: Size = 32,
        stem: Size | None = None,
        global_tokens: Size = 128,
        shift: Natural = 4,
        dim: Size = 512,
        depth: Depth = 3,
        heads: Size = 8,
        hidden: Size = 1368,
        inner: Size | None = None,
        dropout: Rate = 0.1,
        vocab_size: Size = 16384,
        latent: Size = 8,
        global_vocab_size: Size = 16384,
        global_latent: Size = 12,
        vision: Size | None = 1024,
        vision_loss: bool = False,
        position_side: Size | None = None,
        normalized: bool = True,
    ) -> None:
        super().__init__()
        if vision_loss and vision is None:
            raise MgenError("vision_loss needs the width of the vision encoder's tokens: set vision (1024 for ViT-L)")
        check_heads(dim, heads)
        check_heads(inner or dim, heads, width_name="inner")
        if shift > global_tokens:
            raise MgenError(f"shift is {shift}: expected 0 to {global_tokens}, the number of global tokens")
        self.factor = 2 ** (len(channels) - 1)
        self.vq = sphere_vq(self.config, z_channels=dim, normalized=normalized)
        # Saved, so that the position tables keep their size when the weights are used at another image size.
        side = position_side or image_size // self.factor
        self.register_to_config(position_side=side)
        stack = Stack(
            dim=dim, depth=depth, heads=heads, hidden=hidden, holistic=global_tokens, side=side, dropout=dropout
        )
        self.gathering = Gathering(stack, inner=inner or dim, vision=vision)
        self.spreading = Spreading(stack, shift=shift, vision=vision if vision_loss else None)
        self.to_holistic = nn.Linear(dim, global_latent)
        self.holistic_quantize = code_quantizer(vocab_size=global_vocab_size, dim=global_latent, normalized=normalized)
        self.from_holistic = nn.Linear(global_latent, dim)
        self.__dict__["vision_encoder"] = None  # outside the module tree: neither trained nor saved with the model

    # -- the vision encoder --------------------------------------------------------------------------------------------

    def use_vision(self, source: VisionEncoder | str | Path, *, heads: int | None = None) -> "HitaTokenizer":
        """See Tokenizer.use_vision and `mgen.tokenizers.vision.load_vision`; MgenError, too, for an encoder of another width."""
        width = self.config.vision
        if width is None:
            raise MgenError("this tokenizer has no vision encoder (vision: null): leave the vision weights out")
        encoder = source if isinstance(source, VisionEncoder) else load_vision(source, heads=heads)
        if encoder.width != width:
            raise MgenError(
                f"the vision encoder has tokens of width {encoder.width}, but this tokenizer takes {width}: give another file"
            )
        self.__dict__["vision_encoder"] = encoder.to(self.device)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HitaTokenizer":
        if self.vision_encoder is not None:
            self.vision_encoder._apply(fn)
        return super()._apply(fn, recurse)

    def vision_tokens(self, images: Tensor) -> Tensor | None:
        """Tokens (B, V, W) of images (B, C, H, W), class token first; None without vision, MgenError if its encoder is not loaded."""
        if self.config.vision is None:
            return None
        if self.vision_encoder is None:
            raise MgenError(
                "encoding with this Hita tokenizer needs its frozen vision encoder, DINOv2's dinov2_vitl14_reg4_pretrain.pth: "
                f"{HOW}; decoding does not"
            )
        return self.vision_encoder(images).to(self.dtype)

    # -- images to ids -------------------------------------------------------------------------------------------------

    def data_rows(self) -> DataRows:
        out = super().data_rows() | below("vq.quantize", self.quantize.data_rows())
        side = self.config.position_side
        tables: DataRows = {
            f"{part}.position": {0: (Rows("positions", (side, side), "interpolated"),)}
            for part in ("gathering", "spreading")
        }
        return out | tables | below("holistic_quantize", self.holistic_quantize.data_rows("global ids"))

    @property
    def quantize(self) -> PlainQuantizer:
        """The quantizer of the patches; `holistic_quantize` is that of the holistic tokens."""
        return self.vq.quantize

    @property
    def spec(self) -> TokenSpec:
        side, s = self.config.image_size // self.factor, self.config.global_tokens
        vocab_size = max(self.config.vocab_size, self.config.global_vocab_size)
        return TokenSpec(
            kind="index", length=s + side * side, grid=(side, side), vocab_size=vocab_size, global_tokens=s
        )

    @property
    def unused_tail(self) -> int:
        """The last `shift` patches, which the decoder never reads."""
        return self.config.shift

    def latents(self, images: Tensor, vision: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents before quantization: holistic (B, d', 1, S) and of the patches (B, d, h, w), of images (B, C, H, W).

        Raises an MgenError if a side is not a multiple of `factor`, or without `vision` tokens (B, V, W) and vision encoder.
        """
        images = self.prepared(images)
        vision = self.vision_tokens(images) if vision is None else vision
        holistic, patches = self.gathering(self.vq.encoder(images), vision)
        return self.to_holistic(holistic).transpose(1, 2).unsqueeze(2), self.vq.quant_conv(patches)

    def encode(self, images: Tensor) -> Tensor:
        """Ids (B, S + N) int64, the holistic ones first, then the patches row by row; see `latents`."""
        holistic, patches = self.latents(self.prepared(images, values=True))
        return torch.cat(
            [self.holistic_quantize.ids(holistic).flatten(1), self.quantize.ids(patches).flatten(1)], dim=1
        )

    @torch.no_grad()
    def initialize_codebooks(self, images: Tensor, rng: torch.Generator) -> None:
        """Place the rows of both codebooks on latents of images (B, C, H, W); see VectorQuantizer.initialize."""
        training = self.training
        holistic, patches = self.eval().latents(images)
        self.train(training)
        self.quantize.initialize(patches, rng)
        self.holistic_quantize.initialize(holistic, rng)

    # -- ids to images -------------------------------------------------------------------------------------------------

    def lookup(self, ids: Tensor, grid: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Holistic codes (B, d', 1, S) and patch codes (B, d, h, w) of ids (B, S + N); `grid` (h, w) if it is not square.

        Raises an MgenError if the number of ids does not fit the grid, or an id is out of range.
        """
        h, w = self.grid_of(ids, grid)
        s, c = self.config.global_tokens, self.config
        holistic, patches = ids[:, :s], ids[:, s:]
        if not ids.is_meta and bool(holistic.amax() >= c.global_vocab_size or patches.amax() >= c.vocab_size):
            raise MgenError(
                f"ids out of range: holistic ids must be below {c.global_vocab_size}, patch ids below {c.vocab_size}"
            )
        return self.holistic_quantize.lookup(holistic.unsqueeze(1)), self.quantize.lookup(patches.unflatten(1, (h, w)))

    def features(self, holistic: Tensor, patches: Tensor) -> Tensor:
        """Input (B, D, h, w) of the CNN decoder, of codes (B, d', 1, S) and (B, d, h, w)."""
        spread = self.from_holistic(holistic.squeeze(2).transpose(1, 2))  # (B, S, D)
        return self.spreading(spread, self.vq.post_quant_conv(patches))

    def decode_latents(self, holistic: Tensor, patches: Tensor) -> Tensor:
        """Images (B, C, H, W), about [-1, 1] and not clamped, of codes (B, d', 1, S) and (B, d, h, w)."""
        return self.vq.decoder(self.features(holistic, patches))

    def decode(self, ids: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Images of ids (B, S + N) int64; `grid` (h, w) of the patches if it is not square. Needs no vision encoder."""
        holistic, patches = self.lookup(ids, grid)
        return self.decode_latents(holistic.to(self.dtype), patches.to(self.dtype))

    def predict_vision(self, holistic: Tensor, side: int = 16) -> Tensor:
        """Predicted vision tokens (B, side², W), without the class token, of holistic codes (B, d', 1, S); needs `vision_loss`."""
        if not self.config.vision_loss:
            raise MgenError("this tokenizer predicts no vision tokens: that takes vision_loss: true (Hita-U)")
        return self.spreading.vision_tokens(self.from_holistic(holistic.squeeze(2).transpose(1, 2)), side)

    # -- training ------------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """For training: reconstructions (B, C, H, W), loss terms, usage and perplexity of both codebooks.

        Loss terms are those of the quantizers, summed over both, and with `vision_loss` "vision": the mean of 1 − cosine similarity
        of the vision encoder's patch tokens and the predicted ones.
        """
        vision = self.vision_tokens(images)
        z_holistic, z_patches = self.latents(images, vision)
        holistic, patches = self.holistic_quantize(z_holistic), self.quantize(z_patches)
        losses = {name: value + holistic.losses[name] for name, value in patches.losses.items()}
        if self.config.vision_loss:
            assert vision is not None
            target = vision[:, 1:]
            guess = self.predict_vision(holistic.values, round(target.shape[1] ** 0.5))
            losses["vision"] = (1 - F.cosine_similarity(guess.float(), target.float(), dim=-1, eps=1e-6)).mean()
        metrics = codebook_usage(patches.ids, self.config.vocab_size)
        whole = codebook_usage(holistic.ids, self.config.global_vocab_size)
        metrics |= {f"holistic_{name}": value for name, value in whole.items()}
        return self.decode_latents(holistic.values, patches.values), losses, metrics
