"""Mean and covariance of features: streamed in float64, stored in files that describe themselves."""

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgen.evaluation.extractors import Extractor
from mgen.evaluation.npz import ERRORS
from mgen.evaluation.protocols import RESIZES
from mgen.evaluation.result import Facts
from mgen.utils.errors import MgenError
from mgen.utils.files import atomic_path, file_sha256, read_tensors, write_tensors
from mgen.utils.folders import embedded

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
        MgenError: the file is unreadable, or made with another extractor, resize or feature length.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors, about = read_tensors(path)
        arrays = {k: v.double().numpy() for k, v in tensors.items() if k in KEYS}
    else:
        arrays = _read_arrays(path)
        own = {k: str(arrays.pop(k)) for k in ABOUT if k in arrays}
        about = own if "extractor_sha256" in own else {}  # other tools may use such names for something else
    _check_origin(path, arrays, about, extractor)
    mean, cov = _gaussian(arrays, "", extractor.length, path, extractor)
    spatial = None
    if "mu_s" in arrays and "sigma_s" in arrays and extractor.spatial_length:
        spatial = _gaussian(arrays, "_s", extractor.spatial_length, path, extractor)
    features = torch.from_numpy(arrays["features"]).float() if "features" in arrays else None
    if features is not None and features.shape[1:] != (extractor.length,):
        raise MgenError(
            f"{path} holds features of shape {tuple(features.shape)}, but {extractor.name} gives {extractor.length} per image"
        )
    return Reference(
        mean=mean,
        cov=cov,
        name=about.get("source", path.name),
        count=int(about["count"]) if about.get("count", "").isdigit() else None,
        sha256=file_sha256(path),
        spatial=spatial,
        features=features,
        prepared=about.get("prepared", ""),
        described="resize" in about,
    )


def _check_origin(path: Path, arrays: dict[str, np.ndarray], about: dict[str, str], extractor: Extractor) -> None:
    """Raise MgenError for statistics that are incomplete, or that another extractor or resize made."""
    if "mu" not in arrays or "sigma" not in arrays:
        raise MgenError(f"{path} has no mu and sigma, only {', '.join(sorted(arrays)) or 'nothing'}")
    if about.get("extractor_sha256", extractor.sha256) != extractor.sha256:
        raise MgenError(
            f"{path} was made with extractor {about['extractor']!r}, not with the weights of {extractor.name!r}: use the same one"
        )
    if about.get("resize", extractor.resize) != extractor.resize:
        raise MgenError(
            f"{path} was made with the resize {about['resize']!r}, but this protocol uses {extractor.resize!r}: make statistics for it "
            "with mgen stats"
        )
    if "mu_s" in arrays and not about and extractor.resize not in (RESIZES["tensorflow"], RESIZES["own"]):
        raise MgenError(
            f"{path} has mu_s, so ADM's evaluator made it, with {RESIZES['tensorflow']}, not with {extractor.resize}: use --protocol adm "
            "or torch-fidelity, or make statistics for this protocol with mgen stats"
        )


def _gaussian(
    arrays: dict[str, np.ndarray], ending: str, length: int, path: Path, extractor: Extractor
) -> tuple[np.ndarray, np.ndarray]:
    mean, cov = arrays["mu" + ending], arrays["sigma" + ending]
    if mean.dtype.kind not in "fiu" or cov.dtype.kind not in "fiu":
        raise MgenError(f"{path}: mu{ending} and sigma{ending} are {mean.dtype} and {cov.dtype}, expected numbers")
    mean, cov = mean.astype(np.float64), cov.astype(np.float64)
    if mean.shape != (length,) or cov.shape != (length, length):
        raise MgenError(
            f"{path} holds statistics of {mean.shape[-1:]} features, but {extractor.name} has {length}: another extractor made it"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise MgenError(f"{path}: mu{ending} or sigma{ending} holds NaN or infinity: make the file again")
    # Rounding makes the eigenvalues of a singular covariance slightly negative, half precision more so.
    lowest, highest = np.linalg.eigvalsh(cov)[[0, -1]]
    if lowest < -1e-3 * max(highest, 0.0) or not np.allclose(cov, cov.T, atol=1e-3 * abs(highest)):
        raise MgenError(f"{path}: sigma{ending} is no covariance: it is not symmetric or has negative eigenvalues")
    return mean, cov


_NUMPY: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8"))]
# The name of the module of _reconstruct depends on numpy's version.
_NUMPY += [(np.zeros(0).__reduce__()[0], f"{name}.multiarray._reconstruct") for name in ("numpy.core", "numpy._core")]
KEYS = ("mu", "sigma", "mu_s", "sigma_s", "features")
ABOUT = ("extractor", "extractor_sha256", "resize", "count", "source", "prepared")  # how our files describe themselves


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise MgenError(f"no such statistics file: {path}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {k: file[k] for k in file.files if k in (*KEYS, *ABOUT)}
        # torch-fidelity's caches hold numpy arrays; nothing else is unpickled.
        with torch.serialization.safe_globals(_NUMPY):
            data = torch.load(path, map_location="cpu", weights_only=True)
        return {k: torch.as_tensor(v).double().numpy() for k, v in data.items() if k in KEYS}
    except (*ERRORS, RuntimeError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        text = str(error).splitlines()[0][:120]
        raise MgenError(
            f"cannot read statistics from {path} ({text}): expected .safetensors, .npz or .pt with mu and sigma"
        ) from error


def builtin_file(name: str) -> Path:
    """File of a built-in reference, in the features of fmnist-cnn."""
    return embedded("fmnist-cnn") / f"statistics-{BUILTIN[name]}.safetensors"
