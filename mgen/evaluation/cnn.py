"""ImageClassifier: a small classifier, used for features (`fmnist-cnn`), class accuracy (`fmnist-classifier`) and perceptual losses.

Three stages of 3×3 convolutions with batch norm and ReLU, one in the first and two in the others, then mean and max pooling,
a feature vector and class logits.
Notation: B batch, C channels, F features.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from pydantic import Field
from torch import Tensor, nn

from mgen.utils.errors import MgenError
from mgen.utils.estimates import checked_network
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.modeling import Model, public
from mgen.utils.schema import Listed, Size


@public
class ImageClassifier(Model):
    """Classifier of small images (B, in_channels, image_size, image_size) in [-1, 1].

    Args:
        widths: channels of the stages; every stage but the first halves the resolution.
        features: length of the feature vector. num_classes: number of logits.
    """

    @register_to_config
    @checked_network
    def __init__(
        self,
        *,
        image_size: Annotated[int, Field(ge=1, le=4096)] = 32,
        in_channels: Size = 1,
        widths: Listed[Annotated[tuple[Size, ...], Field(min_length=1, max_length=16)]] = (28, 56, 112),
        features: Size = 64,
        num_classes: Size = 10,
    ) -> None:
        super().__init__()
        if image_size < 2 ** (len(widths) - 1):
            raise MgenError(f"image_size {image_size} is too small to be halved by {len(widths)} stages")
        pairs = enumerate(zip((in_channels, *widths), widths))
        stages = [nn.Sequential(_conv(c_in, c_out), *[_conv(c_out, c_out)] * (i > 0)) for i, (c_in, c_out) in pairs]
        self.stages = nn.ModuleList(stages)
        self.project = nn.Linear(2 * widths[-1], features)
        self.classify = nn.Linear(features, num_classes)

    def data_rows(self) -> DataRows:
        classes = {0: (Rows("classes", (self.config.num_classes,)),)}
        images = {1: (Rows("image channels", (self.config.in_channels,)),)}
        return {"classify.weight": classes, "classify.bias": classes, "stages.0.0.0.weight": images}

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps after every stage, finest first: (B, widths[i], side / 2^i, side / 2^i)."""
        maps, x = [], images
        for i, stage in enumerate(self.stages):
            x = stage(x if i == 0 else F.max_pool2d(x, 2))
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F) and logits (B, num_classes) of images (B, C, H, W) in [-1, 1]."""
        x = self.maps(images)[-1]
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)  # (B, 2 C)
        features = self.project(pooled)
        return features, self.classify(F.relu(features))


def _conv(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))
