"""Named protocols: everything besides the images that determines a metric.

The same images give another value with another resize, other splits of the score, or another rounding to bytes. A protocol fixes
these. A result states its name and an id, a hash of everything that determines the numbers; only results with equal ids are compared.

| protocol | network and resize | score | also measured | used by |
|---|---|---|---|---|
| torch-fidelity | Inception, TensorFlow 1's bilinear | 10 shuffled splits | KID, precision, recall | MAR, its successors, MAGE, xAR |
| adm | the same | splits of 5,000 in file order, mean only | sFID, precision, recall | ADM's evaluator: LlamaGen, Hita, TiTok, RAR |
| clean | Inception, antialiased bicubic | 10 shuffled splits | KID | clean-fid (Parmar et al., arXiv 2104.11222) |
| halton | the same, truncated to bytes | 10 shuffled splits | precision, recall | Halton-MaskGIT |
| reconstruction | as torch-fidelity | 10 shuffled splits | PSNR, SSIM, optionally LPIPS | tokenizers, against the originals |
| fmnist-cnn | the embedded extractor | 10 shuffled splits | KID, precision, recall | this project |
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Literal, cast

from mgen.evaluation.result import Facts
from mgen.utils.errors import MgenError, check_choice

PUBLISHED = 50000  # images behind published metrics
Resize = Literal["tensorflow", "clean", "clean-uint8", "own"]
Score = Literal["shuffled", "file order"]
Quantization = Literal["round", "half-up", "truncate"]
RESIZES: dict[str, str] = {
    "tensorflow": "TensorFlow 1 bilinear to 299 px inside the network",
    "clean": "antialiased bicubic to 299 px in floats",
    "clean-uint8": "antialiased bicubic to 299 px, truncated to bytes",
    "own": "the extractor's own",
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How images are measured.

    Attributes:
        extractor: network of the features. resize: how images reach its size.
        score: splits of the classifier score: "shuffled", `splits` equal ones in an order shuffled from seed 2020 (torch-fidelity), or
            "file order", consecutive ones of `splits` images each (ADM), where sorting the images by class changes the score.
        spatial: also the distance in spatial features (sFID). neighbors: k of precision and recall, 0: neither.
        kid: images in each of the 100 subsets of the kernel distance, 0: none.
        quantization: how sampled images become bytes, see mgen.pipelines.pixels.to_uint8; stored images are left as they are.
        image_size: side in pixels to resize sampled images to first; None: as sampled.
    """

    name: str
    extractor: str = "inception"
    resize: Resize = "tensorflow"
    score: Score = "shuffled"
    splits: int = 10
    spatial: bool = False
    neighbors: int = 3
    kid: int = 0
    quantization: Quantization = "round"
    image_size: int | None = None

    @property
    def id(self) -> str:
        """Eight hexadecimal digits of a hash of what determines the numbers, without the name."""
        own = {key: value for key, value in asdict(self).items() if key != "name"}
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]

    def describe(self) -> Facts:
        """The protocol as a result states it."""
        rule = f"{self.splits} splits, shuffled from seed 2020" if self.score == "shuffled" else None
        return {
            "name": self.name,
            "id": self.id,
            "extractor": self.extractor,
            "resize": RESIZES[self.resize],
            "quantization": self.quantization,
            "image_size": self.image_size,
            "score": rule or f"consecutive splits of {self.splits} images in file order",
            "neighbors": self.neighbors or None,
            "kid_subsets": f"100 of {self.kid} images, seed 2020" if self.kid else None,
            "count": PUBLISHED,
        }


_NAMED = (
    Protocol(name="torch-fidelity", kid=1000),
    Protocol(name="adm", score="file order", splits=5000, spatial=True),
    Protocol(name="clean", resize="clean", neighbors=0, kid=1000),
    Protocol(name="halton", resize="clean-uint8"),
    Protocol(name="reconstruction", neighbors=0),
    Protocol(name="fmnist-cnn", extractor="fmnist-cnn", resize="own", kid=1000),
)
PROTOCOLS = {protocol.name: protocol for protocol in _NAMED}


def find_protocol(
    name: str | None, *, extractor: str | None = None, image_size: int | None = None, quantization: str | None = None
) -> Protocol:
    """The protocol of this name, or the one that an extractor implies.

    Another extractor makes the protocol "custom", which has no published counterpart. Image size and quantization, which papers choose
    differently under one protocol, change the id but not the name.

    Raises:
        MgenError: the name is unknown, or the extractor contradicts the protocol.
    """
    if extractor == "inception-v3-compat":
        extractor = "inception"
    if name is not None:
        found = PROTOCOLS[check_choice("--protocol", name, PROTOCOLS)]
        if extractor is not None and extractor != found.extractor:
            raise MgenError(
                f"--protocol {name} uses the features of {found.extractor}, not of {extractor}: leave one of the two options out"
            )
    elif extractor == "inception":
        found = PROTOCOLS["torch-fidelity"]
    elif extractor in (None, "fmnist-cnn"):
        found = PROTOCOLS["fmnist-cnn"]
    else:
        found = replace(PROTOCOLS["fmnist-cnn"], name="custom", extractor=str(extractor))
    return replace(found, image_size=image_size, quantization=cast(Quantization, quantization or "round"))


def check_weights(protocol: Protocol, inception_weights: object) -> None:
    """Raise MgenError for Inception weights that the protocol doesn't use."""
    if inception_weights is not None and protocol.extractor != "inception":
        raise MgenError(
            f"--inception-weights has no effect with the features of {protocol.extractor}: leave it out, or choose a --protocol with "
            "Inception"
        )
