"""The classifier score exp E KL(p(y|x) ‖ p(y)) of Salimans et al. (arXiv 1606.03498), the Inception Score for Inception's logits, streamed.

The score of a split needs only its mean prediction and its mean entropy, so single images need not be kept. There are two rules for
the splits: torch-fidelity's (ten equal splits of shuffled images) and that of ADM's evaluator (splits of 5,000 in file order; if the
images are sorted by class, every split has few classes and the score is low).
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from mgen.evaluation.protocols import Protocol

SEED = 2020  # torch-fidelity's


def split_of(count: int, protocol: Protocol) -> Tensor:
    """The split (N,) of every image, by the protocol's rule."""
    rank = np.arange(count)
    if protocol.score == "file order":
        return torch.from_numpy(rank // protocol.splits)
    splits = min(protocol.splits, count)
    edges = np.arange(1, splits) * count // splits
    out = np.empty(count, np.int64)
    out[np.random.RandomState(SEED).permutation(count)] = np.searchsorted(edges, rank, side="right")
    return torch.from_numpy(out)


def class_score(blocks: Iterable[Tensor], splits: Tensor, weights: Tensor | None = None) -> tuple[float, float]:
    """Mean and standard deviation over the splits.

    Args:
        blocks: logits (n, K), all N rows in order. splits: of each image (N,). weights: how often each image counts (N,); None: once.
    """
    number = int(splits.max()) + 1
    sums: Tensor | None = None
    entropy, size = torch.zeros(number, dtype=torch.float64), torch.zeros(number, dtype=torch.float64)
    row = 0
    for logits in blocks:
        own = splits[row : row + len(logits)]
        times = torch.ones(len(own)).double() if weights is None else weights[row : row + len(logits)].double()
        p = logits.double().softmax(1)
        if sums is None:
            sums = torch.zeros(number, p.shape[1], dtype=torch.float64)
        sums.index_add_(0, own, p * times[:, None])
        entropy.index_add_(0, own, torch.special.entr(p).sum(1) * times)
        size.index_add_(0, own, times)
        row += len(logits)
    assert sums is not None
    filled = size > 0  # weights may leave a split empty
    mean = sums[filled] / size[filled, None]
    scores = (torch.special.entr(mean).sum(1) - entropy[filled] / size[filled]).exp()
    return scores.mean().item(), scores.std(correction=0).item()
