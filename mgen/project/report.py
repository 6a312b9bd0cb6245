"""The report of a project: samples of the finished model, measured against the training images, and what to compare that with.

The distance of the validation images to the training images is the lowest to expect. A Fréchet distance falls with the number of images,
so as many samples as there are validation images are measured as well, and only these two are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mgen.data import ImageFolder
from mgen.evaluation import evaluate
from mgen.evaluation.extractors import Extractor, make_extractor
from mgen.evaluation.feature_files import begin, remove_features
from mgen.evaluation.measure import Workers, measure
from mgen.evaluation.neighbors import nearest_rows
from mgen.evaluation.protocols import PUBLISHED, Protocol, find_protocol
from mgen.evaluation.result import Facts, Result
from mgen.evaluation.source import Batch, Source
from mgen.evaluation.sources import from_dataset
from mgen.evaluation.statistics import Reference, sha256_of
from mgen.pipelines.pipeline import MaskedPipeline, load
from mgen.pipelines.pixels import to_uint8
from mgen.project import digests
from mgen.project.settings import Project
from mgen.reports.write import write_page, write_report
from mgen.training.data import Renumbered
from mgen.utils import seeds
from mgen.utils.devices import check_device
from mgen.utils.errors import MgenError
from mgen.utils.files import atomic_path
from mgen.utils.grids import labeled_grid, spread

EXTRACTORS = ("classifier/first", "classifier/second")  # as results call them
BATCH = 50  # images sampled at a time
SHOWN = 100  # samples in the grid of a model that is not measured


def make_report(project: Project) -> str:
    """Write the report into the project's folder; returns its main numbers in a line."""
    pipe = load(project.folder / "generator" / "model", device=check_device("auto")).optimize()
    labels = labels_like(project.train_images, project.settings.report.images)
    samples = Samples(pipe, labels if pipe.conditional else [None] * len(labels))
    out = project.folder / "report"
    if not project.conditional:
        return _only_grid(samples, out)
    measuring = Measuring.of(project, pipe.device)
    val = validation_images(project, len(labels))
    count = 0 if val is None else val.count
    folders = [out / "samples"]
    first = measuring.result(samples.source(len(labels)), folders[0])
    if val is not None and count >= 2:
        folders += [out / f"samples-{count}", out / "validation"]
        fewer = measuring.result(samples.source(count, plain=True), folders[1])
        floor = measuring.result(val, folders[2])
    write_page(
        [str(folder) for folder in folders],
        out / "report.html",
        title=f"{project.folder.name}: samples",
        allow_mixed=True,
    )
    name = next(iter(name for name in first["metrics"] if name.startswith("Fréchet")))
    accuracy = next(
        (f", class accuracy {v:.1%}" for k, v in first["metrics"].items() if k.startswith("class accuracy")), ""
    )
    if len(folders) == 1:
        return f"{name} of {len(labels)} samples: {first['metrics'][name]:.2f}{accuracy}; see report/report.html"
    return (
        f"{name} of {count} samples: {fewer['metrics'][name]:.2f}, of as many validation images: {floor['metrics'][name]:.2f}{accuracy}; "
        "see report/report.html"
    )


def labels_like(images: ImageFolder, count: int, seed: int = 0) -> list[int]:
    """Class ids of `count` images, each class as frequent as in the data, in random order."""
    known = images.labels.sort().values
    rows = torch.arange(count) * len(known) // count
    return known[rows][torch.randperm(count, generator=seeds.generator(seed, "report"))].tolist()


def validation_images(project: Project, most: int) -> Source | None:
    """At most so many validation images, evenly spread, since classes follow each other; their ids are those of the training images."""
    if project.val_images is None:
        return None
    val = Renumbered(project.val_images, project.train_images.class_names)
    return from_dataset(val, name="validation images", rows=spread(len(val), most))


class Samples:
    """Samples of a pipeline by index; they are made once and kept."""

    def __init__(self, pipe: MaskedPipeline, labels: Sequence[int | None], seed: int = 0) -> None:
        self.pipe, self.labels, self.seed = pipe, labels, seed
        self.images: dict[int, Tensor] = {}

    def batch(self, rows: range) -> Tensor:
        """The images (B, C, H, W) of these indices, uint8."""
        missing = [i for i in rows if i not in self.images]
        for start in range(0, len(missing), BATCH):
            some = missing[start : start + BATCH]
            made = self.pipe(
                [self.labels[i] for i in some], seed=self.seed, indices=some, output_type="raw", progress=False
            ).images
            self.images |= dict(zip(some, to_uint8(made).cpu()))
        return torch.stack([self.images[i] for i in rows])

    def source(self, count: int, *, plain: bool = False) -> Source:
        """The first `count` of them; `plain`: described like the images of a data set, for a table with one."""

        def read(start: int, stop: int) -> Batch:
            labels = torch.tensor([-1 if (label := self.labels[i]) is None else label for i in range(start, stop)])
            return Batch(images=self.batch(range(start, stop)), labels=labels)

        about: Facts = {"kind": "data", "data": "samples", "quantization": "round"}
        if not plain:
            about = {
                "kind": "model",
                "model": "generator/model",
                "seed": self.seed,
                "labels": "as frequent as in the data",
                "dtype": "fp32",
                "sampler": self.pipe.sampler.settings,
                "quantization": "round",
                "image_size": None,
            }
        return Source(count=count, about=about, read=read, class_names=self.pipe.class_names, ahead=False)


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What all results of a report have in common."""

    extractor: Extractor
    classifier: Extractor
    protocol: Protocol
    reference: Reference
    training: Source
    device: torch.device
    inputs: str  # digests of the model and the images, and how the images are split

    @classmethod
    def of(cls, project: Project, device: torch.device) -> "Measuring":
        extractor, classifier = (make_extractor(str(project.classifier(i) / "model"), device=device) for i in (0, 1))
        extractor.name, classifier.name = EXTRACTORS
        training = from_dataset(project.train_images, name="training images")
        measured = measure(training, extractor, examples=0, workers=Workers(device=device))
        mean, cov = measured.sums().finish()
        reference = Reference(
            mean=mean,
            cov=cov,
            name="training images",
            count=measured.count,
            sha256=sha256_of(mean, cov),
            features=measured.spread(PUBLISHED),
        )
        return cls(
            extractor=extractor,
            classifier=classifier,
            protocol=find_protocol(None, extractor=extractor.name),
            reference=reference,
            training=training,
            device=device,
            inputs=" ".join(
                (digests.data_digest(project), *digests.generator_digest(project).values(), str(project.settings.data))
            ),
        )

    def _begin(self, folder: Path, source: Source) -> list[Path]:
        """Begin to measure, or go on after an interruption; features of another model or of other images are removed first."""
        about = {"classifier": self.classifier.sha256, "inputs": self.inputs}
        try:
            return begin(folder, source, self.extractor, self.protocol.id, **about)
        except MgenError:
            remove_features(folder)
            return begin(folder, source, self.extractor, self.protocol.id, **about)

    def result(self, source: Source, out: Path) -> Result:
        """Measure images and write the result into a folder; features are kept there until it is done."""
        made = self._begin(out / "features", source)
        measured = measure(
            source,
            self.extractor,
            classifier=self.classifier,
            folder=out / "features",
            made=made,
            workers=Workers(device=self.device),
        )
        found = evaluate.result(
            measured,
            source,
            self.extractor,
            protocol=self.protocol,
            reference=self.reference,
            classifier=self.classifier,
            bootstrap=100,
        )
        found["command"] = "mgen train --project … --stage report"
        if source.about["kind"] == "model":
            found["nearest"] = nearest_rows(measured, self.training, self.extractor)
        examples, labels = measured.examples()
        write_report(out, found, examples, labels.tolist())
        remove_features(out / "features")
        return found


def _only_grid(samples: Samples, out: Path) -> str:
    """A grid of samples, of a model that nothing measures: without classes there is no classifier."""
    count = min(SHOWN, len(samples.labels))
    grid = labeled_grid(samples.batch(range(count)), [-1] * count, [])
    with atomic_path(out / "samples.png") as path:
        grid.save(path)
    return "samples in report/samples.png; without classes there is no classifier to measure them with"
