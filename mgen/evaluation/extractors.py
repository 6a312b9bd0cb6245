"""Feature extractors: uint8 images → features and class logits, with a name that every result states.

"inception" is torch-fidelity's port of the TensorFlow network of 2015-12-05 behind published FID and IS. With
any other extractor the metric is a Fréchet distance in its features and is never called FID.
"""

import io
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgen.data.record import read_trained_on
from mgen.evaluation.cnn import ImageClassifier
from mgen.evaluation.protocols import RESIZES
from mgen.evaluation.protocols import Protocol as Protocol_
from mgen.utils.errors import MgenError, first_line, suggestion
from mgen.utils.folders import embedded
from mgen.utils.reading import file_sha256
from mgen.utils.weights import read_state_dict

EMBEDDED = ("fmnist-cnn", "fmnist-classifier")
WEIGHTS = "diffusion_pytorch_model.safetensors"
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
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
        classes: number of logits.
    """

    name: str
    sha256: str
    resize: str
    channels: int
    length: int
    spatial_length: int
    classes: int

    def __call__(self, images: Tensor) -> Seen:
        """Features (B, F) float32 and logits (B, K) of images uint8 (B, channels, H, W)."""


def any_size(extractor: Extractor) -> bool:
    """Whether each image may have a size of its own: clean-fid resizes them one by one."""
    return extractor.resize in (RESIZES["clean"], RESIZES["clean-uint8"])


def match_channels(images: Tensor, channels: int) -> Tensor:
    """Repeat gray to RGB, or convert RGB to gray by ITU-R 601 luma, rounded as Pillow does; uint8 (B, channels, H, W)."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32, device=images.device).view(3, 1, 1)
    return ((images[:, :3] * weights).sum(1, keepdim=True) + 2**15 >> 16).to(torch.uint8)


class CNNExtractor:
    """An ImageClassifier as extractor: the embedded `fmnist-cnn`, or one trained with `mgen train`.

    `trained_on` is what its folder says about its data, None if nothing.
    """

    spatial_length = 0

    def __init__(self, folder: Path, device: torch.device, *, name: str | None = None) -> None:
        self.model = ImageClassifier.from_pretrained(folder).eval().to(device)
        self.device, self.trained_on = device, read_trained_on(folder)
        if not (file := folder / WEIGHTS).is_file():
            raise MgenError(f"{folder} holds no {WEIGHTS}: save the network again, as one file of safetensors")
        self.sha256 = file_sha256(file)
        # By what it was trained on, as folders of trained models are all called `model`.
        data = f"cnn:{folder.name}" if self.trained_on is None else f"classifier of {self.trained_on.data.name}"
        self.name = name or f"{data}, sha {self.sha256[:8]}"
        self.length, self.classes = self.model.config.features, self.model.config.num_classes
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
    length, classes = 2048, 1008

    def __init__(
        self, weights: str | Path | None, device: torch.device, *, resize: str = "tensorflow", spatial: bool = False
    ) -> None:
        file = download_inception() if weights is None else Path(weights)
        self.model: Any = read_inception(file, self.name)
        self.sha256 = file_sha256(file)
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


def download_inception() -> Path:
    """torch-fidelity's weights in torch's cache, downloaded if they aren't there; MgenError unless the file is the published one."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rsplit("/", 1)[1]
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(file), hash_prefix=INCEPTION_SHA256)
        except Exception as error:  # urllib and torch.hub raise many types
            raise MgenError(
                f"the Inception weights could not be downloaded ({first_line(error, 100)}): give --inception-weights FILE ({file.name} of "
                "torch-fidelity)"
            ) from error
    if (found := file_sha256(file)) != INCEPTION_SHA256:
        raise MgenError(
            f"{file} is not the published file (SHA-256 {found[:8]}…, expected {INCEPTION_SHA256[:8]}…): remove it, and it is downloaded "
            "again"
        )
    return file


def read_inception(file: Path, name: str) -> Any:
    """torch-fidelity's network with the weights of a file, of which only tensors are read; MgenError if they don't fit it exactly."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state = {key: value.detach() for key, value in read_state_dict(file).items()}
    if odd := next((k for k, v in state.items() if v.is_complex() or not torch.isfinite(v).all()), None):
        raise MgenError(f"{file} does not hold torch-fidelity's Inception weights ({odd} holds no finite numbers)")
    # The class unpickles whatever it is given, so it gets a copy in memory of what was read safely.
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    try:
        return FeatureExtractorInceptionV3(name, ["2048", "logits_unbiased"], feature_extractor_weights_path=copy)
    except RuntimeError as error:
        text = str(error).splitlines()[:2][-1].strip()[:120]
        raise MgenError(f"{file} does not hold torch-fidelity's Inception weights ({text})") from error


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
    """The extractor "inception" (weights, resize, spatial), an embedded one (`EMBEDDED`), or an ImageClassifier's folder."""
    device = torch.device(device)
    if name in ("inception", InceptionExtractor.name):
        return InceptionExtractor(weights, device, resize=resize, spatial=spatial)
    if name in EMBEDDED:
        return CNNExtractor(embedded(name), device, name=name)
    for folder in (Path(name) / "model", Path(name)):  # of a run of mgen train, or the model itself
        if (folder / "config.json").is_file():
            return CNNExtractor(folder, device)
    raise MgenError(
        f"no extractor {name!r}: {suggestion(name, ('inception', *EMBEDDED))}, or a folder of a trained ImageClassifier"
    )


def protocol_extractor(protocol: Protocol_, *, weights: str | Path | None, device: str | torch.device) -> Extractor:
    """The extractor of a protocol; see make_extractor."""
    resize = "tensorflow" if protocol.resize == "own" else protocol.resize
    return make_extractor(protocol.extractor, weights=weights, device=device, resize=resize, spatial=protocol.spatial)
