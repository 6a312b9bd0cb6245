"""KL autoencoders: image ⇄ real vectors, hosted by diffusers' AutoencoderKL with the configurations of the published files.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (CVPR 2022, arXiv 2112.10752), appendix G; KL16 is the
one of Li et al., "Autoregressive Image Generation without Vector Quantization" (MAR, NeurIPS 2024, arXiv 2406.11838).
A token is a p×p patch of the latent, channel-major (c, p, p), times `scale`.

Notation: B batch, c latent channels, h = w latent side, p patch, L = (h/p)·(w/p) tokens of C = c·p² numbers.

| size | channels | latent | p | tokens at 256 px | scale | parameters |
|---|---|---|---|---|---|---|
| kl16 (MAR, Hi-MAR, TokenBridge) | 128 128 256 256 512 | f16, 16 | 1 | 256 × 16 | 0.2325 | 66.5 M |
| sd-f8 (Stable Diffusion 1, 2) | 128 256 512 512 | f8, 4 | 2 | 256 × 16 | 0.18215 | 83.7 M |
| fmnist (embedded demo, 32 px) | 16 32 64 | f4, 4 | 1 | 64 × 4 (at 32 px) | measured | 0.65 M |
"""

import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mgen.tokenizers.base import FMNIST, PosteriorTokenizer, Widths, check_convolutions, register_tokenizer
from mgen.tokenizers.corruption import Corruption
from mgen.tokenizers.sphere import set_stem
from mgen.tokens import Bound, Scale, TokenSpec
from mgen.utils.errors import MgenError
from mgen.utils.estimates import checked_network
from mgen.utils.schema import Layers, Listed, Natural, Size


def patchify(latents: Tensor, patch: int) -> Tensor:
    """Latents (B, c, h, w) → tokens (B, L, c·p²), row by row; the numbers of a token are in the order (c, p, p)."""
    return F.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)  # (B, L, C)


def unpatchify(tokens: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, L, c·p²) on `grid` → latents (B, c, h, w), the inverse of `patchify`."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), patch)  # (B, c, h, w)


class ScaledPosterior(PosteriorTokenizer):
    """A tokenizer whose tokens are latents times one `scale` of its configuration. Subclasses implement `decode_latents`."""

    CORRUPTIONS = ("noise",)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W), about [-1, 1] and not clamped, of unscaled latents z (B, c, h, w)."""
        raise NotImplementedError

    def _scale(self) -> float:
        if self.config.scale is None:
            raise MgenError(
                "this tokenizer has no scale: measure it with mgen.tokenizers.estimate_scale (mgen cache --measure-scale) and set it"
            )
        return float(self.config.scale)

    def forward(
        self, images: Tensor, noise: Tensor | None = None, corruption: Corruption | None = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """For training: reconstructions (B, C, H, W); loss term "kl", the divergence from the standard normal in nats per latent
        number; as metrics the root mean squares of the posterior's means and standard deviations.

        Args:
            noise: of the posterior (B, c, h, w). corruption: noise that the latents get besides.
        """
        posterior = self.posterior(self.moments(images))
        z = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        if corruption is not None:
            z = corruption.add_noise(z, corruption.noise)
        kl = posterior.kl().mean() / z[0].numel()
        metrics = {"latent_rms": posterior.mean.square().mean().sqrt(), "posterior_std": posterior.var.mean().sqrt()}
        return self.decode_latents(z), {"kl": kl}, {k: v.detach() for k, v in metrics.items()}


@register_tokenizer
class KLTokenizer(ScaledPosterior):
    """Image ⇄ vectors. Images are (B, C, H, W) in [-1, 1]. `vae` is a diffusers AutoencoderKL: `vae.save_pretrained` exports it.

    Args:
        image_size: H = W in pixels, a multiple of the downsampling factor times `patch`. The weights work at any such size. in_channels: C.
        latent_channels: c. channels: width of each level, finest first; every level but the last halves the side.
        layers: residual blocks per level of the encoder (the decoder has one more). norm_groups: groups of the GroupNorms.
        encoder_attention, decoder_attention: levels with attention after every block, 0 is the finest; KL16's decoder has none.
        middle_attention, quant_conv: attention in the middle; 1×1 convolutions around the latent.
        patch: p. scale: factor that brings the latents to unit variance; None: not measured yet, see `mgen.tokenizers.estimate_scale`.
        shift: subtracted from the latents before scaling.
        stem: width of the first convolution, if it differs from channels[0]. z_channels: width around the latent, if it differs from
            latent_channels. diffusers' AutoencoderKL has neither option, so it cannot load such a `vae`.
    """

    SIZES = {
        "kl16": dict(),
        "sd-f8": dict(latent_channels=4, channels=(128, 256, 512, 512), encoder_attention=(), patch=2, scale=0.18215),
        "fmnist": dict(
            FMNIST, latent_channels=4, channels=(16, 32, 64), encoder_attention=(), middle_attention=False, scale=None
        ),
    }
    # The last two change the weights themselves, which the fingerprint covers.
    CACHE_NEUTRAL = ("image_size", "patch", "scale", "shift", "stem", "z_channels")
    DECODER_WEIGHTS = ("vae.decoder.", "vae.post_quant_conv.")
    ENDS = ("vae.encoder.conv_in", "vae.decoder.conv_out")

    # Many arguments on purpose: the saved configuration is flat, and token caches are matched by a hash of it; sections would make
    # caches of the same tokenizer look foreign.
    @register_to_config
    @checked_network
    def __init__(
        self,
        *,
        image_size: Size = 256,
        in_channels: Size = 3,
        latent_channels: Size = 16,
        channels: Widths = (128, 128, 256, 256, 512),
        layers: Layers = 2,
        norm_groups: Size = 32,
        encoder_attention: Listed[tuple[Natural, ...]] = (4,),
        decoder_attention: Listed[tuple[Natural, ...]] = (),
        middle_attention: bool = True,
        quant_conv: bool = True,
        patch: Size = 1,
        scale: Scale | None = 0.2325,
        shift: Bound = 0.0,
        stem: Size | None = None,
        z_channels: Size | None = None,
    ) -> None:
        super().__init__()
        self.stride = 2 ** (len(channels) - 1)
        self.factor = self.stride * patch
        check_convolutions(image_size=image_size, widths=channels, stem=stem, norm_groups=norm_groups, patch=patch)
        depth = range(len(channels))
        if beyond := [i for i in (*encoder_attention, *decoder_attention) if i not in depth]:
            raise MgenError(f"attention at level {beyond[0]}: there are {len(channels)} levels of channels, from 0 on")
        down = ["AttnDownEncoderBlock2D" if i in encoder_attention else "DownEncoderBlock2D" for i in depth]
        up = ["AttnUpDecoderBlock2D" if i in decoder_attention else "UpDecoderBlock2D" for i in reversed(depth)]
        self.vae = AutoencoderKL(
            in_channels=in_channels,
            out_channels=in_channels,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            latent_channels=z_channels or latent_channels,
            norm_num_groups=norm_groups,
            sample_size=image_size,
            scaling_factor=scale or 1.0,
            shift_factor=shift,
            use_quant_conv=quant_conv,
            use_post_quant_conv=quant_conv,
            mid_block_add_attention=middle_attention,
        )
        set_stem(self.vae, stem)
        if z_channels is not None and z_channels != latent_channels:
            if not quant_conv:
                raise MgenError(
                    f"z_channels {z_channels} and latent_channels {latent_channels} differ, which needs quant_conv: true"
                )
            self.vae.quant_conv = nn.Conv2d(2 * z_channels, 2 * latent_channels, 1)
            self.vae.post_quant_conv = nn.Conv2d(latent_channels, z_channels, 1)

    @property
    def spec(self) -> TokenSpec:
        c, side = self.config, self.config.image_size // self.factor
        return TokenSpec(
            kind="vector",
            length=side * side,
            grid=(side, side),
            channels=c.latent_channels * c.patch**2,
            scale=c.scale,
        )

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance of the posterior, (B, 2c, h, w), of images (B, C, H, W) in [-1, 1]; not clamped."""
        h = self.vae.encoder(self.prepared(images))
        return h if self.vae.quant_conv is None else self.vae.quant_conv(h)

    def tokens(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Tokens (B, L, C) of moments (B, 2c, h, w): of the posterior's mean, or of a sample with standard normal `noise` (B, c, h, w).

        Raises an MgenError if the scale has not been set.
        """
        z = self.posterior_sample(moments, noise)
        return patchify((z - self.config.shift) * self._scale(), self.config.patch)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W), about [-1, 1] and not clamped, of unscaled latents z (B, c, h, w)."""
        return self.vae.decode(z).sample

    def decode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Images of tokens (B, L, C); `grid` (rows, columns) if it is not square."""
        z = unpatchify(tokens, self.config.patch, self.grid_of(tokens, grid)) / self._scale() + self.config.shift
        return self.decode_latents(z.to(self.dtype))

    def noise_shape(self) -> tuple[int, ...]:
        """Shape (c, h, w) of the posterior's noise for one image of `image_size`."""
        side = self.config.image_size // self.stride
        return self.config.latent_channels, side, side
