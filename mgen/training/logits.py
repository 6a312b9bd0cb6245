"""The difference of two images in the eyes of a classifier: a term of a tokenizer's loss beside the perceptual distance.

Yang et al., "Latent Denoising Makes Good Visual Tokenizers" (l-DeTok, arXiv 2507.15856) use ConvNeXt-S (arXiv 2201.03545).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from mgen.tokenizers.vision import MEAN, STD
from mgen.utils.errors import MgenError
from mgen.utils.weights import read_state_dict

SIDE = 224


class LogitDistance(nn.Module):
    """Mean squared difference of the logits of a frozen classifier `net`, of ImageNet's colors, for two images in [-1, 1]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)

    @classmethod
    def from_file(cls, path: str | Path) -> "LogitDistance":
        """With torchvision's ConvNeXt-S, from a local file of its weights; MgenError for another file."""
        from torchvision.models import convnext_small

        state = read_state_dict(path)
        with torch.device("meta"):
            net = convnext_small()
        own = net.state_dict()
        if odd := sorted(
            k for k in own.keys() | state.keys() if k not in own or k not in state or own[k].shape != state[k].shape
        ):
            raise MgenError(
                f"{path} is not torchvision's ConvNeXt-S (its {odd[0]!r} is missing, left over or of another shape): give "
                "convnext_small-0c510722.pth"
            )
        net.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
        return cls(net)

    def logits(self, images: Tensor) -> Tensor:
        """(B, classes) of images (B, C, H, W) in [-1, 1]."""
        x = F.interpolate((images + 1) / 2, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return self.net(normalize(x.expand(-1, 3, -1, -1), MEAN, STD))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.logits(b)
        return F.mse_loss(self.logits(a), wanted)
