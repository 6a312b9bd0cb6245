"""Which images an extractor is for: those like its training images. What a result says where they are others."""

from collections.abc import Sequence
from dataclasses import asdict

from mgen.data.record import TrainedOn
from mgen.evaluation.extractors import EMBEDDED, Extractor, InceptionExtractor
from mgen.evaluation.fashion import CLASSIFIER, require_fashion
from mgen.evaluation.result import Facts
from mgen.evaluation.source import Source
from mgen.evaluation.statistics import made_with


def trained_on(extractor: Extractor) -> TrainedOn | None:
    """What an extractor says that it was trained on, if it does."""
    found = getattr(extractor, "trained_on", None)
    return found if isinstance(found, TrainedOn) else None


def extractor_facts(extractor: Extractor) -> Facts:
    """The extractor as a result states it."""
    facts: Facts = {"name": extractor.name, "sha256": extractor.sha256, "resize": extractor.resize}
    about = trained_on(extractor)
    return facts if about is None or extractor.name in EMBEDDED else facts | {"trained_on": asdict(about)}


def unsuited(extractor: Extractor, channels: int, side: int) -> str:
    """A warning where color images are seen by an extractor of Fashion-MNIST, which means nothing; "" otherwise."""
    if extractor.name not in EMBEDDED or channels == 1:
        return ""
    return (
        f"WARNING, {extractor.name} was trained on gray images of clothes of 32 px, and these are color images of {side} px, of which its "
        "features say nothing: use an extractor that fits them"
    )


def chosen_extractor(
    given: str | None, references: Sequence[str | None], pipe: object, name: str, how: str, *, told: bool = False
) -> str:
    """The extractor of an option; left out, fmnist-cnn for a model of Fashion-MNIST, and where a reference was made with it.

    Args:
        references: as given. name: of the model. how: what to give in its place. told: whether Fashion-MNIST was named otherwise.
    """
    if given is not None:
        return given
    if not told and not any(made_with(reference, "fmnist-cnn") for reference in references if reference is not None):
        require_fashion(pipe, name, f"--extractor, inception or {CLASSIFIER}, and {how}")
    return "fmnist-cnn"


def image_of(source: Source) -> tuple[int, int]:
    """Channels and longer side in pixels of the first image of a source."""
    image = source.read(0, 1).images[0]
    return image.shape[0], max(image.shape[1:])


def extractor_notes(extractor: Extractor, source: Source) -> list[str]:
    """What to know about numbers in an extractor's features: what it was trained on, and whether that fits the images."""
    name, about = extractor.name, trained_on(extractor)
    if name == InceptionExtractor.name:
        return []
    notes = [f"measured in the features of {name}: not an FID and not comparable with one"]
    if name in EMBEDDED:
        if not source.fashion:
            notes.append(f"{name} was trained on Fashion-MNIST, and nothing says that these images are like it")
        return notes
    if about is None:
        return [*notes, f"{name} does not say what it was trained on: its features may say little about these images"]
    if warning := _other_data(about, source):
        notes.insert(0, f"WARNING, {warning}")
    right = "" if about.accuracy is None else f", right on {about.accuracy:.0%} of {about.held_out:,} others"
    return [
        *notes,
        f"the extractor is a small classifier trained on {about.images:,} images of {len(about.data.class_names)} classes{right}: compare "
        "its numbers only with those of the same extractor, reference and number of images",
    ]


def _other_data(about: TrainedOn, source: Source) -> str:
    """In which way the extractor's training data are others than the images'; "" if they aren't, or it is not known."""
    data, names = about.data, tuple(source.class_names)
    if source.record is not None:
        if data.same(source.record):
            return ""
        if data.class_names and data.class_names == source.record.class_names:
            return f"the extractor was trained on other images of the same classes ({data}) than the model ({source.record})"
        return f"the extractor was trained on other data ({data}) than the model ({source.record})"
    if names and data.class_names and set(names) - set(data.class_names):
        return f"the extractor was trained on other data ({data}): its classes are not those of the images"
    return ""
