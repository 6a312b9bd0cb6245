"""Digests of what the stages of a project read, by which they tell whether it has changed."""

from mgen.data import ImageFolder
from mgen.project.settings import Project
from mgen.project.tokenizer import open_tokenizer
from mgen.training.config import TokenizerObjectiveConfig
from mgen.zoo import resolve
from mgen.zoo.identity import identity


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
