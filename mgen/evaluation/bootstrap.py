"""How much metrics would move with other images of the same model: the bootstrap (Efron, 1979) over features.

A replicate draws N images with replacement and measures them again. Its Fréchet distance is larger than that of the images themselves
(repeated images leave the covariance fewer directions), so only the spread of the replicates is reported.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mgen.evaluation.frechet import frechet_distance
from mgen.evaluation.measure import Measured
from mgen.evaluation.scores import class_score
from mgen.evaluation.statistics import FeatureSums
from mgen.utils import seeds


def multiplicities(count: int, replicate: int, seed: int) -> Tensor:
    """How often each of `count` images is drawn, (N,), in one replicate."""
    chosen = torch.randint(count, (count,), generator=seeds.generator(seed, "bootstrap", replicate))
    return torch.bincount(chosen, minlength=count)


def weighted_sums(blocks: Iterable[Tensor], weights: Tensor) -> FeatureSums:
    """Sums of features (n, F) in which image i counts weights[i] times."""
    sums, row = None, 0
    for block in blocks:
        own = weights[row : row + len(block)].to(block.dtype)
        sums = sums or FeatureSums(block.shape[1])
        scaled = block * own[:, None]
        # The spread of replicates needs no float64 within a block; between blocks it costs nothing.
        sums.count += int(own.sum())
        sums.sum += scaled.sum(0).double()
        sums.outer += (scaled.T @ block).double()
        row += len(block)
    assert sums is not None
    return sums


def deviations(
    measured: Measured,
    *,
    references: dict[str, tuple[str, np.ndarray, np.ndarray]],
    score: tuple[str, Tensor] | None,
    means: dict[str, Tensor],
    replicates: int,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Standard deviation over replicates.

    Args:
        references: metric → kind of features, mean and covariance to be distant from. score: metric and splits of the classifier score.
        means: metric → a number of each image (N,), whose mean it is.
    """
    found: dict[str, list[float]] = {}
    for replicate in tqdm(range(replicates), desc="bootstrap", unit="replicate", disable=not progress, leave=False):
        weights = multiplicities(measured.count, replicate, seed)
        for name, (kind, mean, cov) in references.items():
            sums = weighted_sums(measured.blocks(kind), weights)
            found.setdefault(name, []).append(frechet_distance(*sums.finish(), mean, cov))
        if score is not None:
            found.setdefault(score[0], []).append(class_score(measured.blocks("logits"), score[1], weights)[0])
        for name, column in means.items():
            found.setdefault(name, []).append((column.double() @ weights.double()).item() / measured.count)
    return {name: _spread(values) for name, values in found.items()}


def _spread(values: Sequence[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).std().item()
