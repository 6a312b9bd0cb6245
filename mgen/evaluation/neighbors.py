"""Metrics of single images: precision, recall, kernel distance, and the nearest training images.

Precision and recall: Kynkäänniemi et al., "Improved Precision and Recall Metric" (arXiv 1904.06991), k = 3, by torch-fidelity, with
the same rule as ADM's evaluator (which rounds squared distances to half precision; here they are float32). Kernel distance (KID):
Bińkowski et al. (arXiv 1801.01401), polynomial kernel of degree 3, 100 subsets, by torch-fidelity.
"""

import base64
import io
import sys
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from mgen.evaluation.extractors import Extractor
from mgen.evaluation.feature_files import SHARD
from mgen.evaluation.measure import features_of, read_ahead
from mgen.evaluation.measured import Measured
from mgen.evaluation.result import NearestImages, NearImage, NearRow
from mgen.evaluation.source import Batch, Source
from mgen.pipelines.pixels import to_pil

BLOCK = 2000  # rows in a block of distances: 2,000 × 50,000 distances take 400 MB


def precision_recall(features: Tensor, reference: Tensor, *, neighbors: int) -> tuple[float, float]:
    """Share of images (N, F) inside the reference's manifold, and of reference images (M, F) inside theirs."""
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    return calculate_precision_recall_part(features, reference, neighborhood=neighbors, batch_size=BLOCK)


def kernel_distance(features: Tensor, reference: Tensor, *, size: int) -> tuple[float, float]:
    """KID: mean and standard deviation over 100 subsets of `size` images each, or of all images if there are fewer."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(size, len(features), len(reference))
    found = kid_features_to_metric(features, reference, kid_subset_size=size, rng_seed=2020, verbose=False)
    return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]


class Nearest(NamedTuple):
    """The k nearest images of a data set for n images: distances and indices (n, k), ascending."""

    distances: Tensor
    indices: Tensor


def nearest(features: Tensor, source: Source, extractor: Extractor, *, k: int, own: Tensor | None = None) -> Nearest:
    """The nearest images of a data set in feature space (Euclidean), found in one pass with the memory of a batch.

    Args:
        features: (n, F). own: index (n,) of each image in the data set, which is not its own neighbor; -1: not in it.
    """
    best, where = torch.full((len(features), k), torch.inf), torch.full((len(features), k), -1)
    ranges = [(a, min(a + SHARD, source.count)) for a in range(0, source.count, SHARD)]
    with tqdm(total=source.count, unit="img", desc="nearest images", file=sys.stderr, delay=1) as bar:
        for (start, stop), batch in zip(ranges, read_ahead(source, ranges)):
            found = torch.cdist(features, features_of(extractor, batch.images).features)
            index = torch.arange(start, stop).expand(len(features), -1)
            if own is not None:
                found = found.masked_fill(index == own[:, None], torch.inf)
            best, order = torch.cat([best, found], 1).topk(k, dim=1, largest=False)
            where = torch.cat([where, index], 1).gather(1, order)
            bar.update(stop - start)
    return Nearest(distances=best, indices=where)


def nearest_rows(
    measured: Measured, training: Source, extractor: Extractor, *, images: int = 12, k: int = 5
) -> NearestImages:
    """The nearest training images of some measured ones, for a result: a check for memorization.

    "typical" is the median distance of a training image to its nearest other one; copies are far closer.
    """
    examples, labels = (t[:: max(1, len(t) // images)][:images] for t in measured.examples())
    rows = torch.arange(min(200, training.count)) * (training.count // min(200, training.count))
    some = [training.read(int(i), int(i) + 1) for i in rows]
    own = torch.cat([torch.full((len(examples),), -1), rows])
    queries = torch.cat([extractor(examples).features, extractor(torch.cat([b.stacked() for b in some])).features])
    found = nearest(queries, training, extractor, k=k, own=own)
    wanted = sorted(set(found.indices[: len(examples)].flatten().tolist()) - {-1})
    read = {i: training.read(i, i + 1) for i in wanted}  # ascending, because an npz is a stream

    def near(image: Tensor, label: Tensor, distance: float) -> NearImage:
        return {"image": data_uri(image), "label": int(label), "distance": distance}

    def neighbor(batch: Batch, distance: float) -> NearImage:
        found, label = near(batch.stacked()[0], batch.labels[0], distance), int(batch.labels[0])
        if (
            0 <= label < len(training.class_names)
        ):  # ids of the training data may mean other classes than those of the images
            found["name"] = training.class_names[label]
        return found

    out: list[NearRow] = []
    for image, label, indices, distances in zip(examples, labels, found.indices.tolist(), found.distances.tolist()):
        away = [(read[i], d) for i, d in zip(indices, distances) if i >= 0]
        neighbors = [neighbor(batch, d) for batch, d in away]
        out.append({**near(image, label, neighbors[0]["distance"]), "neighbors": neighbors})
    return {
        "data": training.title,
        "count": training.count,
        "rows": out,
        "typical": found.distances[len(examples) :, 0].median().item(),
        "note": f"typical: the median over {len(rows)} training images of the distance to the nearest other one",
    }


def data_uri(image: Tensor) -> str:
    """A PNG of a uint8 image (C, H, W) as a data URI."""
    stream = io.BytesIO()
    to_pil(image[None])[0].save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
