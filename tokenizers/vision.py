"""The frozen vision encoder of a Hita tokenizer: DINOv2 with registers, from a local file, never saved with the tokenizer.

Oquab et al., "DINOv2" (arXiv 2304.07193); Darcet et al., "Vision Transformers Need Registers" (arXiv 2309.16588). The network
comes from timm; Hita uses ViT-L/14 with 4 registers, `dinov2_vitl14_reg4_pretrain.pth` of Meta.

Notation: B batch, C image channels, V = 1 + 16² tokens (class token first), W width.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.tokenizers.base import Tokenizer
from mgen.utils.errors import MgenError
from mgen.utils.weights import State, read_state_dict

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

SIZE = 224  # pixels the encoder sees
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
LAYOUT = "vit_large_patch14_reg4_dinov2"
HOW = "give --vision-weights FILE (objective.vision_weights in a training configuration, use_vision(FILE) in Python)"


def gaussian_taps(factor: float) -> Tensor:
    """Blur kernel (k,) for shrinking an axis by `factor`: standard deviation (factor − 1) / 2, an odd number of at least 3 taps."""
    sigma = max((factor - 1) / 2, 1e-3)
    count = int(max(4 * sigma, 3)) | 1
    offsets = torch.arange(count) - count // 2
    taps = torch.exp(-offsets.square() / (2 * sigma**2))
    return taps / taps.sum()


def resized(images: Tensor, size: int = SIZE) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] as (B, C, size, size) in [0, 1]: blurred if an axis shrinks, bicubic with aligned corners.

    The published preprocessing is kornia's `resize(…, align_corners=True, antialias=True)`, which pads by reflection.
    """
    x, channels = images.float(), images.shape[1]
    factors = [side / size for side in x.shape[-2:]]
    if max(factors) > 1:
        for axis, factor in enumerate(factors):
            taps = gaussian_taps(factor).to(x.device)
            shape, pad = [(-1, 1), (1, -1)][axis], len(taps) // 2
            kernel = taps.view(1, 1, *shape).expand(channels, -1, -1, -1)  # (C, 1, k, 1) or (C, 1, 1, k)
            padding = (0, 0, pad, pad) if axis == 0 else (pad, pad, 0, 0)
            x = F.conv2d(F.pad(x, padding, mode="reflect"), kernel, groups=channels)
    x = F.interpolate(x, size=(size, size), mode="bicubic", align_corners=True)
    return (x.clamp(-1, 1) + 1) / 2


class VisionEncoder(nn.Module):
    """Images → class token and patch tokens of timm's `vit` for 224 px after its last norm; frozen, always in evaluation mode."""

    mean: Tensor
    std: Tensor

    def __init__(self, vit: "VisionTransformer") -> None:
        super().__init__()
        self.vit = vit
        self.width = vit.embed_dim
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "VisionEncoder":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Tokens (B, V, W) of images (B, C, H, W) in [-1, 1], C 3 or 1 (gray), any size."""
        x = (resized(images).expand(-1, 3, -1, -1) - self.mean) / self.std
        tokens = self.vit.forward_features(x.to(self.vit.patch_embed.proj.weight.dtype))  # (B, 1 + registers + 16², W)
        prefix = self.vit.num_prefix_tokens
        return torch.cat([tokens[:, :1], tokens[:, prefix:]], dim=1)


@torch.inference_mode(False)  # weights created in inference mode could not be used outside it
def load_vision(path: str | Path, *, heads: int | None = None) -> VisionEncoder:
    """Load the vision encoder of a file with the keys of `dinov2_vitl14_reg4_pretrain.pth`; the shapes give width and depth.

    Args:
        path: torch file or safetensors. heads: attention heads; None: width / 64, as in all published ones.

    Raises:
        MgenError: timm is not installed; the file is missing, damaged, or not of this layout.
    """
    state = read_state_dict(path)
    for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "register_tokens", "mask_token"):
        if name not in state:
            raise MgenError(
                f"{path} does not have DINOv2's layout with registers (dinov2_vitl14_reg4_pretrain.pth): {name} is missing"
            )
    registers, option = state["register_tokens"].shape[1], "load_vision(…, heads=N)"
    vit = load_transformer(
        path, state, LAYOUT, user="the vision encoder", heads=heads, option=option, side=SIZE, registers=registers
    )
    return VisionEncoder(vit)


def load_transformer(
    path: str | Path,
    state: State,
    layout: str,
    *,
    user: str,
    heads: int | None,
    option: str,
    side: int,
    registers: int = 0,
) -> "VisionTransformer":
    """timm's vision transformer of `layout` with the weights of a file; width, depth and patch are those of their shapes.

    Args:
        path, state: the file, and what it holds. user, option: for messages: what needs timm, how to give the number of heads.
        heads: attention heads; None: width / 64, as in all published ones. side: of its images, in pixels.

    Raises:
        MgenError: timm is not installed, or the weights do not fit.
    """
    try:
        import timm
        from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
    except ImportError as error:
        raise MgenError(f"{user} needs timm: pip install 'mgen[hita]', or pip install timm") from error
    patch = state["patch_embed.proj.weight"]
    width = len(patch)
    if heads is None and width % 64:
        raise MgenError(f"{path} has width {width}, which is not a multiple of 64: give the number of heads, {option}")
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it logs the expected resampling of the position table
    try:
        vit = timm.create_model(
            layout,
            pretrained=False,
            num_classes=0,
            patch_size=patch.shape[-1],
            embed_dim=width,
            depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
            num_heads=heads or width // 64,
            mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
            img_size=side,
            reg_tokens=registers,
        )
        assert isinstance(vit, VisionTransformer)
        if "mask_token" in state:  # Meta's names, for which timm has a translation
            state = checkpoint_filter_fn(state, vit)
        vit.load_state_dict(state)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise MgenError(f"{path} does not fit {layout}: {str(error).splitlines()[-1].strip()[:160]}") from error
    finally:
        logger.setLevel(level)
    return vit


def give_vision(tokenizer: Tokenizer, path: str | Path | None) -> None:
    """Load the vision encoder of `path`, if one is given, into a tokenizer; MgenError if it takes none."""
    if path is not None:
        tokenizer.use_vision(path)
