"""The smaller image whose tokens a first stage draws (Hi-MAR, arXiv 2505.20288)."""

import torch.nn.functional as F
from torch import Tensor

from mgen.utils.errors import MgenError


def shrink(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] at side × side pixels: bicubic, neither antialiased nor clamped, as published.

    Raises:
        MgenError: `side` is not smaller than the images.
    """
    if not 0 < side < min(images.shape[-2:]):
        raise MgenError(
            f"the first stage's images have a side of {side} pixels: it must be smaller than that of the images, "
            f"{tuple(images.shape[-2:])}"
        )
    return F.interpolate(images, size=(side, side), mode="bicubic", align_corners=False, antialias=False)
