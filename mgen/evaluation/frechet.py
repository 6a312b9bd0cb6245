"""Fréchet distance between two Gaussians (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", arXiv 1706.08500).

d² = |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½). The trace of the root is computed as the sum of the roots of the eigenvalues of
Σ₁^½ Σ₂ Σ₁^½, which is symmetric, so singular covariances give neither complex numbers nor NaN. It agrees with the general matrix
root to 1e-9 (tests/system/test_evaluation.py).
"""

import numpy as np
from scipy import linalg

from mgen.utils.errors import MgenError, shown

LARGEST = 1e12  # of a feature; squares and sums of products stay far from overflow


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """d² of two Gaussians with means (F,) and covariances (F, F); 0 for equal ones.

    Raises:
        MgenError: the feature lengths differ, or the values are no means and covariances.
    """
    given = {"the first": (mean1, cov1), "the second": (mean2, cov2)}
    for name, (mean, cov) in given.items():
        if not isinstance(mean, np.ndarray) or not isinstance(cov, np.ndarray):
            raise MgenError(
                f"{name} mean and covariance must be numpy arrays, got {type(mean).__name__}, {type(cov).__name__}"
            )
    if mean1.shape != mean2.shape or cov1.shape != cov2.shape:
        raise MgenError(
            f"features of shape {shown(mean1.shape)} cannot be compared with a reference of shape {shown(mean2.shape)}, which another "
            "extractor made"
        )
    for name, (mean, cov) in given.items():
        check_gaussian(mean, cov, f"{name} mean", f"{name} covariance")
    return distance(mean1, cov1, mean2, cov2)


def distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """The same without checks, for loops over Gaussians of known origin."""
    values, vectors = linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ cov2 @ root
    eigenvalues = linalg.eigvalsh((product + product.T) / 2).clip(min=0)
    found = np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.sqrt(eigenvalues).sum()
    return float(max(found, 0.0))


def check_gaussian(mean: np.ndarray, cov: np.ndarray, mean_name: str, cov_name: str) -> None:
    """Raise MgenError unless mean (F,) and covariance (F, F) are those of a Gaussian, up to rounding."""
    if mean.ndim != 1 or not len(mean) or cov.shape != (len(mean), len(mean)):
        raise MgenError(
            f"{mean_name} has shape {shown(mean.shape)} and {cov_name} {shown(cov.shape)}: expected (F,) and (F, F)"
        )
    check_values(mean, mean_name)
    check_values(cov, cov_name, LARGEST**2)
    # Rounding makes the eigenvalues of a singular covariance slightly negative, half precision more so; those of constant features
    # are nothing but rounding, relative to the squared mean.
    try:
        lowest, highest = np.linalg.eigvalsh(cov)[[0, -1]]
    except np.linalg.LinAlgError as error:
        raise MgenError(f"{cov_name} is no covariance: {error}") from error
    rounding = 1e-3 * max(highest, 0.0) + 1e-9 * (1 + float(np.square(mean, dtype=np.float64).max()))
    if lowest < -rounding or not np.allclose(cov, cov.T, atol=rounding):
        raise MgenError(f"{cov_name} is no covariance: it is not symmetric or has negative eigenvalues")


def check_values(values: np.ndarray, name: str, largest: float = LARGEST) -> None:
    """Raise MgenError unless all are real numbers, finite and of a size that features can have."""
    if values.dtype.kind not in "fiu":
        raise MgenError(f"{name} is of type {values.dtype}: expected real numbers")
    if not np.isfinite(values).all():
        raise MgenError(f"{name} holds NaN or infinity: make it again")
    if (top := float(np.abs(values).max(initial=0))) > largest:
        raise MgenError(f"{name} holds {top:g}: features are not that large, at most {largest:g}; make it again")
