"""From measured images to a result: metrics, how sure they are, and everything that decides them."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from mgen.evaluation.bootstrap import deviations
from mgen.evaluation.extractors import Extractor, InceptionExtractor
from mgen.evaluation.frechet import frechet_distance
from mgen.evaluation.measure import Measured
from mgen.evaluation.protocols import PUBLISHED, Protocol
from mgen.evaluation.scores import class_score, split_of
from mgen.evaluation.sources import Source
from mgen.evaluation.statistics import Reference


def metric_names(extractor: Extractor, count: int, kind: str = "FID") -> tuple[str, str]:
    """Names of distance and score. Only Inception features make an FID, and only 50,000 images one without a count."""
    if extractor.name == InceptionExtractor.name:
        return (kind if count >= PUBLISHED else f"{kind}-{count}"), "Inception Score"
    return f"Fréchet distance ({extractor.name})", f"classifier score ({extractor.name})"


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
    progress: bool = True,
) -> dict[str, Any]:
    """The metrics of a protocol, with everything that decides them.

    Args:
        bootstrap: replicates behind the standard deviations, 0: none but those that a metric has of its own.
        more: further metrics, of reconstructions.
    """
    count = measured.count
    distance, score = metric_names(extractor, count)
    metrics, spread, missing = dict(more or {}), dict[str, float](), dict[str, str]()
    gaussians: dict[str, Any] = {}
    if reference is not None:
        gaussians[distance] = ("features", reference.mean, reference.cov)
        if protocol.spatial and reference.spatial is None:
            missing["sFID"] = f"{reference.name} has no mu_s and sigma_s"
        elif protocol.spatial:
            gaussians[metric_names(extractor, count, "sFID")[0]] = ("spatial", *reference.spatial)  # type: ignore[misc]
    elif "original" not in measured.names:
        missing[distance] = "no reference was given"
        if protocol.spatial:
            missing["sFID"] = "no reference was given"
    for name, (kind, mean, cov) in gaussians.items():
        metrics[name] = frechet_distance(*measured.sums(kind).finish(), mean, cov)
    splits = split_of(count, protocol)
    metrics[score], over_splits = class_score(measured.blocks("logits"), splits)
    if protocol.score == "shuffled":  # ADM's evaluator reports none
        metrics[f"{score}, deviation over {int(splits.max()) + 1} splits"] = over_splits
    told = _single_images(metrics, spread, missing, measured, extractor, protocol, reference)
    labels, hits = measured.rows("labels"), None
    by_class: dict[str, dict[str, float]] = {}
    if bool((labels >= 0).all()):
        classes, sizes = labels.unique(return_counts=True)
        by_class["images"] = {str(int(c)): int(n) for c, n in zip(classes, sizes)}
    if classifier is not None and by_class:
        hits = (measured.rows("guesses") == labels).float()
        name = f"class accuracy ({classifier.name})"
        metrics[name] = hits.mean().item()
        by_class[name] = {c: hits[labels == int(c)].mean().item() for c in by_class["images"]}
    elif classifier is not None:
        missing[f"class accuracy ({classifier.name})"] = "the images' classes are unknown"
    if bootstrap:
        spread |= deviations(
            measured,
            references=gaussians,
            score=(score, splits),
            means={} if hits is None else {name: hits},
            replicates=bootstrap,
            progress=progress,
        )
    return {
        "format": 2,
        "title": title(source),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "metrics": metrics,
        "deviations": spread,
        "better": {key: direction for key in metrics if (direction := better(key))},
        "missing": missing,
        "by_class": by_class,
        "class_names": list(source.class_names),
        "count": count,
        "images": source.about,
        "protocol": protocol.describe(),
        "extractor": {"name": extractor.name, "sha256": extractor.sha256, "resize": extractor.resize},
        "reference": None
        if reference is None
        else {
            "name": reference.name,
            "count": reference.count,
            "sha256": reference.sha256,
            "features": None if reference.features is None else len(reference.features),
            "prepared": reference.prepared,
        },
        "classifier": None if classifier is None else {"name": classifier.name, "sha256": classifier.sha256},
        "bootstrap": {"replicates": bootstrap, "seed": 0} if bootstrap else None,
        "cost": {},
        "nearest": None,
        "note": "; ".join(
            [
                *told,
                *_notes(extractor, protocol, count, by_class.get("images"), bool(gaussians or more)),
                *_warnings(protocol, labels, reference),
            ]
        ),
        "versions": {name: version(name) for name in ("torch", "torch-fidelity", "diffusers", "numpy", "scipy")}
        | {"python": platform.python_version()},
    }


def _single_images(
    metrics: dict[str, float],
    spread: dict[str, float],
    missing: dict[str, str],
    measured: Measured,
    extractor: Extractor,
    protocol: Protocol,
    reference: Reference | None,
) -> Sequence[str]:
    """Metrics that need features of single reference images; notes on them."""
    if not (protocol.neighbors or protocol.kid) or "original" in measured.names:
        return []
    from mgen.evaluation.neighbors import kernel_distance, precision_recall

    own = "" if extractor.name == InceptionExtractor.name else f" ({extractor.name})"
    kernel = f"KID{own}" if not own else f"kernel distance{own}"
    features = None if reference is None else reference.features
    names = {f"precision{own}": protocol.neighbors, f"recall{own}": protocol.neighbors, kernel: protocol.kid}
    least = max(protocol.neighbors + 1, 2)
    reason = None
    if reference is None:
        reason = "no reference was given"
    elif features is None:
        reason = f"{reference.name} has no features of single images: mgen stats --features N keeps them, or give images as the reference"
    elif min(measured.count, len(features)) < least:
        reason = f"at least {least} images on each side are needed"
    if features is None or reason:
        missing |= {name: reason or "" for name, wanted in names.items() if wanted}
        return []
    mapped = measured.mapped("features")
    if protocol.neighbors:
        pair = precision_recall(mapped, features, neighbors=protocol.neighbors)
        metrics |= dict(zip(names, pair))
    if protocol.kid:
        metrics[kernel], spread[kernel] = kernel_distance(mapped, features, size=protocol.kid)
    if (most := min(measured.count, len(features))) < protocol.kid:
        return [f"the kernel distance is over subsets of {most} images, not {protocol.kid}: no more were there"]
    return []


def title(source: Source) -> str:
    """What was measured, in a few words."""
    about = source.about
    return str(about.get("model") or about.get("path") or about.get("data") or about["kind"])


def better(metric: str) -> str | None:
    """Whether lower or higher values of a metric are better; None for those that are neither."""
    if "deviation" in metric or metric.startswith(("ids used", "entropy")):
        return None
    lower = ("FID", "sFID", "rFID", "KID", "Fréchet", "kernel", "LPIPS")
    return "lower" if metric.startswith(lower) else "higher"


def _notes(
    extractor: Extractor, protocol: Protocol, count: int, sizes: dict[str, float] | None, distances: bool
) -> Sequence[str]:
    notes = []
    if extractor.name != InceptionExtractor.name:
        notes.append(f"measured in the features of {extractor.name}: not an FID and not comparable with one")
    if protocol.name == "custom":
        notes.append("the extractor is that of no named protocol: no published figure was measured so")
    if distances and count < PUBLISHED:
        notes.append(f"{count} images: the Fréchet distance falls with the count, compare only equal counts")
    if sizes and max(sizes.values()) > 2 * min(sizes.values()) and count >= 10 * len(sizes):
        notes.append(f"classes are unbalanced: {min(sizes.values())} to {max(sizes.values())} images of each")
    if protocol.score == "file order" and count % protocol.splits:
        notes.append(f"{count} images are no multiple of {protocol.splits}: the last split of the score is shorter")
    return notes


def _warnings(protocol: Protocol, labels: torch.Tensor, reference: Reference | None) -> Sequence[str]:
    """What may have gone wrong without an error."""
    notes = []
    if protocol.score == "file order" and (labels >= 0).all():
        classes = [len(part.unique()) for part in labels.split(protocol.splits)]
        if len(classes) > 1 and max(classes) < 0.5 * len(labels.unique()):
            notes.append(
                f"the images come sorted by class, {max(classes)} classes in a split of {protocol.splits}: this protocol's score takes "
                "splits in file order and is far lower for them than for images in any other order"
            )
    if reference is not None and not reference.told:
        notes.append(
            f"{reference.name} does not say by which network and resize it was made: taken for this protocol's"
        )
    return notes


def nearest_rows(
    measured: Measured, training: Source, extractor: Extractor, *, images: int = 12, k: int = 5
) -> dict[str, Any]:
    """The nearest training images of some measured ones, for a result: a check that the model did not learn them by heart.

    "typical" is the median distance of a training image to the nearest other one: copies lie far below it.
    """
    from mgen.evaluation.neighbors import nearest

    shown = measured.examples()
    examples, labels = (t[:: max(1, len(t) // images)][:images] for t in shown)
    rows = torch.arange(min(200, training.count)) * (training.count // min(200, training.count))
    some = [training.read(int(i), int(i) + 1) for i in rows]
    own = torch.cat([torch.full((len(examples),), -1), rows])
    queries = torch.cat([extractor(examples).features, extractor(torch.cat([b.images for b in some])).features])
    found = nearest(queries, training, extractor, k=k, own=own)
    wanted = sorted(set(found.indices[: len(examples)].flatten().tolist()) - {-1})
    read = {i: training.read(i, i + 1) for i in wanted}  # ascending: an npz is a stream
    out = []
    for i in range(len(examples)):
        neighbors = [
            {"image": data_uri(read[index].images[0]), "label": int(read[index].labels[0]), "distance": away}
            for index, away in zip(found.indices[i].tolist(), found.distances[i].tolist())
            if index >= 0
        ]
        first = neighbors[0]["distance"]
        out.append({"image": data_uri(examples[i]), "label": int(labels[i]), "distance": first, "neighbors": neighbors})
    typical = found.distances[len(examples) :, 0].median().item()
    return {
        "data": title(training),
        "count": training.count,
        "rows": out,
        "typical": typical,
        "note": f"typical: the median over {len(rows)} training images of the distance to the nearest other one",
    }


def data_uri(image: torch.Tensor) -> str:
    """A PNG of a uint8 image (C, H, W) as a data URI."""
    import base64
    import io

    from mgen.pipelines.pipeline import to_pil

    stream = io.BytesIO()
    to_pil(image[None])[0].save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
