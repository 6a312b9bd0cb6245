"""The discriminator that Hita-U's tokenizer is trained against: small heads on the features of a frozen DINO.

Sauer et al., "StyleGAN-T" (arXiv 2301.09515): heads on several depths of one frozen vision transformer. Caron et al., DINO
(arXiv 2104.14294): its weights, ViT-S/16 from the local file `dino_deitsmall16_pretrain.pth`; the network is the library timm's.
Spectral norm: Miyato et al. (arXiv 1802.05957). Virtual batches: each 8 rows are normalized by themselves.

Notation: B batch, S side of the transformer's input (224), T = 1 + (S / 16)² tokens (class token first), W width (384).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.transforms.functional import normalize

from mgen.tokenizers.vision import MEAN, STD, load_transformer
from mgen.training.adversarial import Adversary
from mgen.utils.errors import MgenError
from mgen.utils.weights import read_state_dict

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

LAYOUT = "vit_small_patch16_224"
FILE = "dino_deitsmall16_pretrain.pth"


class VirtualBatchNorm(nn.Module):
    """Batch norm of (B, W, T) by the statistics of each `rows` images in turn; fewer at the end make a batch of their own.

    Pieces of a batch (accumulation, processes) make the same virtual batches as the whole if they are multiples of `rows`.
    """

    def __init__(self, width: int, *, rows: int = 8, eps: float = 1e-6) -> None:
        super().__init__()
        self.rows, self.eps = rows, eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.rows)
        return torch.cat([F.batch_norm(p, None, None, self.weight, self.bias, True, eps=self.eps) for p in parts])


class Residual(nn.Module):
    """(x + block(x)) / √2."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.block(x)) / math.sqrt(2)


def _block(width: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(conv), VirtualBatchNorm(width), nn.LeakyReLU(0.2))


def _head(width: int) -> nn.Sequential:
    """Readout (B, W, T) → logits (B, 1, T)."""
    return nn.Sequential(_block(width, 1), Residual(_block(width, 9)), spectral_norm(nn.Conv1d(width, 1, 1)))


class DinoDiscriminator(Adversary):
    """Logits of images (B, C, H, W) in [-1, 1], C 3 or 1 (gray), by one head for each readout of a frozen DINO.

    Only the heads are parameters. The transformer moves with the module to other devices, but is never saved with it.

    Args:
        path, attention_heads: of the transformer, see `load_dino`.
        loss, weight, form: see `Adversary`.
    """

    vit: "VisionTransformer"

    def __init__(
        self,
        path: str | Path,
        *,
        attention_heads: int | None = None,
        loss: str = "half-hinge-softplus",
        weight: float = 1.0,
        form: str | None = None,
    ) -> None:
        super().__init__(loss=loss, weight=weight, form=form)
        vit = load_dino(path, heads=attention_heads)
        self.__dict__["vit"] = vit  # outside the module tree: neither trained nor saved with the heads
        self.size: int = vit.patch_embed.img_size[0]  # pixels
        depth = len(vit.blocks)
        self.read_after = sorted({math.ceil(depth * k / 4) - 1 for k in (1, 2, 3, 4)})  # blocks 2, 5, 8, 11 of 12
        self.heads = nn.ModuleList(_head(vit.embed_dim) for _ in range(1 + len(self.read_after)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.vit._apply(fn)
        return super()._apply(fn, recurse)

    def crop_noise(self, count: int, rng: torch.Generator) -> Tensor:
        """Coin, y and x in [0, 1) of the three calls of a step (count, 3, 3), the same for all images."""
        return torch.rand(3, 3, generator=rng).expand(count, 3, 3)

    def generator_loss(self, fake: Tensor, crop: Tensor | None = None) -> Tensor:
        """See Adversary.generator_loss. The estimates of the spectral norms stay as they are, so evaluation does not change a run."""
        self.heads.eval()
        try:
            return super().generator_loss(fake, crop)
        finally:
            self.heads.train(self.training)

    def scores(self, images: Tensor, crop: Tensor | None = None) -> Tensor:
        """Logits (B, readouts · T) of images; `crop` (3,) holds coin, y and x."""
        x = (self.fitted(images, crop).expand(-1, 3, -1, -1) + 1) / 2
        readouts = self.readouts(normalize(x, MEAN, STD))
        # In fp32 whatever the precision of the run: rounded products would make the spectral norm wrong.
        with torch.autocast(images.device.type, enabled=False):
            dtype = next(self.heads.parameters()).dtype
            logits = [head(x.to(dtype).transpose(1, 2)) for head, x in zip(self.heads, readouts)]
            return torch.cat(logits, dim=2).flatten(1)  # (B, readouts · T)

    def fitted(self, images: Tensor, crop: Tensor | None = None) -> Tensor:
        """Images (B, C, S, S): larger ones cropped if the coin is below 1/2, else averaged down; smaller ones bicubic.

        Without `crop` larger images are averaged down, too.
        """
        height, width = images.shape[-2:]
        if height == width == self.size:
            return images
        if min(height, width) < self.size:
            return F.interpolate(images, size=(self.size, self.size), mode="bicubic", align_corners=False)
        coin, y, x = (1.0, 0.0, 0.0) if crop is None else crop.tolist()
        if coin < 0.5:
            top, left = int(y * (height - self.size + 1)), int(x * (width - self.size + 1))
            return images[..., top : top + self.size, left : left + self.size]
        return F.interpolate(images, size=(self.size, self.size), mode="area")

    def readouts(self, images: Tensor) -> list[Tensor]:
        """Tokens (B, T, W) before the first block and after those of `read_after`, of normalized images (B, 3, S, S)."""
        vit = self.vit
        assert vit.cls_token is not None and vit.pos_embed is not None
        patches = vit.patch_embed(images)  # (B, T - 1, W)
        x = torch.cat([vit.cls_token.expand(len(patches), -1, -1), patches], dim=1) + vit.pos_embed
        found = [x]
        for i, block in enumerate(vit.blocks):
            x = block(x)
            if i in self.read_after:
                found.append(x)
        return found


@torch.inference_mode(False)  # weights made inside one could not be used outside
def load_dino(path: str | Path, *, heads: int | None = None) -> "VisionTransformer":
    """timm's vision transformer with the weights of a file laid out as `dino_deitsmall16_pretrain.pth`, frozen.

    Width, depth, patch and input side are those of the file's shapes; see `load_transformer`, also for its errors.
    """
    state = read_state_dict(path)
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"):
        if name not in state:
            raise MgenError(f"{path} is not of timm's layout of {LAYOUT} ({FILE}): it lacks {name}")
    width, patch = state["patch_embed.proj.weight"].shape[0], state["patch_embed.proj.weight"].shape[-1]
    side = patch * math.isqrt(state["pos_embed"].shape[1] - 1)
    option = "attention_heads=N"
    vit = load_transformer(path, state, LAYOUT, user="the DINO discriminator", heads=heads, option=option, side=side)
    with torch.no_grad():
        for i in range(len(vit.blocks)):  # of the keys, as published; no attention depends on it
            vit.get_parameter(f"blocks.{i}.attn.qkv.bias")[width : 2 * width] = 0.0
    return vit.eval().requires_grad_(False)
