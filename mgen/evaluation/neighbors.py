"""What rests on distances between single images: precision, recall, kernel distance, and the nearest training images.

Precision and recall: Kynkäänniemi et al., "Improved Precision and Recall Metric" (arXiv 1904.06991), k = 3, by torch-fidelity, whose
rule is that of ADM's evaluator (which rounds squared distances to half precision; here they are float32). Kernel distance (KID):
Bińkowski et al. (arXiv 1801.01401), polynomial kernel of degree 3, 100 subsets, by torch-fidelity.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mgen.evaluation.extractors import Extractor
from mgen.evaluation.measure import SHARD, read_ahead
from mgen.evaluation.sources import Source

BLOCK = 2000  # rows of a block of distances: 2,000 × 50,000 of them take 400 MB


def precision_recall(features: Tensor, reference: Tensor, *, neighbors: int) -> tuple[float, float]:
    """Share of images (N, F) within the reference's manifold, and of reference images (M, F) within theirs."""
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    return calculate_precision_recall_part(features, reference, neighborhood=neighbors, batch_size=BLOCK)


def kernel_distance(features: Tensor, reference: Tensor, *, size: int) -> tuple[float, float]:
    """KID as mean and standard deviation over 100 subsets of `size` images each (fewer if there are fewer images)."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(size, len(features), len(reference))
    found = kid_features_to_metric(features, reference, kid_subset_size=size, rng_seed=2020, verbose=False)
    return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]


@dataclass(kw_only=True)
class Nearest:
    """For n images the k nearest of a data set: distances and indices (n, k), ascending."""

    distances: Tensor
    indices: Tensor


def nearest(
    features: Tensor, source: Source, extractor: Extractor, *, k: int, own: Tensor | None = None, progress: bool = True
) -> Nearest:
    """The nearest images of a data set in feature space (Euclidean), found in one pass and the memory of a batch.

    Args:
        features: (n, F). own: index of each of them in the data set (n,), which does not count as its neighbor; -1: none.
    """
    import sys

    from tqdm import tqdm

    far = torch.full((len(features), k), torch.inf)
    best, where = far, torch.full((len(features), k), -1)
    ranges = [(a, min(a + SHARD, source.count)) for a in range(0, source.count, SHARD)]
    with tqdm(total=source.count, unit="img", desc="nearest images", file=sys.stderr, disable=not progress) as bar:
        for (start, stop), batch in zip(ranges, read_ahead(source, ranges)):
            found = torch.cdist(features, extractor(batch.images).features)
            index = torch.arange(start, stop).expand(len(features), -1)
            if own is not None:
                found = found.masked_fill(index == own[:, None], torch.inf)
            best, order = torch.cat([best, found], 1).topk(k, dim=1, largest=False)
            where = torch.cat([where, index], 1).gather(1, order)
            bar.update(stop - start)
    return Nearest(distances=best, indices=where)
