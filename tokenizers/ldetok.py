"""l-DeTok: image ⇄ real vectors by two vision transformers, trained to make clean images of noisy and incomplete latents.

Yang et al., "Latent Denoising Makes Good Visual Tokenizers" (l-DeTok, arXiv 2507.15856). A token is the latent of one patch, with
every channel brought to mean 0 and variance 1 by the statistics of the training images.

Notation: B batch, C image channels, L = h·w patches of an image, K of them visible, c latent channels.

| size | patch | encoder, decoder: width, blocks, heads | tokens | parameters |
|---|---|---|---|---|
| BB (published) | 16 | 768, 12, 12 and 768, 12, 12 | 256 × 16 | 171.7 M |
| SS | 16 | 512, 8, 8 and 512, 8, 8 | 256 × 16 | 51.5 M |
| LL | 16 | 1024, 24, 16 and 1024, 24, 16 | 256 × 16 | 606.6 M |
| XLXL | 16 | 1152, 28, 16 and 1152, 28, 16 | 256 × 16 | 895.0 M |
| fmnist (32 px, gray) | 4 | 96, 2, 3 and 96, 3, 3 | 64 × 4 | 0.6 M |
"""

from collections.abc import Iterable
from typing import Annotated

import torch
from diffusers.configuration_utils import register_to_config
from pydantic import Field
from torch import Tensor, nn

from mgen.nn.attention import gather_rows
from mgen.nn.causal import check_rotary
from mgen.nn.sizes import check_heads
from mgen.tokenizers.base import PosteriorTokenizer, register_tokenizer
from mgen.tokenizers.corruption import Corruption
from mgen.tokenizers.kl import patchify, unpatchify
from mgen.tokenizers.rotary_vit import PatchDecoder, PatchEncoder
from mgen.tokens import Bound, Scale, TokenSpec
from mgen.utils.errors import MgenError, shown
from mgen.utils.estimates import checked_network
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import Depth, Listed, Size

Means = Listed[Annotated[tuple[Bound, ...], Field(min_length=1, max_length=4096)]]
Deviations = Listed[Annotated[tuple[Scale, ...], Field(min_length=1, max_length=4096)]]


def _size(dim: int, depth: int, heads: int) -> dict[str, object]:
    return {
        f"{half}_{k}": v
        for half in ("encoder", "decoder")
        for k, v in zip(("dim", "depth", "heads"), (dim, depth, heads))
    }


@register_tokenizer
class LDeTok(PosteriorTokenizer):
    """Image ⇄ vectors. Images are (B, C, H, W) in [-1, 1], of `image_size` only: the positions are those of its patches.

    Args:
        image_size: H = W in pixels, a multiple of `patch`. in_channels: C. patch: side of a patch in pixels.
        latent_channels: c. encoder_dim, encoder_depth, encoder_heads and decoder_…: width, blocks, heads of the two transformers;
            the width of a head is a multiple of 4.
        latents_mean, latents_std: c numbers each; tokens are (z − mean)·scale / std. None: not measured yet, see `measure`.
        scale: factor of all channels alike.
    """

    SIZES = {
        "BB": dict(),
        "SS": _size(512, 8, 8),
        "LL": _size(1024, 24, 16),
        "XLXL": _size(1152, 28, 16),
        "fmnist": dict(_size(96, 3, 3), encoder_depth=2, image_size=32, in_channels=1, patch=4, latent_channels=4),
    }
    CACHE_NEUTRAL = ("latents_mean", "latents_std", "scale")
    DECODER_WEIGHTS = ("decoder.",)
    ENDS = ("encoder.embed", "decoder.conv_out")
    CORRUPTIONS = ("noise", "mask")
    ANY_SIZE = False

    @register_to_config
    @checked_network
    def __init__(
        self,
        *,
        image_size: Size = 256,
        in_channels: Size = 3,
        patch: Size = 16,
        latent_channels: Size = 16,
        encoder_dim: Size = 768,
        encoder_depth: Depth = 12,
        encoder_heads: Size = 12,
        decoder_dim: Size = 768,
        decoder_depth: Depth = 12,
        decoder_heads: Size = 12,
        latents_mean: Means | None = None,
        latents_std: Deviations | None = None,
        scale: Scale = 1.0,
    ) -> None:
        super().__init__()
        if image_size % patch or image_size > 1024 * patch:
            raise MgenError(
                f"image_size is {image_size}: expected a multiple of patch {patch}, at most 1024 times as much"
            )
        for half, dim, heads in (("encoder", encoder_dim, encoder_heads), ("decoder", decoder_dim, decoder_heads)):
            check_heads(dim, heads, width_name=f"{half}_dim", name=f"{half}_heads")
            check_rotary(dim // heads)
        for name, values in (("latents_mean", latents_mean), ("latents_std", latents_std)):
            if values is not None and len(values) != latent_channels:
                raise MgenError(f"{name} has {len(values)} numbers: expected {latent_channels}, one for each channel")
        if (latents_mean is None) != (latents_std is None):
            raise MgenError("latents_mean and latents_std belong together: give both, or neither")
        self.factor = patch
        side = image_size // patch
        ends = dict(patch=patch, channels=in_channels, latent=latent_channels)
        self.encoder = PatchEncoder((side, side), encoder_dim, encoder_depth, encoder_heads, **ends)
        self.decoder = PatchDecoder((side, side), decoder_dim, decoder_depth, decoder_heads, **ends)
        self.apply(_initialize)

    def data_rows(self) -> DataRows:
        c, side = self.config, self.config.image_size // self.factor
        channels, patch = (Rows("image channels", (c.in_channels,)),), self.factor
        positions: DataRows = {
            f"{half}.position": {0: (Rows("positions", (side, side), "interpolated"),)}
            for half in ("encoder", "decoder")
        }
        pixels = {0: (Rows("image channels", (patch * patch, c.in_channels)),)}
        return positions | {
            "encoder.embed.weight": {1: channels},
            "decoder.pixels.weight": pixels,
            "decoder.pixels.bias": pixels,
            "decoder.conv_out.weight": {0: channels, 1: channels},
            "decoder.conv_out.bias": {0: channels},
        }

    @property
    def spec(self) -> TokenSpec:
        c, side = self.config, self.config.image_size // self.factor
        return TokenSpec(
            kind="vector",
            length=side * side,
            grid=(side, side),
            channels=c.latent_channels,
            scale=c.scale if c.latents_mean is not None else None,
        )

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance of the posterior, (B, 2c, h, w), of images (B, C, H, W) in [-1, 1]; not clamped."""
        rows = self.encoder(self._sized(images))  # (B, L, 2c)
        return unpatchify(rows, 1, self._grid)

    def _sized(self, images: Tensor) -> Tensor:
        images, side = self.prepared(images), self.config.image_size
        if images.shape[-2:] != (side, side):
            raise MgenError(
                f"images are of {tuple(images.shape[-2:])} pixels: this {type(self).__name__} has positions for {side}×{side} only"
            )
        return images

    @property
    def _grid(self) -> tuple[int, int]:
        return self.decoder.grid

    def normalize(self, z: Tensor) -> Tensor:
        """Latents (B, L, c) → tokens (B, L, c); MgenError without statistics."""
        mean, std = self._statistics(z.device)
        return (z - mean) * self.config.scale / std

    def denormalize(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, c) → latents (B, L, c), the inverse of `normalize`."""
        mean, std = self._statistics(tokens.device)
        return tokens.float() * std / self.config.scale + mean

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        c = self.config
        if c.latents_mean is None:
            raise MgenError(
                "this tokenizer has no statistics of its latents: measure them (mgen cache … --measure-scale 2000) and give them as "
                "latents_mean and latents_std, or convert it with stats=stats.pkl"
            )
        return torch.tensor(c.latents_mean, device=device), torch.tensor(c.latents_std, device=device)

    def tokens(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Tokens (B, L, c) of moments (B, 2c, h, w): of the posterior's mean, or of a sample with standard normal `noise` (B, c, h, w).

        Raises an MgenError without the statistics of the channels.
        """
        return self.normalize(patchify(self.posterior_sample(moments, noise), 1))

    def decode_latents(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W), about [-1, 1] and not clamped, of latents z (B, c, h, w)."""
        return self.decoder(patchify(z, 1))

    def decode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Images of tokens (B, L, c); the grid is the tokenizer's own."""
        if self.grid_of(tokens, grid) != self._grid:
            raise MgenError(
                f"the tokens are on a grid of {shown(grid or tokens.shape[1])}: this {type(self).__name__} has positions for "
                f"{self._grid[0]}×{self._grid[1]} only"
            )
        return self.decoder(self.denormalize(tokens).to(self.dtype))

    def noise_shape(self) -> tuple[int, ...]:
        """Shape (c, h, w) of the posterior's noise for one image."""
        return self.config.latent_channels, *self._grid

    def forward(
        self, images: Tensor, noise: Tensor | None = None, corruption: Corruption | None = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """For training: reconstructions (B, C, H, W); loss term "kl", the divergence of the visible patches from the standard normal in
        nats, over all L·c latent numbers; metrics as of KLTokenizer.

        Args:
            noise: of the posterior (B, c, h, w). corruption: what is done to the latents; its noise too is that of the patches' places.
        """
        seen = None if corruption is None else corruption.seen
        images = self._sized(images)
        if seen is None:  # all in their order, written over mask tokens: then every parameter is a part of the loss
            seen = torch.arange(len(self.decoder.position), device=images.device).expand(len(images), -1)
            rows = self.encoder(images)
        else:
            rows = self.encoder(images, seen)  # (B, K, 2c)
        posterior = self.posterior(_as_map(rows))
        z = posterior.mean  # (B, c, K, 1)
        if noise is not None:
            z = z + posterior.std * _as_map(gather_rows(patchify(noise, 1), seen))
        if corruption is not None and corruption.noise is not None:
            z = corruption.add_noise(z, _as_map(gather_rows(patchify(corruption.noise, 1), seen)))
        out = self.decoder(patchify(z, 1).to(rows.dtype), seen)
        kl = posterior.kl().mean() / (self.spec.length * self.config.latent_channels)
        metrics = {"latent_rms": posterior.mean.square().mean().sqrt(), "posterior_std": posterior.var.mean().sqrt()}
        return out, {"kl": kl}, {k: v.detach() for k, v in metrics.items()}

    @property
    def unmeasured(self) -> bool:
        """Whether the statistics of its latents are still to be measured."""
        return self.config.latents_mean is None

    @torch.inference_mode()
    def measure(self, batches: Iterable[Tensor]) -> dict[str, object]:
        """`latents_mean` and `latents_std` of the posterior's means over images (B, C, H, W), of all places, as published.

        Raises:
            MgenError: there are no images, or a channel of their latents is not finite or constant.
        """
        count, first, second = 0, 0.0, 0.0  # numbers of a channel, their sums, sums of squares (c,)
        for images in batches:
            mean = self.posterior(self.moments(images.to(self.device))).mean.double()
            count += mean[:, 0].numel()
            first, second = first + mean.sum((0, 2, 3)), second + mean.square().sum((0, 2, 3))
        if not count:
            raise MgenError("cannot measure the statistics of latents: there are no images")
        center = torch.as_tensor(first) / count
        variance = torch.as_tensor(second) / count - center.square()
        if not bool((torch.isfinite(variance) & (variance > 0)).all()):
            raise MgenError(f"cannot measure the statistics of latents: their variances are {shown(variance.tolist())}")
        return {"latents_mean": tuple(center.tolist()), "latents_std": tuple(variance.sqrt().tolist())}


def _as_map(rows: Tensor) -> Tensor:
    """Rows (B, K, n) as a map (B, n, K, 1), which posteriors are made of."""
    return rows.transpose(1, 2).unsqueeze(-1)


@torch.no_grad()
def _initialize(module: nn.Module) -> None:
    """Initial values of linear layers and convolutions."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
