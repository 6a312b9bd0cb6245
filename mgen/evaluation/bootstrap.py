"""How much metrics would vary with other images of the same model: the bootstrap (Efron, 1979) over features.

A replicate samples N images with replacement and measures them again. Its Fréchet distance is larger than that of the images
themselves (repeated images reduce the rank of the covariance), so only the spread of the replicates is reported.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mgen.evaluation.frechet import distance
from mgen.evaluation.measured import Measured
from mgen.evaluation.scores import class_score
from mgen.evaluation.statistics import FeatureSums
from mgen.utils import seeds

SEED = 0
# Kind of features, mean (F,) and covariance (F, F).
Gaussian = tuple[str, np.ndarray, np.ndarray]


def multiplicities(count: int, replicate: int, seed: int) -> Tensor:
    """How often each of `count` images is sampled, (N,), in one replicate."""
    chosen = torch.randint(count, (count,), generator=seeds.generator(seed, "bootstrap", replicate))
    return torch.bincount(chosen, minlength=count)


def weighted_sums(blocks: Iterable[Tensor], weights: Tensor) -> FeatureSums:
    """Sums of features (n, F) in which image i counts weights[i] times."""
    sums, row = None, 0
    for block in blocks:
        own = weights[row : row + len(block)].to(block.dtype)
        sums, scaled = sums or FeatureSums(block.shape[1]), block * own[:, None]
        # float32 within a block is precise enough for a spread; adding blocks in float64 costs nothing.
        sums.count += int(own.sum())
        sums.sum += scaled.sum(0).double()
        sums.outer += (scaled.T @ block).double()
        row += len(block)
    assert sums is not None
    return sums


def deviations(
    measured: Measured,
    *,
    references: Mapping[str, Gaussian],
    score: tuple[str, Tensor],
    means: Mapping[str, Tensor],
    replicates: int,
) -> dict[str, float]:
    """Standard deviations of metrics over replicates.

    Args:
        references: Fréchet distance → kind of features, mean and covariance of the reference. score: name and splits of the classifier
            score. means: metric → a number per image (N,), of which it is the mean.
    """
    rows: list[dict[str, float]] = []
    for replicate in tqdm(range(replicates), desc="bootstrap", unit="replicate", leave=False, delay=1):
        weights = multiplicities(measured.count, replicate, SEED)
        row: dict[str, float] = {}
        for name, (kind, mean, cov) in references.items():
            row[name] = distance(*weighted_sums(measured.blocks(kind), weights).finish(), mean, cov)
        row[score[0]] = class_score(measured.blocks("logits"), score[1], weights)[0]
        for name, column in means.items():
            row[name] = (column.double() @ weights.double()).item() / measured.count
        rows.append(row)
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64).std().item() for name in rows[0]}
