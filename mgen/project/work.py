"""What the stages of a project do, and digests of what they read. Each can be interrupted and called again."""

from pathlib import Path

from mgen.data import ImageFolder, write_cache
from mgen.evaluation.tokenizer_check import check_tokenizer
from mgen.pipelines.saved import load_tokenizer
from mgen.project.settings import Project
from mgen.tokenizers.base import Tokenizer
from mgen.training.config import TokenizerObjectiveConfig, TrainConfig
from mgen.training.loop import train
from mgen.training.summary import read_lines
from mgen.utils.devices import check_device
from mgen.utils.errors import MgenError
from mgen.utils.reading import read_json
from mgen.utils.schema import build, schema
from mgen.zoo import resolve
from mgen.zoo.identity import identity

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


def open_tokenizer(project: Project, device: str = "cpu") -> Tokenizer:
    """The project's tokenizer; MgenError unless it is for its images."""
    tokenizer = load_tokenizer(project.tokenizer, device=device)
    data = project.settings.data
    own, images = (tokenizer.config.in_channels, tokenizer.config.image_size), (data.channels, data.image_size)
    if own != images:
        raise MgenError(
            f"the tokenizer in {project.tokenizer} is for images of {own[1]} px and {own[0]} channels, but data of project.yaml has "
            f"image_size {images[1]} and channels {images[0]}: change these, or choose another tokenizer"
        )
    return tokenizer


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


# -- digests -----------------------------------------------------------------------------------------------------------------


def data_digest(project: Project) -> str:
    """Of names and sizes of all images, whatever part they are in."""
    parts = [images for images in (project.train_images, project.val_images) if isinstance(images, ImageFolder)]
    return " ".join(images.record.digest for images in parts)


def perceptual_digest(project: Project) -> dict[str, str]:
    objective = project.tokenizer_config().objective
    assert isinstance(objective, TokenizerObjectiveConfig)
    if not objective.perceptual or objective.perceptual_model != str(project.classifier(1) / "model"):
        return {}
    return {"the second classifier": identity(objective.perceptual_model).model_sha256}


def extractor_digest(project: Project) -> dict[str, str]:
    if not project.conditional:
        return {}
    return {"the classifiers": " ".join(identity(project.classifier(i) / "model").model_sha256 for i in (0, 1))}


def tokenizer_digest(project: Project) -> dict[str, str]:
    return {"the tokenizer": identity(resolve(project.tokenizer)).model_sha256}


def encoder_digest(project: Project) -> dict[str, str]:
    """Of what makes the tokens: another decoder leaves them as they are."""
    return {"the tokenizer": open_tokenizer(project).fingerprint()}


def generator_digest(project: Project) -> dict[str, str]:
    return {"the generator": identity(project.folder / "generator" / "model").model_sha256}


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
