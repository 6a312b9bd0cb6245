"""One evaluation from request to result: what `mgen eval` does, apart from options and reports."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from mgen.data import FASHION_CLASSES, ImageData, ImageFolder
from mgen.data.images import open_images
from mgen.evaluation import evaluate
from mgen.evaluation.belonging import image_of, unsuited
from mgen.evaluation.extractors import Extractor, any_size, make_extractor, protocol_extractor
from mgen.evaluation.fashion import HOW
from mgen.evaluation.feature_files import begin
from mgen.evaluation.levels import compare_levels, levels_markdown
from mgen.evaluation.measure import Workers, measure
from mgen.evaluation.measured import Measured
from mgen.evaluation.neighbors import nearest_rows
from mgen.evaluation.outputs import check_own
from mgen.evaluation.pixels import Lpips
from mgen.evaluation.protocols import Protocol
from mgen.evaluation.published import apply_recipe
from mgen.evaluation.reconstruction import distance_name, reconstruction_metrics, reconstructions
from mgen.evaluation.references import find_reference
from mgen.evaluation.request import EvalRequest, is_model
from mgen.evaluation.result import Facts, Result
from mgen.evaluation.source import Source
from mgen.evaluation.sources import from_dataset, from_model, open_source
from mgen.evaluation.statistics import check_statistics_name, made_with, save_statistics, sha256_of
from mgen.pipelines.pipeline import MaskedPipeline, load
from mgen.pipelines.saved import load_tokenizer
from mgen.samplers import ParallelSampler
from mgen.tokenizers.bridge import kl_tokenizer
from mgen.tokenizers.vision import give_vision
from mgen.utils.errors import MgenError
from mgen.utils.files import check_output, check_writable, write_json, write_text
from mgen.utils.reading import file_sha256
from mgen.zoo import resolve
from mgen.zoo.identity import identity

ChooseSampler = Callable[[MaskedPipeline], ParallelSampler]
PRESUMED = "compared with Fashion-MNIST, as samples of a model of it: their run, or their names and size, say so"
SMALL = 256  # features; with more the bootstrap is slow


class Outcome(NamedTuple):
    """A finished evaluation: its result, the folder for the report, the measured images, and the pipeline that sampled them, if any."""

    result: Result
    folder: Path
    measured: Measured
    pipe: MaskedPipeline | None


def run_evaluation(request: EvalRequest, workers: Workers, choose_sampler: ChooseSampler) -> Outcome | None:
    """Measure what the request names, a pipeline's images with the chosen sampler; None in all processes but the first.

    Raises:
        MgenError: settings contradict each other, or something is missing on this machine.
    """
    labels = request.labels  # of the options, not of the recipe
    request, published = apply_recipe(request)
    protocol = _check(request)
    extractor = protocol_extractor(protocol, weights=request.inception_weights, device=workers.device)
    source, pipe = _find_source(request, protocol, extractor, workers.device, choose_sampler)
    if labels is not None and pipe is not None and not pipe.conditional:
        raise MgenError(f"--labels {labels} has no effect: {request.path} knows no classes; leave it out")
    on_fashion_mnist = protocol.extractor == "fmnist-cnn" and source.fashion
    warning = _check_comparable(request, protocol, source, extractor, pipe)
    name = request.classifier or ("fmnist-classifier" if on_fashion_mnist else "none")
    classifier = None if name == "none" else make_extractor(name, device=workers.device)
    if request.nearest and open_source(request.nearest, channels=_channels(extractor)).count < 2:
        raise MgenError(f"--nearest {request.nearest}: at least 2 images are needed")
    reference = find_reference(
        request.reference,
        extractor,
        builtin=on_fashion_mnist,
        images=bool(protocol.neighbors or protocol.kid),
        side=_side(request, source, pipe) if request.reference else None,
        batch_size=request.batch_size,
        folder=request.folder / "reference",
        workers=workers,
    )
    measured = _measure(request, protocol, source, extractor, classifier, workers)
    if workers.rank > 0:
        return None
    result = evaluate.result(
        measured,
        source,
        extractor,
        protocol=protocol,
        reference=reference,
        classifier=classifier,
        bootstrap=request.bootstrap if request.bootstrap is not None else (200 if extractor.length <= SMALL else 20),
        more=reconstruction_metrics(measured, source, extractor) if request.reconstruction else None,
    )
    result["command"] = request.command
    result["note"] = "; ".join(filter(None, [warning, result["note"]]))
    in_files = source.about["kind"] not in ("model", "data", "reconstruction")
    if on_fashion_mnist and request.reference is None and in_files:
        result["note"] = "; ".join(filter(None, [result["note"], PRESUMED]))
    if request.reconstruction and reference is None:
        originals = measured.sums("original").finish()
        result["reference"] = {"name": "the originals", "count": measured.count, "sha256": sha256_of(*originals)}
    if request.nearest:
        # Training images come in all sizes: crop and resize them to the measured size.
        size = None if request.nearest == "fmnist" else min(measured.examples()[0].shape[-2:])
        training = open_source(request.nearest, channels=_channels(extractor), size=size)
        result["nearest"] = nearest_rows(measured, training, extractor)
    if published is not None:
        result["published"] = published.compare(result)
    return Outcome(result, request.folder, measured, pipe)


def _check(request: EvalRequest) -> Protocol:
    """The protocol; MgenError if nothing is to be measured, or an output cannot be written."""
    if request.path is None:
        raise MgenError("nothing to measure: name a folder of images, an .npz, a model, `fmnist`, or --recipe NAME")
    protocol = request.find_protocol()
    check_writable(request.folder)
    if request.levels:
        check_own(request.folder, ("levels.json", "levels.md"), {"command", "rows"})
    else:
        check_own(request.folder, ("result.json", "grid.png", "report.md", "report.html"), {"format", "metrics"})
    if request.save_statistics:
        check_statistics_name(request.save_statistics, "--save-statistics")
        check_output(request.save_statistics)
    return protocol


def _find_source(
    request: EvalRequest, protocol: Protocol, extractor: Extractor, device: torch.device, choose_sampler: ChooseSampler
) -> tuple[Source, MaskedPipeline | None]:
    """The images of the request, and the pipeline if they are sampled."""
    path = str(request.path)
    if request.reconstruction:
        return _reconstructions(request, request.reconstruction, device), None
    if not is_model(path):
        found = open_source(
            path,
            channels=_channels(extractor),
            split=request.split or "test",
            limit=request.num_images,
            any_size=any_size(extractor),
        )
        if not found.class_names and found.fashion:
            found.class_names = FASHION_CLASSES
        return found, None
    pipe = load(path, device=device).optimize()
    guide = request.sampling.get("guide")
    if guide is not None:
        pipe.guide = load(str(guide), device=device).transformer
    pipe.sampler = choose_sampler(pipe)
    if request.compile is not None:
        pipe.compile(request.compile)
    source = from_model(
        pipe,
        name=path,
        count=request.num_images or 1000,
        batch_size=request.batch_size,
        seed=request.seed or 0,
        dtype=request.dtype,
        plan=request.labels or "balanced",
        image_size=protocol.image_size,
        quantization=protocol.quantization,
    )
    source.about |= vars(identity(resolve(path)))
    if guide is not None:
        source.about |= {"guide": guide, "guide_sha256": identity(resolve(str(guide))).model_sha256}
    return source, pipe


def _channels(extractor: Extractor) -> int | None:
    """Channels to load images with: three for Inception; else as they are stored, so that reports show colors."""
    return extractor.channels if extractor.channels > 1 else None


def _check_comparable(
    request: EvalRequest, protocol: Protocol, source: Source, extractor: Extractor, pipe: MaskedPipeline | None
) -> str:
    """Raise MgenError if images that aren't known to be Fashion-MNIST's would be measured as if they were, without being told so.

    Returns a warning if the command says so and they cannot be like them.
    """
    if protocol.extractor != "fmnist-cnn" or source.fashion:
        return ""
    config = None if pipe is None else pipe.tokenizer.config
    channels, side = image_of(source) if config is None else (config.in_channels, config.image_size)
    named = bool(request.protocol or request.extractor) and bool(request.reference or request.reconstruction)
    if named or (request.reference and made_with(request.reference, extractor.name)):
        return unsuited(extractor, channels, side)
    if pipe is None:
        what = f"holds images of {side} px, and nothing says that they are Fashion-MNIST's or of a model trained on it"
    else:
        names = ", ".join(list(pipe.class_names)[:3])
        what = f"has {pipe.transformer.num_classes} classes ({names or 'without names'}{', …' * (len(pipe.class_names) > 3)}), "
        what += "not those of Fashion-MNIST, or its images are others"
    if request.reference not in (None, "none"):
        what += f", and --reference {request.reference} does not say that it is of features of {extractor.name}"
    raise MgenError(f"{request.path} {what}: {HOW}")


def _side(request: EvalRequest, source: Source, pipe: MaskedPipeline | None) -> int | None:
    """The side in pixels of the images that are measured, None for reconstructions."""
    if pipe is not None:
        side: int = pipe.tokenizer.config.image_size
        return request.image_size or side
    return None if request.reconstruction or not source.count else image_of(source)[1]


def _measure(
    request: EvalRequest,
    protocol: Protocol,
    source: Source,
    extractor: Extractor,
    classifier: Extractor | None,
    workers: Workers,
) -> Measured:
    """Measure the images; write their statistics if requested."""
    folder = request.folder / "features"
    made: Sequence[Path] = ()
    if workers.rank == 0:
        other = None if classifier is None else classifier.sha256
        made = begin(folder, source, extractor, protocol.id, classifier=other)
    workers.wait()
    measured = measure(
        source,
        extractor,
        classifier=classifier,
        folder=folder,
        made=made,
        batch_size=request.batch_size,
        workers=workers,
    )
    if workers.rank == 0 and request.save_statistics:
        about = f"{request.path} {request.split or 'test' if request.path == 'fmnist' else ''}".strip()
        spatial = measured.sums("spatial") if protocol.spatial else None
        save_statistics(request.save_statistics, measured.sums(), extractor, about, spatial=spatial)
    return measured


def _reconstructions(request: EvalRequest, name: str, device: torch.device) -> Source:
    """The images of the request through the tokenizer of this name."""
    tokenizer = load_tokenizer(name, device=device)
    give_vision(tokenizer, request.vision_weights)
    data, about = open_images(str(request.path), tokenizer, split=request.split or "test")
    source = reconstructions(
        data,
        tokenizer,
        name=f"{about} through {name}",
        rows=_rows(request, data),
        posterior=request.posterior or "mean",
        seed=request.seed or 0,
        lpips=Lpips(request.lpips_weights, device) if request.lpips_weights else None,
    )
    source.fashion = request.path == "fmnist"
    source.about["tokenizer_sha256"] = identity(resolve(name)).model_sha256
    if request.vision_weights:
        source.about["vision_sha256"] = file_sha256(request.vision_weights)
    files = data.files if isinstance(data, ImageFolder) else []
    source.key = [source.key, [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]]
    return source


def _rows(request: EvalRequest, data: ImageData) -> range:
    """The first images of fmnist; evenly spread ones of a folder, where classes follow each other."""
    most = min(request.num_images or len(data), len(data))
    return range(0, len(data), 1 if request.path == "fmnist" else len(data) // most)[:most]


def run_levels(request: EvalRequest, device: torch.device) -> tuple[str, Path]:
    """Compare levels for a KL tokenizer; returns the table in Markdown and the file it was written to, levels.md."""
    protocol, name = _check(request), str(request.reconstruction)
    extractor = protocol_extractor(protocol, weights=request.inception_weights, device=device)
    tokenizer = kl_tokenizer(load_tokenizer(name, device=device), "--levels")
    data, about = open_images(str(request.path), tokenizer, split=request.split or "test")
    if protocol.extractor == "fmnist-cnn":
        images = from_dataset(data, name=about)
        _check_comparable(request, protocol, images, extractor, None)
    indices, posterior = _rows(request, data), request.posterior or "mean"
    rows = compare_levels(
        data,
        tokenizer,
        extractor,
        rows=indices,
        batch_size=request.batch_size,
        levels=request.levels,
        ranges=request.ranges or (3.0, 5.0, "best"),
        posterior=posterior,
        seed=request.seed or 0,
    )
    distance = distance_name(extractor, len(indices))
    notes = [
        f"{len(indices)} images: {about}, through {name}; the posterior's {posterior}.",
        "Squared error and entropy are per number of the scaled latents; outside: the share of numbers beyond the range.",
    ]
    table = levels_markdown(rows, title=request.command, notes=notes, distance=distance)
    facts: Facts = {
        "command": request.command,
        "data": about,
        "count": len(indices),
        "posterior": posterior,
        "distance": distance,
        "extractor": {"name": extractor.name, "sha256": extractor.sha256},
        "rows": [asdict(row) for row in rows],
    }
    write_json(request.folder / "levels.json", facts)  # first: it says whose the other is
    write_text(request.folder / "levels.md", table)
    return table, request.folder / "levels.md"
