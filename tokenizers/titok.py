"""TiTok: image ⇄ a short line of tokens without a place in the image, by two vision transformers.

Yu et al., "An Image is Worth 32 Tokens for Reconstruction and Generation" (NeurIPS 2024, arXiv 2406.07550). Latent tokens join the
patches in the encoder, and only they leave it; in the decoder they join copies of a mask token, which become the patches.
Single-stage tokenizers decode to pixels. Those trained in two stages decode to the distribution of a MaskGIT VQGAN's codes at every
patch, and the VQGAN's decoder makes the image of the expected codes.

Notation: B batch, C image channels, N latent tokens, D width of a transformer, d numbers of a code, P = h·w patches, p their side.

| size | encoder, decoder | tokens | codes × d | decodes to | parameters |
|---|---|---|---|---|---|
| l32 (two stages) | 24 × 1024, 24 × 1024 | 32 | 4096 × 12, unit length | codes | 641.1 M |
| b64 (two stages) | 12 × 768, 12 × 768 | 64 | 4096 × 12, unit length | codes | 204.8 M |
| s128 (two stages) | 8 × 512, 8 × 512 | 128 | 4096 × 12, unit length | codes | 83.7 M |
| bl64, bl128 | 12 × 768, 24 × 1024 | 64, 128 | 8192 × 64 | pixels | 390 M |
| sl256 | 8 × 512, 24 × 1024 | 256 | 8192 × 64 | pixels | 330 M |
| fmnist (32 px, gray) | 4 × 128, 4 × 128 | 32 | 512 × 16 | pixels | 1.6 M |
| TiTokKL ll32 | 24 × 1024, 24 × 1024 | 32 | vectors of 16 | pixels | 607 M |
| TiTokKL bl64, bl128 | 12 × 768, 24 × 1024 | 64, 128 | vectors of 16 | pixels | 390 M |
"""

from typing import Any

import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from mgen.nn import check_heads
from mgen.tokenizers import vqgan
from mgen.tokenizers.base import CodebookTokenizer, Tokenizer, register_tokenizer
from mgen.tokenizers.kl import ScaledPosterior
from mgen.tokenizers.quantizers import VectorQuantizer, codebook_usage
from mgen.tokenizers.sphere import code_quantizer
from mgen.tokenizers.titok_vit import CodeHead, Decoder, Encoder, PixelDecoder, PixelHead, initial_values
from mgen.tokens import Scale, TokenSpec
from mgen.utils.errors import MgenError
from mgen.utils.estimates import checked_network
from mgen.utils.fitting import DataRows
from mgen.utils.schema import Depth, Size, build

SMALL, BASE, LARGE = (512, 8, 8), (768, 12, 12), (1024, 24, 16)  # width, layers, heads
Transformer = tuple[int, int, int]


def sizes(encoder: Transformer, decoder: Transformer, **more: object) -> dict[str, object]:
    """Constructor arguments of a size."""
    named = {"encoder": encoder, "decoder": decoder}
    parts = {f"{part}_{key}": v for part, of in named.items() for key, v in zip(("dim", "depth", "heads"), of)}
    return parts | more


TWO_STAGES: dict[str, Any] = dict(vocab_size=4096, latent=12, unit_codes=True, scrambled=True, pixel_decoder={})
TINY: Transformer = (128, 4, 4)


class LineTokenizer(Tokenizer):
    """What the tokenizers with ids and with vectors share. Subclasses call `build_networks` in their constructor."""

    CACHE_NEUTRAL = ("decoder_patch", "decoder_dim", "decoder_depth", "decoder_heads", "pixel_decoder", "scale")
    DECODER_WEIGHTS = ("decoder.",)
    ANY_SIZE = False

    def build_networks(self, *, out: int, scrambled: bool = False, pixel_decoder: PixelDecoder | None = None) -> None:
        """Make `encoder`, with latents of `out` numbers, and `decoder`, with their initial values."""
        c = self.config
        self.factor = c.image_size
        check_heads(c.encoder_dim, c.encoder_heads, width_name="encoder_dim", name="encoder_heads")
        check_heads(c.decoder_dim, c.decoder_heads, width_name="decoder_dim", name="decoder_heads")
        decoder_patch = c.decoder_patch or c.patch
        for name, patch in (("patch", c.patch), ("decoder_patch", decoder_patch)):
            if c.image_size % patch:
                raise MgenError(f"image_size {c.image_size} is not a multiple of {name} {patch}: choose a divisor")
        head: PixelHead | CodeHead = PixelHead(c.decoder_dim, decoder_patch, c.in_channels)
        if pixel_decoder is not None:
            if 2 ** (len(pixel_decoder.multipliers) - 1) != decoder_patch:
                raise MgenError(
                    f"decoder_patch is {decoder_patch}, but pixel_decoder, with {len(pixel_decoder.multipliers)} levels, makes "
                    f"{2 ** (len(pixel_decoder.multipliers) - 1)} pixels of a patch's side: they must be equal"
                )
            head = CodeHead(c.decoder_dim, pixel_decoder, c.in_channels)
        self.encoder = Encoder(
            in_channels=c.in_channels,
            patch=c.patch,
            out=out,
            scrambled=scrambled,
            dim=c.encoder_dim,
            depth=c.encoder_depth,
            heads=c.encoder_heads,
            side=c.image_size // c.patch,
            latent_tokens=c.latent_tokens,
        )
        self.decoder = Decoder(
            latent=c.latent,
            head=head,
            dim=c.decoder_dim,
            depth=c.decoder_depth,
            heads=c.decoder_heads,
            side=c.image_size // decoder_patch,
            latent_tokens=c.latent_tokens,
        )
        for part in (self.encoder, self.decoder):
            part.apply(initial_values)

    def data_rows(self) -> DataRows:
        """See Model.data_rows; the layers at both ends, and codebooks, are those of other tokenizers."""
        rows = super().data_rows() | self.encoder.data_rows("encoder") | self.decoder.data_rows("decoder")
        return rows | self.decoder.head.data_rows("decoder.head")

    @property
    def ends(self) -> tuple[str, str]:
        """See Tokenizer.ends."""
        return "encoder.patch_embed", "decoder.head." + (
            "pixels." if isinstance(self.decoder.head, CodeHead) else ""
        ) + "conv_out"

    def encoded(self, images: Tensor) -> Tensor:
        """Output of the encoder (B, out, 1, N) for images (B, C, H, W) in [-1, 1]; MgenError for another size than `image_size`."""
        images = self.prepared(images)
        if images.shape[2:] != (self.config.image_size,) * 2:
            raise MgenError(
                f"images are of {images.shape[2]}×{images.shape[3]} pixels: a {type(self).__name__} takes those of "
                f"{self.config.image_size}×{self.config.image_size} alone, resize or crop them first"
            )
        return self.encoder((images + 1) / 2).transpose(1, 2).unsqueeze(2)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W), about [-1, 1] and not clamped, of codes or unscaled latents z (B, d, 1, N)."""
        return self.decoder(z.to(self.dtype).squeeze(2).transpose(1, 2)) * 2 - 1


def _plain(value: object) -> object:
    """Lists of a saved configuration as the tuples of settings."""
    return tuple(value) if isinstance(value, list) else value


@register_tokenizer
class TiTok(LineTokenizer, CodebookTokenizer):
    """Image ⇄ ids of N tokens. Images are (B, C, H, W) in [-1, 1] with H = W = image_size; the network works on [0, 1].

    Args:
        image_size: H = W in pixels; the weights work at no other size. in_channels: C. latent_tokens: N. patch: p.
        encoder_dim, encoder_depth, encoder_heads: D, layers and heads of the encoder; decoder_…: of the decoder.
        decoder_patch: side of the patches that the decoder makes; None: `patch`.
        latent: d. vocab_size: codebook rows. unit_codes: latents and codes are normalized before they are compared.
        scrambled: see Encoder. pixel_decoder: decode to codes of a VQGAN with these settings (see PixelDecoder); None: to pixels.
    """

    SIZES = {
        "l32": sizes(LARGE, LARGE, latent_tokens=32, **TWO_STAGES),
        "b64": sizes(BASE, BASE, latent_tokens=64, **TWO_STAGES),
        "s128": sizes(SMALL, SMALL, latent_tokens=128, **TWO_STAGES),
        "bl64": sizes(BASE, LARGE, latent_tokens=64),
        "bl128": sizes(BASE, LARGE, latent_tokens=128),
        "sl256": sizes(SMALL, LARGE, latent_tokens=256),
        "fmnist": sizes(
            TINY,
            TINY,
            image_size=32,
            in_channels=1,
            patch=4,
            latent_tokens=32,
            latent=16,
            vocab_size=512,
            unit_codes=True,
        ),
    }

    # Many arguments on purpose: the saved configuration is flat, and token caches are matched by a hash of it; sections would make
    # caches of the same tokenizer look foreign.
    @register_to_config
    @checked_network
    def __init__(
        self,
        *,
        image_size: Size = 256,
        in_channels: Size = 3,
        latent_tokens: Size = 128,
        patch: Size = 16,
        encoder_dim: Size = 768,
        encoder_depth: Depth = 12,
        encoder_heads: Size = 12,
        decoder_patch: Size | None = None,
        decoder_dim: Size = 1024,
        decoder_depth: Depth = 24,
        decoder_heads: Size = 16,
        latent: Size = 64,
        vocab_size: Size = 8192,
        unit_codes: bool = False,
        scrambled: bool = False,
        pixel_decoder: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        settings = None if pixel_decoder is None else build(PixelDecoder, pixel_decoder, "pixel_decoder.")
        self.build_networks(out=latent, scrambled=scrambled, pixel_decoder=settings)
        self.quantize = code_quantizer(vocab_size=vocab_size, dim=latent, normalized=unit_codes)

    @property
    def spec(self) -> TokenSpec:
        return TokenSpec(kind="index", length=self.config.latent_tokens, vocab_size=self.config.vocab_size)

    def latents(self, images: Tensor) -> Tensor:
        """Features before quantization (B, d, 1, N) of images (B, C, H, W) in [-1, 1]."""
        return self.encoded(images)

    def fuse(self) -> "TiTok":
        """Fold the official shortcuts of the VQGAN's decoder into their convolutions. A fused model cannot be saved."""
        for module in self.modules():
            if isinstance(module, vqgan.ResBlock):
                module.fuse()
        return self

    # -- the first of two stages of training -----------------------------------------------------------------------------

    @property
    def predicts_codes(self) -> bool:
        """Whether it decodes to the codes of a VQGAN, which makes the image."""
        return isinstance(self.decoder.head, CodeHead)

    def use_pixels(self, tokenizer: vqgan.VQGAN, *, copy: bool = True) -> None:
        """Freeze decoder and codes of the VQGAN, after they were copied from `tokenizer`; MgenError if that one has others."""
        head, given = self.decoder.head, tokenizer.config
        assert isinstance(head, CodeHead)
        if not isinstance(tokenizer.quantize, VectorQuantizer):
            raise MgenError("the VQGAN has a scalar quantizer: one with a codebook is needed")
        own = build(PixelDecoder, self.config.pixel_decoder or {}, "pixel_decoder.")
        for key in PixelDecoder.__dataclass_fields__:
            if (wanted := getattr(own, key)) != (found := _plain(given[key])):
                raise MgenError(
                    f"pixel_decoder.{key} is {wanted}, but the VQGAN has {found}: set it to that, or give another one"
                )
        if (length := tokenizer.spec.length) != self.decoder.side**2:
            raise MgenError(
                f"the decoder has {self.decoder.side**2} patches, but the VQGAN makes {length} ids of an image"
            )
        if copy:
            head.codes.load_state_dict(tokenizer.quantize.embedding.state_dict())
            head.pixels.load_state_dict(tokenizer.decoder.state_dict())
        head.codes.requires_grad_(False)
        head.pixels.requires_grad_(False)

    def imitate(self, images: Tensor, ids: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """For the first stage: loss terms and metrics of predicting the ids (B, P) that a VQGAN gives the patches of images.

        Terms are "proxy", the mean cross entropy, and the quantizer's; no image is made.
        """
        head, quantized = self.decoder.head, self.quantize(self.latents(images))
        assert isinstance(head, CodeHead)
        features = self.decoder.features(quantized.values.to(self.dtype).squeeze(2).transpose(1, 2))
        logits = head.logits(features).float()  # (B, P, Q)
        terms = {"proxy": F.cross_entropy(logits.transpose(1, 2), ids), **quantized.losses}
        accuracy = (logits.argmax(-1) == ids).float().mean()
        return terms, codebook_usage(quantized.ids, self.quantize.vocab_size) | {"proxy_accuracy": accuracy}


@register_tokenizer
class TiTokKL(LineTokenizer, ScaledPosterior):
    """Image ⇄ N vectors. Images are (B, C, H, W) in [-1, 1] with H = W = image_size; the network works on [0, 1].

    Args: as of TiTok, and scale: factor that brings the latents to unit variance; None: not measured yet.
    """

    SIZES = {
        "ll32": sizes(LARGE, LARGE, latent_tokens=32),
        "bl64": sizes(BASE, LARGE, latent_tokens=64),
        "bl128": sizes(BASE, LARGE, latent_tokens=128),
    }

    # Flat on purpose, as in TiTok.
    @register_to_config
    @checked_network
    def __init__(
        self,
        *,
        image_size: Size = 256,
        in_channels: Size = 3,
        latent_tokens: Size = 64,
        patch: Size = 16,
        encoder_dim: Size = 768,
        encoder_depth: Depth = 12,
        encoder_heads: Size = 12,
        decoder_patch: Size | None = None,
        decoder_dim: Size = 1024,
        decoder_depth: Depth = 24,
        decoder_heads: Size = 16,
        latent: Size = 16,
        scale: Scale | None = None,
    ) -> None:
        super().__init__()
        self.build_networks(out=2 * latent)

    @property
    def spec(self) -> TokenSpec:
        c = self.config
        return TokenSpec(kind="vector", length=c.latent_tokens, channels=c.latent, scale=c.scale)

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance of the posterior, (B, 2d, 1, N), of images (B, C, H, W) in [-1, 1]; not clamped."""
        return self.encoded(images)

    def tokens(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Tokens (B, N, d) of moments (B, 2d, 1, N): of the posterior's mean, or of a sample with standard normal `noise` (B, d, 1, N).

        Raises an MgenError if the scale has not been set.
        """
        return (self.posterior_sample(moments, noise) * self._scale()).squeeze(2).transpose(1, 2)

    def decode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Images of tokens (B, N, d); they have no place in the image, so there is no `grid`."""
        self.grid_of(tokens, grid)
        return self.decode_latents((tokens / self._scale()).transpose(1, 2).unsqueeze(2))

    def noise_shape(self) -> tuple[int, ...]:
        """Shape (d, 1, N) of the posterior's noise for one image."""
        return self.config.latent, 1, self.config.latent_tokens
