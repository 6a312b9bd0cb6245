"""Metrics of an image and its reconstruction: PSNR and SSIM on the 0 … 255 scale, and LPIPS.

SSIM: Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity" (IEEE
Transactions on Image Processing 13, 2004). Equal to scikit-image's with gaussian_weights=True, sigma=1.5,
use_sample_covariance=False and data_range=255 (tests/unit/test_bridge.py). LPIPS: Zhang et al., "The Unreasonable Effectiveness of Deep
Features as a Perceptual Metric" (arXiv 1801.03924), by the authors' package.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.signal.windows import gaussian

from mgen.utils.errors import MgenError
from mgen.utils.reading import file_sha256
from mgen.utils.weights import read_state_dict

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """10 · log₁₀(255² / mean squared error) in dB for every image, (B,), of uint8 images (B, C, H, W).

    The error is a mean over pixels and channels. Equal images count as if one value were off by 1, so that means stay finite.
    """
    error = (a.double() - b.double()).square().flatten(1)
    return 10 * torch.log10(255**2 / error.mean(1).clamp(min=1 / error.shape[1]))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity for every image, (B,), at most 1, of uint8 images (B, C, H, W).

    A Gaussian window of 11 × 11 pixels with σ = 1.5 at all positions where it fits, K₁ = 0.01, K₂ = 0.03; mean over positions and channels.

    Raises:
        MgenError: images smaller than the window.
    """
    if min(a.shape[-2:]) < WINDOW:
        raise MgenError(
            f"images of {a.shape[-2]}×{a.shape[-1]} pixels are too small for SSIM: its window has {WINDOW}×{WINDOW}"
        )
    window = gaussian(WINDOW, std=SIGMA, dtype=torch.float64, device=a.device)
    window = window / window.sum()

    def blur(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1).unsqueeze(1)  # (B·C, 1, H, W)
        flat = F.conv2d(F.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
        return flat.squeeze(1).unflatten(0, x.shape[:2])  # (B, C, H - 10, W - 10)

    x, y = a.double(), b.double()
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    map_ = (2 * mx * my + C1) * (2 * cov + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return map_.mean((1, 2, 3))


class Lpips:
    """LPIPS of the authors' package (version 0.1, network VGG16); the package includes the linear weights.

    Args:
        weights: torchvision's vgg16-397923af.pth, the network's weights.

    Raises:
        MgenError: the package is not installed, or the file holds other weights.
    """

    def __init__(self, weights: str | Path, device: torch.device) -> None:
        try:
            from lpips import LPIPS
        except ImportError as error:
            raise MgenError("LPIPS needs the authors' package: pip install 'mgen[lpips]'") from error
        state = read_state_dict(weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the package uses deprecated torchvision arguments
            self.model: Any = LPIPS(net="vgg", pretrained=True, pnet_rand=True, verbose=False).eval().to(device)
        # The package numbers layers within slices, net.slice2.5; torchvision numbers them throughout, features.5.
        for name, tensor in self.model.net.state_dict().items():
            source = state.get("features." + ".".join(name.split(".")[1:]))
            if source is None or source.shape != tensor.shape:
                raise MgenError(
                    f"{weights} does not hold torchvision's VGG16 (vgg16-397923af.pth): features of {name} are missing"
                )
            if source.is_complex() or not torch.isfinite(source).all():
                raise MgenError(f"{weights} is damaged: features of {name} hold no finite numbers")
            tensor.copy_(source)
        self.about = {"network": "vgg16, version 0.1", "sha256": file_sha256(weights)}
        self.device = device

    @torch.inference_mode()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS of every image, (B,), of uint8 images (B, C, H, W); gray images are repeated to RGB."""
        x, y = (t.to(self.device).float().expand(-1, 3, -1, -1) / 127.5 - 1 for t in (a, b))
        return self.model(x, y).flatten().double().cpu()
