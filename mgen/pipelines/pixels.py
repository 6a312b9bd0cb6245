"""From a decoder's output to bytes and pictures."""

from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import interpolate

from mgen.pipelines.run_file import QUANTIZATIONS
from mgen.utils.errors import check_choice


def to_uint8(images: Tensor, *, size: int | None = None, quantization: str = "round") -> Tensor:
    """[-1, 1] → 0 … 255; values beyond are clamped.

    Args:
        size: side that images (B, C, H, W) are resized to first, bicubic without antialiasing: LlamaGen and Hita sample at 384 and 336
            pixels and are measured at 256.
        quantization: "round"; "half-up", floor of 127.5 x + 128 (LlamaGen, Hita), which differs for values close to a half only; or
            "truncate", floor of 127.5 x + 127.5 (MAGE, ReCAP's MaskGIT): half a level darker on average.
    """
    check_choice("quantization", quantization, QUANTIZATIONS)
    images = images.float()
    if size is not None:
        images = interpolate(images, (size, size), mode="bicubic", align_corners=False)
    if quantization == "half-up":
        return (127.5 * images + 128).clamp(0, 255).to(torch.uint8)
    levels = (images.clamp(-1, 1) + 1) * 127.5
    return (levels if quantization == "truncate" else levels.round()).to(torch.uint8)


def as_output(images: Tensor, output_type: str) -> Any:
    """What a decoder returned, about [-1, 1], as "pil", "np" (B, H, W, C) or "pt" (B, C, H, W) in [0, 1], "uint8", or "raw" as it is."""
    match output_type:
        case "raw":
            return images
        case "pt":
            return (images.clamp(-1, 1) + 1) / 2
        case "np":
            return ((images.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()
        case "uint8":
            return to_uint8(images)
    return to_pil(to_uint8(images))


def to_pil(images: Tensor) -> list[Image]:
    """uint8 (B, C, H, W) → PIL images, gray for one channel."""
    from torchvision.transforms.functional import to_pil_image

    return [to_pil_image(image.cpu()) for image in images]
