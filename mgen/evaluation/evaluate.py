"""From measured images to a result: metrics, their deviations, and everything that determines them."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version

from torch import Tensor

from mgen.data import FASHION_CLASSES
from mgen.evaluation.belonging import extractor_facts, extractor_notes, trained_on
from mgen.evaluation.bootstrap import SEED, Gaussian, deviations
from mgen.evaluation.extractors import INCEPTION_SHA256, Extractor, InceptionExtractor
from mgen.evaluation.frechet import frechet_distance
from mgen.evaluation.measured import Measured
from mgen.evaluation.neighbors import kernel_distance, precision_recall
from mgen.evaluation.protocols import PUBLISHED, Protocol
from mgen.evaluation.result import FORMAT, Result
from mgen.evaluation.scores import class_score, split_of
from mgen.evaluation.source import Source
from mgen.evaluation.statistics import Reference


def metric_names(extractor: Extractor, count: int, kind: str = "FID") -> tuple[str, str]:
    """Names of the Fréchet distance and of the classifier score.

    Only with Inception features are they FID and Inception Score; below 50,000 images the name of an FID has the count.
    """
    if extractor.name == InceptionExtractor.name:
        return (kind if count >= PUBLISHED else f"{kind}-{count}"), "Inception Score"
    return f"Fréchet distance ({extractor.name})", f"classifier score ({extractor.name})"


@dataclass
class _Parts:
    """What the parts of an evaluation add to a result, and what they share."""

    measured: Measured
    extractor: Extractor
    protocol: Protocol
    reference: Reference | None
    metrics: dict[str, float]
    deviations: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def result(
    measured: Measured,
    source: Source,
    extractor: Extractor,
    *,
    protocol: Protocol,
    reference: Reference | None,
    classifier: Extractor | None = None,
    bootstrap: int = 0,
    more: dict[str, float] | None = None,
) -> Result:
    """The metrics of a protocol, with everything that determines them.

    Args:
        bootstrap: replicates behind the standard deviations; 0: only metrics that come with a deviation have one.
        more: further metrics, of reconstructions.
    """
    parts = _Parts(measured, extractor, protocol, reference, dict(more or {}))
    gaussians = _frechet_distances(parts)
    score = _classifier_score(parts)
    _single_images(parts)
    hits = _class_accuracy(parts, classifier, source.class_names)
    if bootstrap:
        parts.deviations |= deviations(measured, references=gaussians, score=score, means=hits, replicates=bootstrap)
    parts.notes = [*extractor_notes(extractor, source), *parts.notes, *_notes(parts, distances=bool(gaussians or more))]
    return {
        "format": FORMAT,
        "title": source.title,
        "command": "",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "metrics": parts.metrics,
        "deviations": parts.deviations,
        "better": {name: direction for name in parts.metrics if (direction := better(name))},
        "missing": parts.missing,
        "by_class": parts.by_class,
        "class_names": list(source.class_names),
        "count": measured.count,
        "images": source.about,
        "protocol": protocol.describe(),
        "extractor": extractor_facts(extractor),
        "reference": None if reference is None else reference.describe(),
        "classifier": None if classifier is None else {"name": classifier.name, "sha256": classifier.sha256},
        "bootstrap": {"replicates": bootstrap, "seed": SEED} if bootstrap else None,
        "cost": {},
        "nearest": None,
        "note": "; ".join(parts.notes),
        "versions": {name: version(name) for name in ("torch", "torch-fidelity", "diffusers", "numpy", "scipy")}
        | {"python": platform.python_version()},
    }


def better(metric: str) -> str | None:
    """Whether "lower" or "higher" values of a metric are better; None for those that are neither."""
    if "deviation" in metric or metric.startswith(("ids used", "entropy")):
        return None
    lower = ("FID", "sFID", "rFID", "KID", "Fréchet", "kernel", "LPIPS")
    return "lower" if metric.startswith(lower) else "higher"


def _frechet_distances(parts: _Parts) -> dict[str, Gaussian]:
    """Add the Fréchet distances; return the reference statistics by name of the metric."""
    gaussians: dict[str, Gaussian] = {}
    distance, _ = metric_names(parts.extractor, parts.measured.count)
    reference, spatial = parts.reference, parts.protocol.spatial
    if reference is not None:
        gaussians[distance] = ("features", reference.mean, reference.cov)
        if spatial and reference.spatial is None:
            parts.missing["sFID"] = f"{reference.name} has no mu_s and sigma_s"
        elif spatial and reference.spatial is not None:
            name, _ = metric_names(parts.extractor, parts.measured.count, "sFID")
            gaussians[name] = ("spatial", *reference.spatial)
    elif "original" not in parts.measured.names:
        parts.missing |= {name: "no reference was given" for name in [distance] + ["sFID"] * spatial}
    for name, (kind, mean, cov) in gaussians.items():
        parts.metrics[name] = frechet_distance(*parts.measured.sums(kind).finish(), mean, cov)
        if kind == "features" and parts.metrics[name] <= 1e-7 * float(cov.trace()):
            parts.notes.append("the images and the reference have equal statistics: they are probably the same images")
    return gaussians


def _classifier_score(parts: _Parts) -> tuple[str, Tensor]:
    """Add the classifier score; return its name and its splits."""
    _, name = metric_names(parts.extractor, parts.measured.count)
    splits = split_of(parts.measured.count, parts.protocol)
    parts.metrics[name], over_splits = class_score(parts.measured.blocks("logits"), splits)
    if parts.protocol.score == "shuffled":  # ADM's evaluator reports no deviation
        parts.metrics[f"{name}, deviation over {int(splits.max()) + 1} splits"] = over_splits
    return name, splits


def _single_images(parts: _Parts) -> None:
    """Add precision, recall and the kernel distance, which need features of single reference images."""
    measured, protocol, reference = parts.measured, parts.protocol, parts.reference
    if not (protocol.neighbors or protocol.kid) or "original" in measured.names:
        return
    inception = parts.extractor.name == InceptionExtractor.name
    own = "" if inception else f" ({parts.extractor.name})"
    kernel = "KID" if inception else f"kernel distance{own}"
    names = {f"precision{own}": protocol.neighbors, f"recall{own}": protocol.neighbors, kernel: protocol.kid}
    least = max(protocol.neighbors + 1, 2)
    features, reason = None, "no reference was given"
    if reference is not None:
        features = reference.features
        reason = f"{reference.name} has no features of single images: make it with mgen stats --features N, or give images as reference"
    if features is not None and min(measured.count, len(features)) < least:
        features, reason = None, f"at least {least} images on each side are needed"
    if features is None:
        parts.missing |= {name: reason for name, wanted in names.items() if wanted}
        return
    mapped = measured.mapped("features")
    if protocol.neighbors:
        parts.metrics |= dict(zip(names, precision_recall(mapped, features, neighbors=protocol.neighbors)))
    if protocol.kid:
        parts.metrics[kernel], deviation = kernel_distance(mapped, features, size=protocol.kid)
        if max(measured.count, len(features)) > min(measured.count, len(features), protocol.kid):
            parts.deviations[kernel] = deviation  # else every subset is the whole
        if (most := min(measured.count, len(features))) < protocol.kid:
            parts.notes.append(
                f"the kernel distance is over subsets of {most} images, not {protocol.kid}: no more were available"
            )


def _class_accuracy(parts: _Parts, classifier: Extractor | None, names: Sequence[str]) -> dict[str, Tensor]:
    """Add the numbers by class; return the name of the class accuracy with a hit or miss (N,) of every image, if there is one."""
    labels = parts.measured.rows("labels")
    if known := bool((labels >= 0).all()):
        classes, sizes = labels.unique(return_counts=True)
        parts.by_class["images"] = {str(int(c)): int(n) for c, n in zip(classes, sizes)}
    if classifier is None:
        return {}
    name = f"class accuracy ({classifier.name})"
    reason = "" if known else "the images' classes are unknown"
    if known and (highest := int(labels.max())) >= classifier.classes:
        reason = f"the images have class ids up to {highest}, the classifier knows {classifier.classes} classes"
    elif known and classifier.name == "fmnist-classifier" and tuple(names) not in ((), FASHION_CLASSES):
        reason = "the images' classes are not those of Fashion-MNIST"
    elif known and names and (own := _classes(classifier)) and tuple(names) != own:
        reason = f"the images' classes are not those of {classifier.name}"
    if reason:
        parts.missing[name] = reason
        return {}
    hits = (parts.measured.rows("guesses") == labels).float()
    parts.metrics[name] = hits.mean().item()
    parts.by_class[name] = {c: hits[labels == int(c)].mean().item() for c in parts.by_class["images"]}
    return {name: hits}


def _classes(classifier: Extractor) -> tuple[str, ...]:
    """The classes that a classifier knows, if it says so."""
    about = trained_on(classifier)
    return () if about is None else about.data.class_names


def _notes(parts: _Parts, *, distances: bool) -> Sequence[str]:
    """What to know before comparing the numbers, and what may have gone wrong without an error."""
    protocol, count, notes = parts.protocol, parts.measured.count, []
    if parts.extractor.name == InceptionExtractor.name and parts.extractor.sha256 != INCEPTION_SHA256:
        notes.append(
            f"the Inception weights are not the published ones ({parts.extractor.sha256[:8]}…): not comparable with published numbers"
        )
    if protocol.name == "custom":
        notes.append("the extractor belongs to no named protocol: there are no published numbers to compare with")
    if distances and count < PUBLISHED:
        notes.append(f"{count} images: the Fréchet distance falls with the count, compare only equal counts")
    sizes = list(parts.by_class.get("images", {}).values())
    if sizes and max(sizes) > 2 * min(sizes) and count >= 10 * len(sizes):
        notes.append(f"classes are unbalanced: {min(sizes)} to {max(sizes)} images each")
    if protocol.score == "file order":
        if count % protocol.splits:
            notes.append(f"{count} images are no multiple of {protocol.splits}: the last split of the score is shorter")
        labels = parts.measured.rows("labels")
        classes = [len(part.unique()) for part in labels.split(protocol.splits)]
        if (labels >= 0).all() and len(classes) > 1 and max(classes) < 0.5 * len(labels.unique()):
            notes.append(
                f"the images are sorted by class, {max(classes)} classes in a split of {protocol.splits}: this protocol computes its score "
                "on splits in file order, and it is far lower for sorted images than for images in any other order"
            )
    reference = parts.reference
    if reference is not None and not reference.described:
        notes.append(f"{reference.name} does not state its network and resize: assumed to be this protocol's")
    return notes
