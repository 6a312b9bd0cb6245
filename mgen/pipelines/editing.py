"""Editing with a masked generator: tokens under a pixel mask are sampled again, the others are given and stay.

Inpainting, outpainting and class editing of MaskGIT (arXiv 2202.04200, §4.3): the token mask grows by one cell, because neighboring
tokens carry pixels of the masked region, and the result is composited with the original.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ImageOps
from torch import Tensor

from mgen.data.first_stage import shrink
from mgen.data.image_files import center_crop, load_image, open_image
from mgen.pipelines.pipeline import Classes, MaskedPipeline, decode_finite
from mgen.pipelines.pixels import to_uint8
from mgen.samplers.forward import whole_units
from mgen.tokenizers.base import Tokenizer
from mgen.tokens import has_values
from mgen.utils.errors import MgenError, shown
from mgen.utils.schema import Natural, NonNegative, Size, build, schema

NO_PLACE = "these tokens have no position in the image, so a part of it can't be edited: use a model with a token grid, such as MaskGIT"


def load_mask(path: str | Path, size: int) -> Tensor:
    """Pixel mask, bool (size, size), of an image that is cropped as pictures are: True where it is bright (≥ 128).

    Of an image with transparent pixels, such as a layer of strokes, True where it isn't transparent, whatever the color.
    """
    with open_image(path) as file:
        image = ImageOps.exif_transpose(file)
        if not image.has_transparency_data:
            return load_image(path, size=size, channels=1, upright=True)[0] >= 128
        alpha = image.convert("RGBA").getchannel("A")
    if alpha.getextrema()[0] == 255:  # opaque everywhere
        return load_image(path, size=size, channels=1, upright=True)[0] >= 128
    return torch.from_numpy(np.array(center_crop(alpha, size))) >= 128


def check_picture(image: object, name: str, size: int, channels: int) -> Tensor:
    """The picture, if it is uint8 (channels, size, size); MgenError for anything else."""
    wanted = f"a tensor uint8 {(channels, size, size)} is needed, as load_image(path, size={size}, channels={channels}) gives"
    if not isinstance(image, Tensor):
        raise MgenError(f"{name} is {shown(image)}: {wanted}")
    if image.dtype != torch.uint8 or image.ndim != 3 or tuple(image.shape) != (channels, size, size):
        raise MgenError(
            f"{name} must be {size}×{size} pixels for this model; it is {image.dtype} {tuple(image.shape)}: {wanted}"
        )
    return image


def check_mask(mask: object, size: int) -> Tensor:
    """The mask, if it is bool (size, size) and selects a pixel; MgenError for anything else."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (size, size):
        given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else shown(mask)
        raise MgenError(
            f"mask is {given}: a bool tensor of {size}×{size} pixels is needed, True where the image changes"
        )
    if not mask.any():
        raise MgenError("the mask selects no pixel: white (255) marks what is regenerated")
    return mask


@schema
class EditOptions:
    """The numbers of an edit. feather: up to the side of the image."""

    dilate: Natural = 1
    feather: NonNegative = 0.0
    size: Size

    def __post_init__(self) -> None:
        if self.feather > self.size:
            raise MgenError(f"feather is {self.feather:g}: at most the side of the image, {self.size} pixels")


def _four(numbers: object, name: str) -> list[int]:
    few = isinstance(numbers, Sequence) and not isinstance(numbers, str) and len(numbers) == 4
    if not few or not all(type(n) is int for n in numbers):  # type: ignore[attr-defined]
        raise MgenError(f"{name} is {shown(numbers)}: expected four whole numbers (left, top, right, bottom)")
    return list(numbers)  # type: ignore[call-overload]


def token_mask(pixels: Tensor, grid: tuple[int, int], *, dilate: int = 1) -> Tensor:
    """Tokens to sample, bool (h·w,), for a pixel mask bool (H, W): those with a masked pixel in their cell, then enlarged.

    Args:
        grid: (h, w) of the tokens. dilate: cells by which the mask grows on every side.
    """
    cells = F.adaptive_max_pool2d(pixels[None, None].float(), grid)
    if dilate := min(dilate, max(grid)):  # more would be the same
        cells = F.max_pool2d(cells, 2 * dilate + 1, stride=1, padding=dilate)
    return cells.flatten() > 0


def box_mask(box: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Pixel mask (H, W), True inside box (left, top, right, bottom); MgenError for an empty box or one outside."""
    left, top, right, bottom = _four(box, "box")
    if not isinstance(size, tuple | list) or [type(n) for n in size] != [int, int] or min(size) < 1:
        raise MgenError(f"size is {shown(size)}: expected (height, width) in pixels")
    height, width = size
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise MgenError(
            f"box {','.join(map(shown, box))} does not lie in the image of {width}×{height} pixels (left < right, top < bottom)"
        )
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def outpaint_canvas(image: Tensor, margins: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Image and mask for outpainting: the picture is shrunk to leave the margins free.

    Args:
        image: uint8 (C, H, W). margins: pixels (left, top, right, bottom) of the result that are generated.

    Returns:
        The canvas uint8 (C, H, W) and its mask (H, W), True in the margins.
    """
    left, top, right, bottom = _four(margins, "margins")
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or not has_values(image):
        raise MgenError(f"image is {shown(image)}: a tensor uint8 (C, H, W) is needed, as load_image(path) gives")
    _, height, width = image.shape
    w, h = width - left - right, height - top - bottom
    if min(margins) < 0 or w < 1 or h < 1 or max(margins) == 0:
        raise MgenError(
            f"margins {','.join(map(shown, margins))} leave no picture of {width}×{height} pixels, or nothing to generate"
        )
    scale = max(w / width, h / height)  # cover the inner box, then crop its center: no distortion
    size = (max(h, round(height * scale)), max(w, round(width * scale)))
    small = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0].round().to(torch.uint8)
    y, x = (size[0] - h) // 2, (size[1] - w) // 2
    canvas = torch.full_like(image, 127)
    canvas[:, top : top + h, left : left + w] = small[:, y : y + h, x : x + w]
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[top : top + h, left : left + w] = False
    return canvas, mask


def composite(original: Tensor, edited: Tensor, mask: Tensor, *, feather: float = 0.0) -> Tensor:
    """Edited pixels where mask (H, W) is True, the original's elsewhere; uint8 (B, C, H, W).

    Args:
        feather: standard deviation in pixels of the Gaussian that softens the seam, inside the mask only; 0: a hard seam.
    """
    weight = mask.float()[None, None]
    if feather > 0:
        from torchvision.transforms.functional import gaussian_blur

        size = 2 * round(3 * feather) + 1
        padded = F.pad(weight, (size,) * 4, mode="replicate")
        weight = gaussian_blur(padded, [size, size], [feather, feather])[..., size:-size, size:-size]
        weight = ((weight - 0.5) * 2).clamp(0, 1) * mask  # 0 at the seam, so that given pixels never change
    mixed = original.float() + weight * (edited.float() - original.float())
    return mixed.round().to(torch.uint8)


@torch.inference_mode()
def restyle(tokenizer: Any, content: Tensor, style: Tensor) -> Tensor:
    """The picture `content` in the style of `style`: the patch tokens of one and the global tokens of the other, decoded.

    Zero-shot style transfer of Hita (arXiv 2507.02358); no generator is involved.

    Args:
        tokenizer: one with global tokens (HitaTokenizer). content, style: uint8 (C, H, W) of its image size.

    Returns:
        uint8 (C, H, W).

    Raises:
        MgenError: a tokenizer without global tokens, images of another size, or a vision encoder that is missing.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise MgenError(f"tokenizer is {shown(tokenizer)}: expected a HitaTokenizer, as load_tokenizer gives")
    spec, size = tokenizer.spec, tokenizer.config.image_size
    if not spec.global_tokens:
        raise MgenError(
            f"{type(tokenizer).__name__} makes no global tokens, which hold the style: use a HitaTokenizer (mgen convert "
            "hita …, or mgen train --config fmnist-hita)"
        )
    for name, image in (("content", content), ("style", style)):
        check_picture(image, name, size, tokenizer.config.in_channels)
    ids = tokenizer.encode(torch.stack([content, style]).to(tokenizer.device).float() / 127.5 - 1)  # (2, L)
    mixed = torch.cat([ids[1:, : spec.global_tokens], ids[:1, spec.global_tokens :]], dim=1)
    return to_uint8(decode_finite(tokenizer, mixed, spec.grid))[0]


def check_pipeline(pipe: object) -> None:
    """Raise MgenError unless this is a pipeline."""
    if not isinstance(pipe, MaskedPipeline):
        raise MgenError(f"pipe is {shown(pipe)}: expected a pipeline, as mgen.load gives")


def check_editable(pipe: MaskedPipeline) -> tuple[int, int]:
    """The grid (h, w) of tokens that can be sampled again; MgenError if a part of an image can't be, or this is no pipeline."""
    check_pipeline(pipe)
    if pipe.transformer.capabilities.order == "causal":
        raise MgenError(
            f"{type(pipe.transformer).__name__} draws one token after the other, each from those before it: to edit a part of an image use "
            "a masked generator, such as MaskGIT, or one that draws in any order, such as RAR"
        )
    if pipe.tokenizer.spec.grid is None:
        raise MgenError(NO_PLACE)
    return pipe.tokenizer.spec.grid


def first_stage_of(pipe: MaskedPipeline, image: Tensor, mask: Tensor, count: int, dilate: int) -> tuple[Tensor, Tensor]:
    """The first stage's tokens of the image, and which of them are given (B, S): those that see nothing of the mask."""
    generator, device = pipe.transformer, pipe.transformer.device
    grid, own = generator.first_stage_spec.grid, generator.tokens.grid
    assert grid is not None and own is not None
    side = image.shape[-1] * grid[1] // own[1]
    tokens = pipe.tokenizer.encode(shrink(image[None].to(device).float() / 127.5 - 1, side))
    known = ~token_mask(mask, grid, dilate=dilate).to(device)
    return tokens.expand(count, *tokens.shape[1:]), known.expand(count, -1)


@torch.inference_mode()
def edit(
    pipe: MaskedPipeline,
    image: Tensor,
    mask: Tensor,
    classes: Classes,
    *,
    seed: int = 0,
    dilate: int = 1,
    feather: float = 0.0,
    batch_size: int | None = None,
    dtype: str = "fp32",
    progress: bool = True,
) -> Tensor:
    """Variants of `image`, regenerated where `mask` is True.

    Args:
        image: uint8 (C, H, W). mask: bool (H, W).
        classes: class of each variant, by id or name; None is the null class. Variant i is a function of (seed, i).

    Returns:
        uint8 (B, C, H, W), equal to `image` outside the mask.

    Raises:
        MgenError: the tokens have no position in the image, the mask is empty, or sizes do not fit.
    """
    check_pipeline(pipe)
    spec, size = pipe.tokenizer.spec, int(pipe.tokenizer.config.image_size)
    if spec.grid is None:
        raise MgenError(NO_PLACE)
    check_picture(image, "image", size, pipe.tokenizer.config.in_channels)
    check_mask(mask, size)
    build(EditOptions, {"dilate": dilate, "feather": feather, "size": size})
    count = len(pipe.check_classes(classes))
    check_editable(pipe)
    device, two_stages = pipe.transformer.device, pipe.transformer.capabilities.two_stages
    tokens = pipe.tokenizer.encode(image[None].to(device).float() / 127.5 - 1)  # (1, L) or (1, L, C)
    tokens = tokens.expand(count, *tokens.shape[1:])
    # Global tokens, which come first, describe the changed part too: they are sampled again.
    known = F.pad(~token_mask(mask, spec.grid, dilate=dilate), (spec.global_tokens, 0)).to(device).expand(count, -1)
    edited = pipe(
        classes,
        seed=seed,
        tokens=tokens,
        known=whole_units(pipe.transformer, known),
        first_stage=first_stage_of(pipe, image, mask, count, dilate) if two_stages else None,
        batch_size=batch_size,
        dtype=dtype,
        output_type="uint8",
        progress=progress,
    ).images
    return composite(image[None], edited.cpu(), mask, feather=feather)
