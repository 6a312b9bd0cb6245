"""LlamaGen's VQ tokenizer: image ⇄ ids of unit-length codes, hosted by diffusers' VQModel.

Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (arXiv 2406.06525), §3.1: the VQGAN of Esser
et al. (arXiv 2012.09841) with low-dimensional codes compared by angle (ViT-VQGAN, Yu et al., arXiv 2110.04627, §3.2).
Halton-MaskGIT uses VQ-16 at 256 and 384 px.

Notation: B batch, C image channels, d numbers of a code, h = w = image side / 2^(levels-1), L = h·w tokens.

| size | channels | stride | codes × d | tokens at 256 px | parameters |
|---|---|---|---|---|---|
| vq16 (LlamaGen, Halton-MaskGIT) | 128 128 256 256 512 | 16 | 16384 × 8 | 256 | 71.9 M |
| vq8 | 128 256 256 512 | 8 | 16384 × 8 | 1024 | 70.1 M |
| fmnist (32 px, gray) | 16 32 64 | 4 | 512 × 8 | (64 at 32 px) | 0.8 M |
"""

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from mgen.tokenizers.base import FMNIST, CodebookTokenizer, Widths, register_tokenizer
from mgen.tokenizers.sphere import PlainQuantizer, sphere_vq
from mgen.utils.estimates import checked_network
from mgen.utils.schema import Layers, Size


@register_tokenizer
class LlamaGenVQ(CodebookTokenizer):
    """Image ⇄ ids. Images are (B, C, H, W) in [-1, 1].

    `vq` is a diffusers VQModel with another quantizer, and diffusers can load what `vq.save_pretrained` writes; for a codebook
    trained here, call `vq.quantize.normalize()` first.

    Args:
        image_size: H = W in pixels, a multiple of 2^(levels - 1). The weights work at any such size. in_channels: C.
        channels: width of each level, finest first; every level but the last halves the side and the last has attention.
        layers: residual blocks per level of the encoder (the decoder has one more). norm_groups: groups of the GroupNorms.
        z_channels: width between the network and the 1×1 convolutions around the codes. latent: d. vocab_size: codebook rows.
        stem: width of the first convolution, if it differs from channels[0]; diffusers' VQModel lacks this option.
        normalized: compare latents and codes by angle, as published; False: by distance, with the lengths that they have.
    """

    SIZES = {
        "vq16": dict(),
        "vq8": dict(channels=(128, 256, 256, 512)),
        "fmnist": dict(FMNIST, channels=(16, 32, 64), z_channels=64, vocab_size=512),
    }
    DECODER_WEIGHTS = ("vq.decoder.", "vq.post_quant_conv.")
    LATER = {"normalized": True}
    ENDS, QUANTIZER = ("vq.encoder.conv_in", "vq.decoder.conv_out"), "vq.quantize"

    @register_to_config
    @checked_network
    def __init__(
        self,
        *,
        image_size: Size = 256,
        in_channels: Size = 3,
        channels: Widths = (128, 128, 256, 256, 512),
        layers: Layers = 2,
        norm_groups: Size = 32,
        z_channels: Size = 256,
        latent: Size = 8,
        vocab_size: Size = 16384,
        stem: Size | None = None,
        normalized: bool = True,
    ) -> None:
        super().__init__()
        self.factor = 2 ** (len(channels) - 1)
        self.vq = sphere_vq(self.config, z_channels=z_channels, normalized=normalized)

    @property
    def quantize(self) -> PlainQuantizer:
        return self.vq.quantize

    def latents(self, images: Tensor) -> Tensor:
        """Features before quantization and normalization (B, d, h, w) of images (B, C, H, W) in [-1, 1]."""
        return self.vq.quant_conv(self.vq.encoder(self.prepared(images)))

    def decode_latents(self, z: Tensor) -> Tensor:
        return self.vq.decoder(self.vq.post_quant_conv(z))
