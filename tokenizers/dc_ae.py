"""Deep-compression autoencoders: image ⇄ real vectors of 32×32 pixels, hosted by diffusers' AutoencoderDC.

Chen et al., "Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models" (DC-AE, ICLR 2025, arXiv 2410.10733). The
encoder is deterministic: a token is a position of the latent, times `scale`. eMIGM (arXiv 2503.07197) draws such tokens at 512 px.

Notation: B batch, c latent channels, h = w latent side, L = h·w tokens of c numbers.

| weights | latent | tokens at 512 px | scale |
|---|---|---|---|
| dc-ae-f32c32-in-1.0 (eMIGM) | f32, 32 channels | 256 × 32 | 0.3189 |
"""

from typing import Annotated, Literal

from diffusers import AutoencoderDC
from diffusers.configuration_utils import register_to_config
from pydantic import Field
from torch import Tensor

from mgen.tokenizers.base import PosteriorTokenizer, Widths, register_tokenizer
from mgen.tokenizers.kl import patchify, unpatchify
from mgen.tokens import Scale, TokenSpec
from mgen.utils.errors import MgenError
from mgen.utils.estimates import checked_network
from mgen.utils.fitting import DataRows
from mgen.utils.schema import Depth, Listed, Size

Block = Literal["ResBlock", "EfficientViTBlock"]
Norm = Literal["rms_norm", "batch_norm", "layer_norm"]
Activation = Literal["silu", "relu", "relu6", "gelu", "mish", "swish"]
Blocks = Listed[Annotated[tuple[Block, ...], Field(min_length=1, max_length=16)]]
Depths = Listed[Annotated[tuple[Depth, ...], Field(min_length=1, max_length=16)]]
Norms = Listed[Annotated[tuple[Norm, ...], Field(min_length=1, max_length=16)]]
Activations = Listed[Annotated[tuple[Activation, ...], Field(min_length=1, max_length=16)]]
Scales = Listed[Annotated[tuple[Listed[tuple[Size, ...]], ...], Field(min_length=1, max_length=16)]]  # kernels by level
FINE: tuple[Block, ...] = ("ResBlock",) * 3
COARSE: tuple[Block, ...] = ("EfficientViTBlock",) * 3


@register_tokenizer
class DCAE(PosteriorTokenizer):
    """Image ⇄ vectors. Images are (B, C, H, W) in [-1, 1]. `ae` is a diffusers AutoencoderDC: `ae.save_pretrained` exports it.

    The defaults are meant for dc-ae-f32c32-in-1.0, whose files were not at hand; a converted one takes what its config.json says. What
    differs by level is a tuple, the finest level first.

    Args:
        image_size: H = W in pixels, a multiple of 2^(levels - 1). The weights work at any such size. in_channels: C.
        latent_channels: c. head_dim: numbers of an attention head in EfficientViT blocks.
        encoder_blocks, encoder_channels, encoder_layers, and decoder_…: kind, width and number of the blocks of each level.
        encoder_scales, decoder_scales: kernels of the multi-scale attention of each level. decoder_norms, decoder_activations: of blocks.
        downsample, upsample: how levels are joined. encoder_shortcut, decoder_shortcut: around the convolutions at the latent.
        decoder_end: activation before the last convolution. scale: factor that brings the latents to unit variance.
    """

    has_variance = False
    CACHE_NEUTRAL = ("image_size", "scale")
    DECODER_WEIGHTS = ("ae.decoder.",)

    # Many arguments on purpose: the saved configuration is flat, as of KLTokenizer.
    @register_to_config
    @checked_network
    def __init__(
        self,
        *,
        image_size: Size = 512,
        in_channels: Size = 3,
        latent_channels: Size = 32,
        head_dim: Size = 32,
        encoder_blocks: Blocks = (*FINE, *COARSE),
        encoder_channels: Widths = (128, 256, 512, 512, 1024, 1024),
        encoder_layers: Depths = (0, 4, 8, 2, 2, 2),
        encoder_scales: Scales = ((), (), (), (), (), ()),
        decoder_blocks: Blocks = (*FINE, *COARSE),
        decoder_channels: Widths = (128, 256, 512, 512, 1024, 1024),
        decoder_layers: Depths = (0, 5, 10, 2, 2, 2),
        decoder_scales: Scales = ((), (), (), (), (), ()),
        decoder_norms: Norms = ("batch_norm",) * 3 + ("rms_norm",) * 3,
        decoder_activations: Activations = ("relu",) * 3 + ("silu",) * 3,
        downsample: Literal["pixel_unshuffle", "Conv"] = "pixel_unshuffle",
        upsample: Literal["pixel_shuffle", "interpolate"] = "pixel_shuffle",
        encoder_shortcut: bool = True,
        decoder_shortcut: bool = True,
        decoder_end: Activation = "relu",
        scale: Scale = 0.3189,
    ) -> None:
        super().__init__()
        levels = len(encoder_channels)
        for name, value in dict(self.config).items():
            if isinstance(value, tuple | list) and not name.startswith("_") and len(value) != levels:
                raise MgenError(f"{name} has {len(value)} entries, encoder_channels {levels}: give one for each level")
        self.factor = 2 ** (levels - 1)
        if image_size % self.factor:
            raise MgenError(
                f"image_size {image_size} is not a multiple of {self.factor}, the downsampling of {levels} levels"
            )
        self.ae = AutoencoderDC(
            in_channels=in_channels,
            latent_channels=latent_channels,
            attention_head_dim=head_dim,
            encoder_block_types=encoder_blocks,
            decoder_block_types=decoder_blocks,
            encoder_block_out_channels=encoder_channels,
            decoder_block_out_channels=decoder_channels,
            encoder_layers_per_block=encoder_layers,
            decoder_layers_per_block=decoder_layers,
            encoder_qkv_multiscales=encoder_scales,
            decoder_qkv_multiscales=decoder_scales,
            upsample_block_type=upsample,
            downsample_block_type=downsample,
            decoder_norm_types=decoder_norms,
            decoder_act_fns=decoder_activations,
            encoder_out_shortcut=encoder_shortcut,
            decoder_in_shortcut=decoder_shortcut,
            decoder_conv_act_fn=decoder_end,
            scaling_factor=scale,
        )

    @property
    def spec(self) -> TokenSpec:
        c, side = self.config, self.config.image_size // self.factor
        return TokenSpec(
            kind="vector", length=side * side, grid=(side, side), channels=c.latent_channels, scale=c.scale
        )

    def data_rows(self) -> DataRows:
        """None: the convolutions at both ends differ by configuration, so weights of other image channels are not fitted."""
        return {}

    def moments(self, images: Tensor) -> Tensor:
        """Latents (B, c, h, w) of images (B, C, H, W) in [-1, 1]; there is no variance."""
        return self.ae.encoder(self.prepared(images))

    def tokens(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Tokens (B, L, c) of latents (B, c, h, w); `noise` is for tokenizers with a variance and changes nothing."""
        return patchify(moments * self.config.scale, 1)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W), about [-1, 1] and not clamped, of latents z (B, c, h, w)."""
        return self.ae.decoder(z)

    def decode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Images of tokens (B, L, c); `grid` (rows, columns) if it is not square."""
        z = unpatchify(tokens, 1, self.grid_of(tokens, grid)) / self.config.scale
        return self.decode_latents(z.to(self.dtype))

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """For training: reconstructions (B, C, H, W); no loss terms of its own; as a metric the root mean square of the latents."""
        z = self.moments(images)
        return self.decode_latents(z), {}, {"latent_rms": z.detach().square().mean().sqrt()}
