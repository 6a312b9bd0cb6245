"""The two sides of `mgen tune`: what is measured for the search and for the test, and what it is compared with."""

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mgen.utils.errors import MgenError

if TYPE_CHECKING:
    from mgen.evaluation.extractors import Extractor
    from mgen.evaluation.statistics import Reference
    from mgen.pipelines.pipeline import MaskedPipeline
    from mgen.samplers import ParallelSampler
    from mgen.utils.config import Settings

REFERENCES = "--reference-search and --reference-test, two sets of images or statistics of them"


class Side(TypedDict):
    """What is measured on one side, of the search or of the test."""

    distance: str
    images: int
    seed: int
    reference: str


def open_start(args: Namespace) -> "tuple[MaskedPipeline, ParallelSampler]":
    """The pipeline, and the sampler that the search starts from."""
    from mgen.pipelines.pipeline import load
    from mgen.samplers import ParallelSampler
    from mgen.zoo.recipes import recipe_settings

    pipe = load(args.model, device=args.device).optimize()
    sampler = pipe.sampler
    if args.start:
        sampler = ParallelSampler.suited(pipe.transformer, *recipe_settings(args.start))
    return pipe, sampler.override(steps=args.steps)


def open_extractor(args: Namespace, pipe: "MaskedPipeline") -> "Extractor":
    """The extractor of the features."""
    from mgen.evaluation.belonging import chosen_extractor
    from mgen.evaluation.extractors import make_extractor

    given = (args.reference_search, args.reference_test)
    # Who names Fashion-MNIST's files means them.
    name = chosen_extractor(args.extractor, given, pipe, args.model, REFERENCES, told=bool(args.data_path))
    return make_extractor(name, weights=args.inception_weights, device=pipe.device)


def common_settings(args: Namespace, extractor: "Extractor", sides: dict[str, Side]) -> "Settings":
    """What determines the result of any search: the model, and how it is measured."""
    from mgen.zoo import resolve
    from mgen.zoo.identity import identity

    return {
        "model": args.model,
        **vars(identity(resolve(args.model))),
        "extractor": {"name": extractor.name, "sha256": extractor.sha256},
        "dtype": args.dtype,
        **{f"{side}_{key}": facts[key] for side, facts in sides.items() for key in ("images", "seed", "reference")},
    }


def describe(args: Namespace, extractor: "Extractor", pipe: "MaskedPipeline", *, images: int) -> dict[str, Side]:
    """What is measured for the search, by `images` images of each trial, and for the test, and the name of the distance."""
    from mgen.evaluation.evaluate import metric_names
    from mgen.evaluation.fashion import require_fashion

    counts = {"search": (images, args.seed), "test": (args.test_images, args.test_seed)}
    names = {"search": args.reference_search, "test": args.reference_test}
    if "none" in names.values():
        raise MgenError(
            "--reference-search and --reference-test cannot be none: a search needs something to compare with"
        )
    if None not in names.values():
        if os.path.realpath(names["search"]) == os.path.realpath(names["test"]):
            raise MgenError(
                f"--reference-search and --reference-test are both {names['test']}: give two disjoint sets of images"
            )
    elif any(names.values()):
        raise MgenError("--reference-search and --reference-test go together: give two disjoint sets of images")
    elif not extractor.name.startswith("fmnist"):
        raise MgenError(
            f"extractor {extractor.name} has no built-in reference: give --reference-search and --reference-test"
        )
    else:
        if not args.data_path:  # who names Fashion-MNIST's files means them
            require_fashion(pipe, args.model, REFERENCES)
        names = {"search": "fmnist train, images 0, 2, 4 …", "test": "fmnist train, images 1, 3, 5 …"}
    return {
        side: {"distance": metric_names(extractor, count)[0], "images": count, "seed": seed, "reference": names[side]}
        for side, (count, seed) in counts.items()
    }


def given_references(args: Namespace, extractor: "Extractor", size: int) -> "dict[str, Reference]":
    """The statistics that the options name, images of several sizes cropped to `size`; none where halves of Fashion-MNIST serve."""
    from mgen.data.fashion_mnist import find_fashion_mnist
    from mgen.evaluation.references import find_reference

    if not args.reference_search:
        find_fashion_mnist(args.data_path)
        return {}
    found = {
        side: reference
        for side, name in (("search", args.reference_search), ("test", args.reference_test))
        if (reference := find_reference(name, extractor, side=size, batch_size=args.batch_size)) is not None
    }
    if (found["search"].cov == found["test"].cov).all():
        raise MgenError(
            "--reference-search and --reference-test hold equal statistics: give two disjoint sets of images"
        )
    return found


def notes_on(extractor: "Extractor", pipe: "MaskedPipeline") -> list[str]:
    """What to know about distances in an extractor's features; warnings also go to stderr."""
    from mgen.evaluation.belonging import extractor_notes, unsuited
    from mgen.evaluation.sources import from_model

    config, source = pipe.tokenizer.config, from_model(pipe, name="", count=1, seed=0)
    found = [unsuited(extractor, config.in_channels, config.image_size), *extractor_notes(extractor, source)]
    notes = [note for note in found if note]
    for note in notes:
        if note.startswith("WARNING"):
            print(note, file=sys.stderr)
    return notes


def half(side: str, name: str, extractor: "Extractor", args: Namespace) -> "Reference":
    """The statistics of one half of Fashion-MNIST's training images; kept in the output folder."""
    from mgen.data import FashionMNIST
    from mgen.evaluation.measure import measure
    from mgen.evaluation.sources import from_dataset
    from mgen.evaluation.statistics import load_statistics, save_statistics

    file = Path(args.out) / f"reference-{side}.safetensors"
    if not file.is_file():
        data, first = FashionMNIST(root=args.data_path, split="train"), ("search", "test").index(side)
        data.images, data.labels = data.images[first::2], data.labels[first::2]
        source = from_dataset(data, name=name)
        save_statistics(file, measure(source, extractor, batch_size=500, examples=0).sums(), extractor, name)
    return load_statistics(file, extractor)
