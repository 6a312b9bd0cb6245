"""Networks beside a tokenizer in training: a patch discriminator with its losses, and a perceptual distance.

Discriminator: PatchGAN of Isola et al. (arXiv 1611.07004), as used by taming VQGAN; losses: hinge (Lim and Ye, arXiv 1705.02894)
or non-saturating (Goodfellow et al., arXiv 1406.2661) with R1 (Mescheder et al., arXiv 1801.04406, eq. 9). The discriminator on
DINO features, with the same losses, is in `dino_discriminator.py`.
Perceptual distance: mean squared difference of unit-normalized feature maps (Zhang et al., arXiv 1801.03924, without the
learned weights), on an ImageClassifier or on torchvision's VGG16.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from mgen.tokenizers.vision import MEAN, STD
from mgen.utils.errors import MgenError, check_choice

# Loss of the discriminator, form of the tokenizer's. The halves are taming's and LlamaGen's; Hita's tokenizer uses the softplus.
LOSSES = {
    "hinge": ("hinge", "mean"),
    "half-hinge": ("half-hinge", "mean"),
    "half-hinge-softplus": ("half-hinge", "softplus"),
    "non-saturating": ("softplus", "softplus"),
}
# The tokenizer's loss of the logits of its images: what goes with the hinge loss, and the non-saturating one.
FORMS: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.neg, "softplus": lambda logits: F.softplus(-logits)}


class Adversary(nn.Module):
    """Losses of a discriminator. A subclass defines the logits; `forward` is the discriminator's loss on real and fake images.

    Args:
        loss: a key of LOSSES. r1: weight of the penalty on real images. weight: factor of the discriminator's loss.
        form: of the tokenizer's loss, a key of FORMS; None: the one that goes with `loss`.
    """

    def __init__(self, *, loss: str, r1: float = 0.0, weight: float = 1.0, form: str | None = None) -> None:
        super().__init__()
        self.own_loss, usual = LOSSES[check_choice("adversarial_loss", loss, LOSSES)]
        self.form = FORMS[usual if form is None else check_choice("adversarial_form", form, FORMS)]
        self.r1, self.weight = r1, weight

    def crop_noise(self, count: int, rng: torch.Generator) -> Tensor | None:
        """Noise of the crops in one step for `count` images, None or (count, 3, …).

        The three are for the calls of a step: fake images in the tokenizer's loss, real and fake ones in the discriminator's.
        """
        return None

    def scores(self, images: Tensor, crop: Tensor | None = None) -> Tensor:
        """Logits of images (B, C, H, W), of any shape; `crop`: noise (…) of this call."""
        raise NotImplementedError

    def generator_loss(self, fake: Tensor, crop: Tensor | None = None) -> Tensor:
        """The tokenizer's loss, low if the discriminator takes `fake` for real. The discriminator gets no gradient."""
        self.requires_grad_(False)
        score = self.scores(fake, None if crop is None else crop[0, 0])
        self.requires_grad_(True)
        return self.form(score).mean()

    def forward(self, real: Tensor, fake: Tensor, crop: Tensor | None = None) -> Tensor:
        real = real.detach().requires_grad_(self.r1 > 0)
        on_real = self.scores(real, None if crop is None else crop[0, 1])
        on_fake = self.scores(fake.detach(), None if crop is None else crop[0, 2])
        if self.own_loss == "softplus":
            loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        else:
            loss = F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
            loss = loss / 2 if self.own_loss == "half-hinge" else loss
        if self.r1 > 0:
            (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
            loss = loss + self.r1 / 2 * slope.square().sum((1, 2, 3)).mean()
        return self.weight * loss


class Discriminator(Adversary):
    """Patch logits of images (B, C, H, W).

    Args:
        in_channels: C. channels: of the first layer. layers: how often the side is halved.
        loss, r1, weight, form: see `Adversary`.
        norm: "group"; or "batch" for the published network, which has batch statistics, one more layer that keeps the side,
            kernels of 4 throughout, at most 8 times `channels`, and initial values of its own.
        unit_range: it sees images in [0, 1] instead of [-1, 1], which differs at the borders, where it pads with zeros (l-DeTok).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int = 64,
        layers: int = 3,
        loss: str = "non-saturating",
        r1: float = 0.0,
        weight: float = 1.0,
        norm: str = "group",
        form: str | None = None,
        unit_range: bool = False,
    ) -> None:
        super().__init__(loss=loss, r1=r1, weight=weight, form=form)
        self.unit_range = unit_range
        parts: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        published = check_choice("discriminator_norm", norm, ("group", "batch")) == "batch"
        for layer in range(1, layers + published):
            wide = channels * (min(2**layer, 8) if published else 2**layer)
            stride = 1 if published and layer == layers else 2
            norms = nn.BatchNorm2d(wide) if published else nn.GroupNorm(8, wide)
            parts += [nn.Conv2d(width, wide, 4, stride, 1, bias=False), norms, nn.LeakyReLU(0.2)]
            width = wide
        self.net = nn.Sequential(*parts, nn.Conv2d(width, 1, 4 if published else 3, 1, 1))
        if published:
            self.net.apply(_published_values)

    def scores(self, images: Tensor, crop: Tensor | None = None) -> Tensor:
        return self.net((images + 1) / 2 if self.unit_range else images)


def _published_values(module: nn.Module) -> None:
    """Initial values of the published PatchGAN."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


class PerceptualDistance(nn.Module):
    """Mean over layers of the squared difference of unit-normalized features of two images in [-1, 1]."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.vgg: nn.ModuleList | None = None
        if Path(path).is_dir():
            from mgen.evaluation.cnn import ImageClassifier

            self.cnn = ImageClassifier.from_pretrained(path)
        else:
            self.vgg = _vgg_stages(Path(path))
        self.eval().requires_grad_(False)

    def maps(self, images: Tensor) -> list[Tensor]:
        if self.vgg is None:
            return self.cnn.maps(images)
        x = normalize(((images + 1) / 2).expand(-1, 3, -1, -1), MEAN, STD)
        maps = []
        for stage in self.vgg:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.maps(b)
        pairs = zip(self.maps(a), wanted)
        return torch.stack([(F.normalize(x) - F.normalize(y)).square().sum(1).mean() for x, y in pairs]).mean()


def _vgg_stages(path: Path) -> nn.ModuleList:
    """The five stages of torchvision's VGG16, from a local file of its weights."""
    from torchvision.models import vgg16

    from mgen.utils.weights import read_state_dict

    state = read_state_dict(path)
    net = vgg16()
    missing = [k for k in net.state_dict() if k.startswith("features.") and k not in state]
    if missing:
        raise MgenError(
            f"{path} is not torchvision's VGG16 (it has no {missing[0]}): give vgg16-397923af.pth, or the folder of an ImageClassifier"
        )
    net.features.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith("features.")})
    for module in net.features:
        if isinstance(module, nn.ReLU):
            module.inplace = False  # it would overwrite a map that is still needed
    cuts = (0, 4, 9, 16, 23, 30)
    return nn.ModuleList(net.features[a:b] for a, b in zip(cuts, cuts[1:]))
