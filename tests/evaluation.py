"""Small images, a source of them, and an extractor whose features are known: shared by the tests of the evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mgen.evaluation.extractors import Seen
from mgen.evaluation.source import Batch, Source


def pictures(count: int, seed: int = 0, side: int = 32, channels: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=draw)
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return (fine * 255).round().to(torch.uint8)


def source_of(images: torch.Tensor, labels: torch.Tensor | None = None) -> Source:
    labels = torch.full((len(images),), -1) if labels is None else labels
    return Source(
        count=len(images),
        about={"kind": "data", "data": "pictures"},
        read=lambda a, b: Batch(images=images[a:b], labels=labels[a:b]),
    )


class Images(torch.utils.data.Dataset):
    """Tensors as torch-fidelity takes them."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.images[i]


def torch_fidelity_metrics(images: Sequence[torch.Tensor], weights: Path, **metrics: Any) -> dict[str, float]:
    """Metrics of two sets of images by torch-fidelity alone."""
    import torch_fidelity

    return torch_fidelity.calculate_metrics(
        input1=Images(images[0]),
        input2=Images(images[1]),
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        **metrics,
    )


class Plain:
    """An extractor that is a fixed random projection: fast, and its features are known."""

    name, sha256, resize, channels, size = "plain", "0" * 64, "the extractor's own", 1, None
    length, spatial_length = 12, 0

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(5)
        self.matrix = torch.randn(32 * 32, 12, generator=draw) / 32
        self.classes = torch.randn(12, 10, generator=draw)
        self.calls: list[int] = []

    def __call__(self, images: torch.Tensor) -> Seen:
        self.calls.append(len(images))
        features = images.flatten(1).float() / 255 @ self.matrix
        return Seen(features, features @ self.classes)
