"""Images at the lower resolution of a first stage (the pivots of Hi-MAR, arXiv 2505.20288)."""

import torch.nn.functional as F
from torch import Tensor

from mgen.utils.errors import MgenError


def shrink(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] as side × side pixels: bicubic, neither antialiased nor clamped, as published.

    Raises an MgenError if `side` is not smaller than the images' sides.
    """
    if not 0 < side < min(images.shape[-2:]):
        raise MgenError(f"smaller copies of {side} pixels must be smaller than the images, {tuple(images.shape[-2:])}")
    return F.interpolate(images, size=(side, side), mode="bicubic", align_corners=False, antialias=False)
