"""Fréchet distance between two Gaussians (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", arXiv 1706.08500).

d² = |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½). The trace of the root is computed as the sum of the roots of the eigenvalues of
Σ₁^½ Σ₂ Σ₁^½, which is symmetric, so singular covariances give neither complex numbers nor NaN. It agrees with the general matrix
root to 1e-9 (tests/system/test_evaluation.py).
"""

import numpy as np
from scipy import linalg

from mgen.utils.errors import MgenError


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """d² of two Gaussians with means (F,) and covariances (F, F); 0 for equal ones.

    Raises:
        MgenError: the feature lengths differ, or values are not finite.
    """
    if mean1.shape != mean2.shape or cov1.shape != cov2.shape:
        raise MgenError(
            f"features of length {len(mean1)} cannot be compared with a reference of length {len(mean2)}, made by another extractor"
        )
    if not all(np.isfinite(x).all() for x in (mean1, cov1, mean2, cov2)):
        raise MgenError("the features or the reference hold NaN or infinity")
    values, vectors = linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ cov2 @ root
    eigenvalues = linalg.eigvalsh((product + product.T) / 2).clip(min=0)
    distance = np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.sqrt(eigenvalues).sum()
    return float(max(distance, 0.0))
