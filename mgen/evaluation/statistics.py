"""Mean and covariance of features: streamed in float64, stored in files that describe themselves."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mgen.evaluation.extractors import Extractor
from mgen.evaluation.frechet import check_gaussian, check_values
from mgen.evaluation.protocols import RESIZES
from mgen.evaluation.result import Facts
from mgen.evaluation.statistics_file import About, Shape, Stored, open_statistics
from mgen.utils.errors import MgenError
from mgen.utils.files import atomic_path, write_tensors
from mgen.utils.folders import embedded
from mgen.utils.reading import file_sha256

# Built-in references → the split of Fashion-MNIST they were computed on.
BUILTIN = {"fmnist-train": "train", "fmnist-test": "test"}


class FeatureSums:
    """Running sums of features (B, F) in float64."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.sum = torch.zeros(dim, dtype=torch.float64)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        x = features.double()
        self.count += len(x)
        self.sum += x.sum(0)
        self.outer += x.T @ x

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (F,) and unbiased covariance (F, F); MgenError for fewer than two images."""
        if self.count < 2:
            raise MgenError(f"a covariance needs at least 2 images, got {self.count}")
        mean = self.sum / self.count
        cov = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return mean.numpy(), cov.numpy()


def sha256_of(mean: np.ndarray, cov: np.ndarray) -> str:
    """A hash of statistics that are not stored in a file."""
    return hashlib.sha256(mean.tobytes() + cov.tobytes()).hexdigest()


@dataclass(kw_only=True)
class Reference:
    """What images are compared with, and where it comes from.

    Attributes:
        mean, cov: of features, (F,) and (F, F) float64. count: number of images, None if the file does not state it.
        spatial: mean and covariance of spatial features, for sFID. features: of single images (M, F), for precision, recall and the
            kernel distance. prepared: how the images were resized, "" if they were not. described: whether the file states its network
            and resize.
    """

    mean: np.ndarray
    cov: np.ndarray
    name: str
    count: int | None
    sha256: str | None = None
    spatial: tuple[np.ndarray, np.ndarray] | None = None
    features: Tensor | None = None
    prepared: str = ""
    described: bool = True

    def describe(self) -> Facts:
        """The reference as a result states it."""
        facts: Facts = {key: getattr(self, key) for key in ("name", "count", "sha256")}
        return facts | {"features": None if self.features is None else len(self.features), "prepared": self.prepared}


def save_statistics(
    path: str | Path,
    sums: FeatureSums,
    extractor: Extractor,
    source: str,
    *,
    spatial: FeatureSums | None = None,
    features: Tensor | None = None,
    prepared: str = "",
) -> None:
    """Write mean and covariance with the extractor's name and hash, the resize, the count and the source.

    A name ending in .npz selects the layout of other tools: mu, sigma (and mu_s, sigma_s) in float64, and the rest as text.
    """
    mean, cov = sums.finish()
    arrays = {"mu": mean, "sigma": cov}
    if spatial is not None:
        arrays["mu_s"], arrays["sigma_s"] = spatial.finish()
    about = {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "resize": extractor.resize,
        "count": str(sums.count),
        "source": source,
        "prepared": prepared,
    }
    if Path(path).suffix == ".npz":
        with atomic_path(path) as temporary:
            np.savez(temporary, **arrays, **{key: np.array(value) for key, value in about.items()})  # type: ignore[arg-type]
        return
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    write_tensors(path, tensors if features is None else {**tensors, "features": features}, about)


def check_statistics_name(path: str | Path, option: str) -> None:
    """Raise MgenError unless `save_statistics` can write a file of this name."""
    if Path(path).suffix not in (".safetensors", ".npz"):
        raise MgenError(f"{option} {path}: the name must end in .safetensors or .npz")


def load_statistics(path: str | Path, extractor: Extractor) -> Reference:
    """Statistics from .safetensors (made by mgen), .npz (ADM, clean-fid, pytorch-fid, U-ViT, MAR) or .pt (torch-fidelity).

    Keys: mu, sigma, of any float type; mu_s, sigma_s; features. ADM's file of the training set also holds 10,000 images, which
    `mgen.evaluation.references.find_reference` measures when they are needed.

    Raises:
        MgenError: the file is unreadable, made with another extractor, resize or feature length, or its numbers are no statistics.
    """
    path = Path(path)
    stored = open_statistics(path)
    _check_origin(path, stored, extractor)
    f, s = extractor.length, extractor.spatial_length
    shapes: dict[str, Shape] = {"mu": (f,), "sigma": (f, f)}
    with_spatial = bool(s) and {"mu_s", "sigma_s"} <= set(stored.names)
    if with_spatial:
        shapes |= {"mu_s": (s,), "sigma_s": (s, s)}
    if "features" in stored.names:
        shapes["features"] = (None, f)
    arrays, about = stored.read(shapes), stored.about
    mean, cov = _gaussian(arrays, "", path)
    features = arrays.get("features")
    if features is not None:
        check_values(features, f"{path}: features")
    return Reference(
        mean=mean,
        cov=cov,
        name=about.source or path.name,
        count=about.count,
        sha256=file_sha256(path),
        spatial=_gaussian(arrays, "_s", path) if with_spatial else None,
        features=None if features is None else torch.from_numpy(features.astype(np.float32)),
        prepared=about.prepared,
        described=about.resize is not None,
    )


def made_with(name: str, extractor: str) -> bool:
    """Whether a file of statistics says that the extractor of this name made it; built-in references are of fmnist-cnn."""
    if name in BUILTIN:
        return extractor == "fmnist-cnn"
    path = Path(name)
    if not path.is_file():
        return False
    try:
        return open_statistics(path).about.extractor == extractor
    except MgenError:  # loading it will tell
        return False


def _check_origin(path: Path, stored: Stored, extractor: Extractor) -> None:
    """Raise MgenError for statistics that are incomplete, or that another extractor or resize made."""
    about, names = stored.about, stored.names
    if "mu" not in names or "sigma" not in names:
        raise MgenError(f"{path} has no mu and sigma, only {', '.join(sorted(names)) or 'nothing'}")
    if about.extractor_sha256 not in (None, extractor.sha256):
        raise MgenError(
            f"{path} was made with extractor {about.extractor!r}, not with the weights of {extractor.name!r}: use the same one"
        )
    if about.resize not in (None, extractor.resize):
        raise MgenError(
            f"{path} was made with the resize {about.resize!r}, but this protocol uses {extractor.resize!r}: make statistics for it "
            "with mgen stats"
        )
    if "mu_s" in names and about == About() and extractor.resize not in (RESIZES["tensorflow"], RESIZES["own"]):
        raise MgenError(
            f"{path} has mu_s, so ADM's evaluator made it, with {RESIZES['tensorflow']}, not with {extractor.resize}: use --protocol adm "
            "or torch-fidelity, or make statistics for this protocol with mgen stats"
        )


def _gaussian(arrays: dict[str, np.ndarray], ending: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    mean, cov = arrays["mu" + ending].astype(np.float64), arrays["sigma" + ending].astype(np.float64)
    check_gaussian(mean, cov, f"{path}: mu{ending}", f"{path}: sigma{ending}")
    return mean, cov


def builtin_file(name: str) -> Path:
    """File of a built-in reference, in the features of fmnist-cnn."""
    return embedded("fmnist-cnn") / f"statistics-{BUILTIN[name]}.safetensors"
