"""What the stages of a project do. Each can be interrupted and called again."""

from pathlib import Path

from mgen.data import ImageFolder, write_cache
from mgen.evaluation.tokenizer_check import check_tokenizer
from mgen.project.settings import Project
from mgen.project.tokenizer import open_tokenizer
from mgen.training.config import TrainConfig
from mgen.training.loop import train
from mgen.training.summary import read_lines
from mgen.utils.devices import check_device
from mgen.utils.reading import read_json
from mgen.utils.schema import build, schema

FEWEST = 4  # images of a check

# -- trainings ---------------------------------------------------------------------------------------------------------------


def train_classifiers(project: Project) -> str:
    """Train both classifiers, one after the other."""
    accuracies = []
    for number in (0, 1):
        train(project.classifier_config(number))
        accuracies.append(last_value(project.classifier(number), "val_accuracy"))
    told = " and ".join(f"{value:.1%}" for value in accuracies if value is not None)
    return f"accuracy on validation images: {told}" if told else ""


def train_tokenizer(project: Project) -> str:
    loss = last_value(train(project.tokenizer_config()).parent, "val_loss")
    return "" if loss is None else f"loss on validation images: {loss:.4g}"


def generator_config(project: Project) -> TrainConfig:
    """The settings of the generator's training; the tokenizer says what its tokens are."""
    return project.generator_config(open_tokenizer(project).spec.to_dict())


def train_generator(project: Project) -> str:
    model = train(generator_config(project))
    return f"mgen sample --model {model} samples from it"


def last_value(run: Path, name: str) -> float | None:
    """The last value of this name in a run's metrics.jsonl, None if there is none."""
    found = None
    for line in read_lines(run / "metrics.jsonl"):
        found = line.get(name, found)
    return found


# -- tokens ------------------------------------------------------------------------------------------------------------------


def write_caches(project: Project) -> str:
    """The tokens of the training and of the validation images."""
    tokenizer = open_tokenizer(project, check_device("auto"))
    flips, counts = project.settings.data.flip, {}
    for part, images in (("train", project.train_images), ("val", project.val_images)):
        if images is not None:
            assert isinstance(images, ImageFolder)
            counts[part] = len(images)
            write_cache(images, tokenizer, project.cache(part), flips=flips, source=f"{images.root}, {part}")
    return ", ".join(f"{count:,} images in cache/{part}" for part, count in counts.items())


# -- measuring ---------------------------------------------------------------------------------------------------------------


def check(project: Project) -> str:
    """How well the tokenizer reconstructs images it was not trained on; the training images, if no others are left."""
    images, about = project.val_images, "validation images"
    if images is None or len(images) < FEWEST:
        images, about = project.train_images, "training images"
    found = check_tokenizer(
        str(project.tokenizer),
        images,
        project.folder / "check",
        extractor=str(project.classifier(0) / "model") if project.conditional else None,
        num_images=project.settings.check.images,
        device=check_device("auto"),
        about=f"{about} of {project.settings.data.path}",
        command=f"mgen train --project {project.folder} --stage check",
    )
    return f"{found.sentence} See check/check.md"


def bad_tokenizer(project: Project) -> str:
    """The sentence of the check if the tokenizer is not good enough, else ""."""
    file = project.folder / "check" / "check.json"
    found = build(_Checked, read_json(file), f"{file}: ")
    return found.sentence if found.verdict == "not good enough" else ""


@schema(extra=True)
class _Checked:
    verdict: str
    sentence: str


def report(project: Project) -> str:
    from mgen.project.report import make_report

    return make_report(project)
