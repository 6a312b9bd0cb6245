"""Latent channels sorted by spatial frequency: which ones carry the outline of an image and which ones its texture.

TokenBridge (Wang et al., arXiv 2503.16430, §3.3) predicts the channels of a token one after another, low frequencies first, as found
by a Fourier transform. Only the resulting order for KL16 was published (mgen.nn.levels.PUBLISHED_ORDER), no code; the measure here
is our reading of the text.

Notation: N images, c channels, h × w positions.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from mgen.tokenizers.kl import KLTokenizer
from mgen.utils.errors import MgenError


def frequency_order(latents: Tensor) -> tuple[int, ...]:
    """Channels of latents (N, c, h, w) by ascending mean frequency; ties keep their order.

    A channel's mean frequency is √(f_y² + f_x²), in cycles per position, weighted by its power spectrum averaged over the images.
    The mean over images is subtracted first, so that a constant all images share does not count.

    Raises:
        MgenError: the latents are not (N, c, h, w), not finite, or have a single position.
    """
    if latents.ndim != 4 or latents.shape[-2] * latents.shape[-1] < 2 or not torch.isfinite(latents).all():
        raise MgenError(
            f"latents {tuple(latents.shape)}: expected finite numbers (N, c, h, w) with at least two positions"
        )
    x = latents.double()
    power = torch.fft.fft2(x - x.mean((0, 2, 3), keepdim=True)).abs().square().mean(0)  # (c, h, w)
    fy, fx = (torch.fft.fftfreq(side, dtype=torch.float64, device=x.device) for side in x.shape[-2:])
    frequency = torch.hypot(fy[:, None], fx[None, :])  # (h, w)
    total = power.sum((1, 2))
    mean = (power * frequency).sum((1, 2)) / torch.where(total == 0, 1.0, total)
    return tuple(mean.argsort(stable=True).tolist())


@torch.inference_mode()
def measure_order(tokenizer: KLTokenizer, batches: Iterable[Tensor], *, seed: int = 0) -> tuple[int, ...]:
    """`frequency_order` of the tokens of images: the C numbers of a token are the channels, the grid gives the positions.

    Tokens are samples of the posterior, as generators see them: a channel that is mostly noise has a flat spectrum and comes late.

    Args:
        batches: image batches (B, C, H, W) in [-1, 1]; a thousand images are enough. seed: of the posterior's noise.
    """
    rng, parts = torch.Generator().manual_seed(seed), []
    for images in batches:
        moments = tokenizer.moments(images.to(tokenizer.device))
        b, c, h, w = moments.shape
        noise = torch.randn(b, c // 2, h, w, generator=rng).to(moments.device)
        tokens = tokenizer.tokens(moments, noise)  # (B, L, C)
        maps = tokens.unflatten(1, (h // tokenizer.config.patch, -1)).permute(0, 3, 1, 2)  # (B, C, rows, columns)
        parts.append(maps.cpu())
    if not parts:
        raise MgenError("there are no images to measure the order of channels on")
    return frequency_order(torch.cat(parts))
