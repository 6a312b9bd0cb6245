"""Feature extractors: uint8 images → features and class logits, with a name that every result states.

"inception" is torch-fidelity's port of the TensorFlow network of 2015-12-05 behind published FID and IS. With
any other extractor the metric is a Fréchet distance in its features and is never called FID.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgen.evaluation.cnn import FashionCNN
from mgen.evaluation.protocols import RESIZES
from mgen.evaluation.protocols import Protocol as Protocol_
from mgen.utils.errors import MgenError, suggestion
from mgen.utils.files import file_sha256
from mgen.utils.folders import embedded
from mgen.utils.weights import read_state_dict

EMBEDDED = ("fmnist-cnn", "fmnist-classifier")
SPATIAL_CHANNELS = 7  # of the map that ADM's evaluator compares


class Seen(NamedTuple):
    """Features (B, F) and logits (B, K) of B images, and spatial features (B, S) if requested."""

    features: Tensor
    logits: Tensor
    spatial: Tensor | None = None


class Extractor(Protocol):
    """The contract of extractors.

    Attributes:
        name: as shown in results. sha256: of its weights. resize: how other image sizes are handled.
        channels: expected image channels. length: of the feature vector. spatial_length: of the spatial features, 0 without.
    """

    name: str
    sha256: str
    resize: str
    channels: int
    length: int
    spatial_length: int

    def __call__(self, images: Tensor) -> Seen:
        """Features (B, F) float32 and logits (B, K) of images uint8 (B, channels, H, W)."""


def match_channels(images: Tensor, channels: int) -> Tensor:
    """Repeat gray to RGB, or convert RGB to gray by ITU-R 601 luma; uint8 (B, channels, H, W)."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(3, 1, 1)
    return (images[:, :3] * weights).sum(1, keepdim=True).round().to(torch.uint8)


class CNNExtractor:
    """A FashionCNN as extractor: the embedded `fmnist-cnn`, or one trained with `mgen train`."""

    spatial_length = 0

    def __init__(self, folder: Path, name: str, device: torch.device) -> None:
        self.model = FashionCNN.from_pretrained(folder).eval().to(device)
        self.device, self.name = device, name
        self.sha256 = file_sha256(min(folder.glob("*.safetensors")))
        self.length = self.model.config.features
        self.size, self.channels = self.model.config.image_size, self.model.config.in_channels
        self.resize = f"antialiased bilinear to {self.size} px where sizes differ"

    def __call__(self, images: Tensor) -> Seen:
        x = match_channels(images, self.channels).to(self.device).float() / 127.5 - 1
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        with torch.inference_mode():
            features, logits = self.model(x)
        return Seen(features.float().cpu(), logits.float().cpu())


class InceptionExtractor:
    """torch-fidelity's Inception v3: 2048 pooled features and the logits without bias that its IS uses.

    Args:
        resize: "tensorflow", inside the network; "clean" or "clean-uint8", before it (Parmar et al., arXiv 2104.11222).
        spatial: also return the first 7 channels of the 17×17 map behind ADM's sFID, 2023 numbers per image.
    """

    name, channels = "inception-v3-compat", 3
    length = 2048

    def __init__(
        self, weights: str | Path | None, device: torch.device, *, resize: str = "tensorflow", spatial: bool = False
    ) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        layers = ["2048", "logits_unbiased"]
        if weights is None:
            try:
                self.model: Any = FeatureExtractorInceptionV3(self.name, layers)
            except Exception as error:  # urllib and torch.hub raise many types
                raise MgenError(
                    f"the Inception weights could not be downloaded ({str(error).splitlines()[0][:100]}): "
                    "give --inception-weights FILE (weights-inception-2015-12-05-6726825d.pth of torch-fidelity)"
                ) from error
            cached = Path(torch.hub.get_dir()) / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
            self.sha256 = file_sha256(cached)
        else:
            self.model = self._from_file(Path(weights), layers, FeatureExtractorInceptionV3)
            self.sha256 = file_sha256(weights)
        # The same features up to rounding; convolutions are faster in this layout on CPUs.
        self.model = self.model.to(device, memory_format=torch.channels_last)
        self.device, self.kind, self.resize = device, resize, RESIZES[resize]
        self.spatial_length = SPATIAL_CHANNELS * 17 * 17 if spatial else 0
        self._ready: Tensor | None = None  # input of the first convolution, in place of the network's own resize
        self._map: Tensor | None = None
        if resize != "tensorflow":
            self.model.Conv2d_1a_3x3.register_forward_pre_hook(lambda *_: (self._ready,))
        if spatial:
            # The node mixed_6/conv of the TensorFlow graph.
            self.model.Mixed_6d.branch1x1.register_forward_hook(self._keep_map)

    def _keep_map(self, module: nn.Module, arguments: object, output: Tensor) -> None:
        self._map = output[:, :SPATIAL_CHANNELS]

    def _from_file(self, path: Path, layers: list[str], cls: Callable[..., nn.Module]) -> nn.Module:
        state = read_state_dict(path)
        with tempfile.TemporaryDirectory() as folder:
            # The class unpickles any file, so it gets a copy that was read safely.
            torch.save(state, Path(folder) / "inception.pth")
            try:
                return cls(self.name, layers, feature_extractor_weights_path=str(Path(folder) / "inception.pth"))
            except RuntimeError as error:
                text = str(error).splitlines()[:2][-1].strip()[:120]
                raise MgenError(f"{path} does not hold torch-fidelity's Inception weights ({text})") from error

    def __call__(self, images: Tensor) -> Seen:
        x = match_channels(images, 3).to(self.device)
        with torch.inference_mode():
            if self.kind != "tensorflow":
                ready = clean_resize(x, cut=self.kind == "clean-uint8")
                self._ready = ((ready - 128) / 128).contiguous(memory_format=torch.channels_last)
                x = x.new_zeros(len(x), 3, 1, 1).expand(-1, -1, 299, 299)  # a placeholder, replaced by _ready
            features, logits = self.model(x)
        found, self._ready, self._map = self._map, None, None
        # (B, 17·17·7), in TensorFlow's layout
        spatial = None if found is None else found.permute(0, 2, 3, 1).flatten(1).float().cpu()
        return Seen(features.float().cpu(), logits.float().cpu(), spatial)


def clean_resize(images: Tensor, *, cut: bool = False) -> Tensor:
    """uint8 (B, C, H, W) → float (B, C, 299, 299) in [0, 255]: antialiased bicubic like clean-fid's, in floats.

    `cut` drops the fractions, like a conversion to bytes (Halton-MaskGIT).
    """
    x = images.float()
    if x.shape[-2:] != (299, 299):
        x = F.interpolate(x, (299, 299), mode="bicubic", antialias=True, align_corners=False)
    x = x.clamp(0, 255)
    return x.floor() if cut else x


def make_extractor(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    resize: str = "tensorflow",
    spatial: bool = False,
) -> Extractor:
    """The extractor "inception" (weights, resize, spatial), an embedded one (fmnist-cnn, fmnist-classifier), or a FashionCNN's folder."""
    device = torch.device(device)
    if name in ("inception", InceptionExtractor.name):
        return InceptionExtractor(weights, device, resize=resize, spatial=spatial)
    if name in EMBEDDED:
        return CNNExtractor(embedded(name), name, device)
    if (Path(name) / "config.json").is_file():
        return CNNExtractor(Path(name), f"cnn:{Path(name).name}", device)
    raise MgenError(
        f"no extractor {name!r}: {suggestion(name, ('inception', *EMBEDDED))}, or a folder of a trained FashionCNN"
    )


def protocol_extractor(protocol: Protocol_, *, weights: str | Path | None, device: str | torch.device) -> Extractor:
    """The extractor of a protocol; see make_extractor."""
    resize = "tensorflow" if protocol.resize == "own" else protocol.resize
    return make_extractor(protocol.extractor, weights=weights, device=device, resize=resize, spatial=protocol.spatial)
