"""Mean and covariance of features, streamed in float64, merged by addition, and kept in files that say what they are of."""

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mgen.errors import MgenError
from mgen.evaluation.extractors import Extractor
from mgen.files import file_sha256, read_tensors, write_tensors

# References inside the package, by name → the split of Fashion-MNIST whose statistics they are.
BUILTIN = {"fmnist-train": "train", "fmnist-test": "test"}


class FeatureSums:
    """Running sums of features (B, F) in float64; `+` merges two of them."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.sum = torch.zeros(dim, dtype=torch.float64)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        x = features.double()
        self.count += len(x)
        self.sum += x.sum(0)
        self.outer += x.T @ x

    def __add__(self, other: "FeatureSums") -> "FeatureSums":
        out = FeatureSums(len(self.sum))
        out.count, out.sum, out.outer = self.count + other.count, self.sum + other.sum, self.outer + other.outer
        return out

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (F,) and unbiased covariance (F, F); MgenError below two images."""
        if self.count < 2:
            raise MgenError(f"{self.count} image(s) have no covariance: at least 2 are needed")
        mean = self.sum / self.count
        cov = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return mean.numpy(), cov.numpy()


@dataclass(kw_only=True)
class Reference:
    """What images are compared with: statistics, and where they come from.

    count is None for files that do not say.
    """

    mean: np.ndarray
    cov: np.ndarray
    name: str
    count: int | None
    sha256: str | None = None


def save_statistics(path: str | Path, sums: FeatureSums, extractor: Extractor, source: str) -> None:
    """Write mean and covariance with the extractor's name and hash, the count and the source."""
    mean, cov = sums.finish()
    about = {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "count": str(sums.count),
        "source": source,
    }
    write_tensors(path, {"mu": torch.from_numpy(mean), "sigma": torch.from_numpy(cov)}, about)


def load_statistics(path: str | Path, extractor: Extractor) -> Reference:
    """Statistics from .safetensors (made by mgen), .npz (ADM, U-ViT, MAR: keys mu and sigma) or .pt.

    Raises:
        MgenError: unreadable, of another extractor, or of another feature length.
    """
    path = Path(path)
    about: dict[str, str] = {}
    if path.suffix == ".safetensors":
        tensors, about = read_tensors(path)
        arrays = {k: v.numpy() for k, v in tensors.items()}
    else:
        arrays = _read_arrays(path)
    if "mu" not in arrays or "sigma" not in arrays:
        raise MgenError(f"{path} has no mu and sigma, only {', '.join(sorted(arrays)) or 'nothing'}")
    if about.get("extractor_sha256", extractor.sha256) != extractor.sha256:
        raise MgenError(
            f"{path} was made with extractor {about['extractor']!r} of other weights than {extractor.name!r}: use the same one"
        )
    length = extractor.length
    if arrays["mu"].shape != (length,) or arrays["sigma"].shape != (length, length):
        raise MgenError(
            f"{path} holds statistics of {arrays['mu'].shape[-1:]} features, {extractor.name} has {length}: another extractor made it"
        )
    mean, cov = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
    count = int(about["count"]) if "count" in about else None
    return Reference(
        mean=mean,
        cov=cov,
        name=about.get("source", path.name),
        count=count,
        sha256=file_sha256(path),
    )


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise MgenError(f"no such statistics file: {path}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {k: file[k] for k in file.files if k in ("mu", "sigma")}
        data = torch.load(path, map_location="cpu", weights_only=True)
        return {k: torch.as_tensor(v).numpy() for k, v in data.items()}
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,
        AttributeError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        text = str(error).splitlines()[0][:120]
        raise MgenError(
            f"cannot read statistics from {path} ({text}): expected .safetensors, .npz or .pt with mu and sigma"
        ) from error


def builtin_file(name: str) -> Path:
    """File of a built-in reference: statistics in the features of fmnist-cnn."""
    from mgen._folders import embedded

    return embedded("fmnist-cnn") / f"statistics-{BUILTIN[name]}.safetensors"
