"""Optional helpers of tokenizer training: a patch discriminator with its losses, and perceptual distances.

Discriminator: PatchGAN of Isola et al. (arXiv 1611.07004), as used by taming VQGAN; losses: hinge or non-saturating
(Goodfellow et al., arXiv 1406.2661) with R1 (Mescheder et al., arXiv 1801.04406, eq. 9).
Perceptual distance: mean squared difference of unit-normalised feature maps (Zhang et al., arXiv 1801.03924, without the
learned weights), on a FashionCNN or on torchvision's VGG16.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.errors import MgenError


class Discriminator(nn.Module):
    """Patch logits of images (B, C, H, W); `forward` is its training loss on (real, fake)."""

    def __init__(
        self, *, in_channels: int, channels: int = 64, layers: int = 3, loss: str = "non-saturating", r1: float = 0.0
    ):
        super().__init__()
        self.loss, self.r1 = loss, r1
        parts: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for _ in range(layers - 1):
            parts += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.GroupNorm(8, 2 * width), nn.LeakyReLU(0.2)]
            width *= 2
        self.net = nn.Sequential(*parts, nn.Conv2d(width, 1, 3, 1, 1))

    def generator_loss(self, fake: Tensor) -> Tensor:
        """Loss of the tokenizer: make the discriminator take `fake` for real. No gradient reaches the discriminator."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        score = self.net(fake)
        for parameter in self.parameters():
            parameter.requires_grad_(True)
        return -score.mean() if self.loss == "hinge" else F.softplus(-score).mean()

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        real = real.detach().requires_grad_(self.r1 > 0)
        on_real, on_fake = self.net(real), self.net(fake.detach())
        if self.loss == "hinge":
            loss = F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
        else:
            loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        if self.r1 > 0:
            (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
            loss = loss + self.r1 / 2 * slope.square().sum((1, 2, 3)).mean()
        return loss


class PerceptualDistance(nn.Module):
    """Mean over layers of the squared difference of unit-normalised features of two images in [-1, 1]."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.vgg: nn.ModuleList | None = None
        if Path(path).is_dir():
            from mgen.evaluation.cnn import FashionCNN

            self.cnn = FashionCNN.from_pretrained(path)
        else:
            self.vgg = _vgg_stages(Path(path))
        self.eval().requires_grad_(False)

    def maps(self, images: Tensor) -> list[Tensor]:
        if self.vgg is None:
            return self.cnn.maps(images)
        mean = torch.tensor([0.485, 0.456, 0.406], device=images.device).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225], device=images.device).view(3, 1, 1)
        x = ((images + 1) / 2).expand(-1, 3, -1, -1).sub(mean).div(std)
        maps = []
        for stage in self.vgg:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.maps(b)
        parts = [
            (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean() for x, y in zip(self.maps(a), wanted)
        ]
        return torch.stack(parts).mean()


def _vgg_stages(path: Path) -> nn.ModuleList:
    """The five stages of torchvision's VGG16, from a local file of its weights."""
    from torchvision.models import vgg16

    from mgen.checkpoints.reading import read_state_dict

    state = read_state_dict(path)
    net = vgg16()
    missing = [k for k in net.state_dict() if k.startswith("features.") and k not in state]
    if missing:
        raise MgenError(f"{path} is not torchvision's VGG16: it lacks {missing[0]}")
    net.features.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith("features.")})
    cuts = (0, 4, 9, 16, 23, 30)
    return nn.ModuleList(nn.Sequential(*(_plain(m) for m in net.features[a:b])) for a, b in zip(cuts, cuts[1:]))


def _plain(module: nn.Module) -> nn.Module:
    return nn.ReLU() if isinstance(module, nn.ReLU) else module  # in place would overwrite a map that is compared
