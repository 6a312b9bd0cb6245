"""Feature extractors: uint8 images → features and class logits, under a name that goes into every result.

"inception" is torch-fidelity's port of the TensorFlow network of 2015-12-05 behind published FID and IS. A figure from any
other extractor is a Fréchet distance in that extractor's features, never called FID.
"""

import tempfile
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mgen._folders import embedded
from mgen.errors import MgenError, suggestion
from mgen.files import file_sha256

EMBEDDED = ("fmnist-cnn", "fmnist-judge")


class Extractor(Protocol):
    """What the evaluation needs of an extractor.

    Attributes:
        name: as shown in results. sha256: of its weights. resize: what it does to other image sizes.
        channels: image channels it takes. size: pixels, or None for any. length: of its feature vector.
    """

    name: str
    sha256: str
    resize: str
    channels: int
    size: int | None
    length: int

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F) float32 and logits (B, K) of images uint8 (B, channels, H, W)."""
        ...


def match_channels(images: Tensor, channels: int) -> Tensor:
    """Grey repeated to RGB, or RGB turned to grey by ITU-R 601 luma; uint8 (B, channels, H, W)."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(3, 1, 1)
    return (images[:, :3] * weights).sum(1, keepdim=True).round().to(torch.uint8)


class CNNExtractor:
    """A FashionCNN folder as extractor: `fmnist-cnn` (embedded), or any that was trained with `mgen train`."""

    def __init__(self, folder: Path, name: str, device: torch.device) -> None:
        from mgen.evaluation.cnn import FashionCNN

        self.model = FashionCNN.from_pretrained(folder).eval().to(device)
        self.device, self.name = device, name
        self.sha256 = file_sha256(next(iter(sorted(folder.glob("*.safetensors")))))
        self.length = self.model.config.features
        self.size, self.channels = self.model.config.image_size, self.model.config.in_channels
        self.resize = f"antialiased bilinear to {self.size} px where sizes differ"

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = match_channels(images, self.channels).to(self.device).float() / 127.5 - 1
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        with torch.inference_mode():
            features, logits = self.model(x)
        return features.float().cpu(), logits.float().cpu()


class InceptionExtractor:
    """torch-fidelity's Inception v3: 2048 pooled features and the logits without bias that its IS uses."""

    name, channels = "inception-v3-compat", 3
    size: int | None = None
    length = 2048
    resize = "TensorFlow 1 bilinear to 299 px inside the network"

    def __init__(self, weights: str | Path | None, device: torch.device) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        layers = ["2048", "logits_unbiased"]
        if weights is None:
            try:
                self.model: Any = FeatureExtractorInceptionV3(self.name, layers)
            except Exception as error:  # urllib and torch.hub raise many kinds
                raise MgenError(
                    f"the Inception weights could not be downloaded ({str(error).splitlines()[0][:100]}): "
                    "give --inception-weights FILE (weights-inception-2015-12-05-6726825d.pth of torch-fidelity)"
                ) from error
            cached = Path(torch.hub.get_dir()) / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
            self.sha256 = file_sha256(cached)
        else:
            self.model = self._from_file(Path(weights), layers, FeatureExtractorInceptionV3)
            self.sha256 = file_sha256(weights)
        # Same features up to rounding; CPUs convolve faster in this layout.
        self.model = self.model.to(device, memory_format=torch.channels_last)
        self.device = device

    def _from_file(self, path: Path, layers: list[str], cls: Any) -> Any:
        from mgen.checkpoints.reading import read_state_dict

        state = read_state_dict(path)
        with tempfile.TemporaryDirectory() as folder:
            # The class unpickles whatever file it gets, so it gets one that was read safely and written anew.
            torch.save(state, Path(folder) / "inception.pth")
            try:
                return cls(self.name, layers, feature_extractor_weights_path=str(Path(folder) / "inception.pth"))
            except RuntimeError as error:
                lines = str(error).splitlines()
                text = lines[1 if len(lines) > 1 else 0].strip()[:120]
                raise MgenError(f"{path} does not hold torch-fidelity's Inception weights ({text})") from error

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            features, logits = self.model(match_channels(images, 3).to(self.device))
        return features.float().cpu(), logits.float().cpu()


def make_extractor(name: str, *, weights: str | Path | None = None, device: str | torch.device = "cpu") -> Extractor:
    """The extractor "inception", an embedded one ("fmnist-cnn", "fmnist-judge"), or a folder of a FashionCNN."""
    device = torch.device(device)
    if name in ("inception", InceptionExtractor.name):
        return InceptionExtractor(weights, device)
    if name in EMBEDDED:
        return CNNExtractor(embedded(name), name, device)
    if (Path(name) / "config.json").is_file():
        return CNNExtractor(Path(name), f"cnn:{Path(name).name}", device)
    raise MgenError(
        f"no extractor {name!r}: {suggestion(name, ('inception', *EMBEDDED))}, or a folder of a trained FashionCNN"
    )
