"""One evaluation: images through an extractor, once, into statistics, scores and a result that says how it was made."""

import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mgen.errors import MgenError
from mgen.evaluation.extractors import Extractor, InceptionExtractor
from mgen.evaluation.frechet import frechet_distance
from mgen.evaluation.sources import Source
from mgen.evaluation.statistics import FeatureSums, Reference

IS_SPLITS, IS_SEED = 10, 2020  # torch-fidelity's defaults


@dataclass(kw_only=True)
class Measured:
    """What one pass over the images leaves: sums of features, logits (N, K), labels (N,), the judge's hits, some images."""

    sums: FeatureSums
    logits: Tensor
    labels: Tensor
    hits: Tensor | None
    examples: Tensor
    example_labels: Tensor


def measure(
    source: Source,
    extractor: Extractor,
    *,
    judge: Extractor | None = None,
    examples: int = 100,
    progress: bool = True,
) -> Measured:
    """Pass all images through the extractor (and the judge, a classifier that was not used in making them)."""
    sums: FeatureSums | None = None
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    guesses: list[Tensor] = []
    kept: list[Tensor] = []
    kept_labels: list[Tensor] = []
    with tqdm(total=source.count, unit="img", desc="evaluating", file=sys.stderr, disable=not progress) as bar:
        for images, label in source.batches:
            features, scores = extractor(images)
            if not torch.isfinite(features).all():
                raise MgenError("the extractor made NaN features: its weights or the images are damaged")
            sums = sums or FeatureSums(features.shape[1])
            sums.update(features)
            logits.append(scores)
            labels.append(label)
            if judge is not None:
                guesses.append(judge(images)[1].argmax(1))
            missing = examples - sum(len(x) for x in kept)
            if missing > 0 or not kept:
                kept.append(images[:missing].cpu())
                kept_labels.append(label[:missing])
            bar.update(len(images))
    if sums is None:
        raise MgenError("there are no images to evaluate")
    all_labels = torch.cat(labels)
    hits = (torch.cat(guesses) == all_labels).float() if guesses and bool((all_labels >= 0).all()) else None
    return Measured(
        sums=sums,
        logits=torch.cat(logits),
        labels=all_labels,
        hits=hits,
        examples=torch.cat(kept),
        example_labels=torch.cat(kept_labels),
    )


def metric_names(extractor: Extractor, count: int) -> tuple[str, str]:
    """Names of the two metrics. Only Inception features make an FID, and only 50,000 images one without a count."""
    if extractor.name == InceptionExtractor.name:
        return ("FID" if count >= 50000 else f"FID-{count}"), "Inception Score"
    return f"Fréchet distance ({extractor.name})", f"classifier score ({extractor.name})"


def result(
    measured: Measured,
    source: Source,
    extractor: Extractor,
    *,
    reference: Reference | None,
    judge: Extractor | None = None,
) -> dict[str, Any]:
    """Metrics with everything that decides them."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    count = measured.sums.count
    distance_name, score_name = metric_names(extractor, count)
    metrics: dict[str, Any] = {}
    if reference is not None:
        mean, cov = measured.sums.finish()
        metrics[distance_name] = frechet_distance(mean, cov, reference.mean, reference.cov)
    if source.more is not None:
        metrics |= source.more(measured.sums)
    splits = min(IS_SPLITS, count)
    score = isc_features_to_metric(measured.logits, splits=splits, shuffle=True, rng_seed=IS_SEED)
    metrics[score_name] = score["inception_score_mean"]
    metrics[f"{score_name}, deviation over {splits} splits"] = score["inception_score_std"]
    if measured.hits is not None and judge is not None:
        metrics[f"class accuracy ({judge.name})"] = measured.hits.mean().item()
        metrics["class accuracy by class"] = {
            int(c): measured.hits[measured.labels == c].mean().item() for c in measured.labels.unique()
        }
    return {
        "metrics": metrics,
        "count": count,
        "images": source.about,
        "extractor": {"name": extractor.name, "sha256": extractor.sha256, "resize": extractor.resize},
        "reference": None
        if reference is None
        else {"name": reference.name, "count": reference.count, "sha256": reference.sha256},
        "judge": None if judge is None else {"name": judge.name, "sha256": judge.sha256},
        "score_splits": {"splits": splits, "shuffle_seed": IS_SEED},
        "feature_length": len(measured.sums.sum),
        "note": _note(extractor, count, distances=reference is not None or source.more is not None),
        "versions": {name: version(name) for name in ("torch", "torch-fidelity", "diffusers", "numpy", "scipy")}
        | {"python": platform.python_version()},
    }


def _note(extractor: Extractor, count: int, *, distances: bool) -> str:
    notes = []
    if extractor.name != InceptionExtractor.name:
        notes.append(f"measured in the features of {extractor.name}: not an FID and not comparable with one")
    if distances and count < 50000:
        notes.append(f"{count} images: the Fréchet distance falls with the count, compare only equal counts")
    return "; ".join(notes)
