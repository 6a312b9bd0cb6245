"""Settings that follow from the data: where a configuration leaves them out, the data say what they are.

| setting | of a folder of images |
|---|---|
| `data.image_size` | the model's, if it says so; else of a classifier 32 px, or 64 if most images are larger than 40 |
| `data.channels` | the model's, if it says so; else 1 if all images are gray, else 3 |
| `model` of a classifier | image size, channels, classes and widths |
| `steps: {passes: P, least: A, most: B}` | P passes over the images, but at least A and at most B steps |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from mgen.data import FASHION_CLASSES, ImageData, ImageFolder, TarImages
from mgen.data.listing import class_folders
from mgen.data.look import MOST, Look, look_at
from mgen.training.config import DataConfig, Steps
from mgen.training.data import make_dataset
from mgen.utils.config import Settings, merge
from mgen.utils.errors import MgenError, shown
from mgen.utils.modeling import RENAMED
from mgen.utils.schema import build, schema

SMALL, LARGE = 32, 64  # sides of the images that classifiers are made for, in pixels
MOST_SMALL = 40  # largest shorter side that is taken for small
MOST_WIDTH = 128  # channels of a classifier's stages
LAST_SIDE = 8  # pixels of its last stage
TOKENS = "data.kind=cache holds tokens, but this task trains on images: use a folder, a webdataset or fmnist"
Passes = Annotated[float, Field(gt=0, le=10**6)]


@schema
class StepRule:
    """A number of steps that follows from the data: `passes` over the images, between bounds."""

    passes: Passes
    least: Steps = 1
    most: Steps = 10**9

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise MgenError(f"least is {self.least}, most {self.most}: least must not be above most")

    def steps(self, images: int, batch_size: int) -> int:
        """Steps of batches of `batch_size` images."""
        return min(self.most, max(self.least, -(-int(self.passes * images) // batch_size)))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the data say: number of classes, side in pixels and channels of the images as they are read."""

    classes: int
    side: int
    channels: int


FASHION = Found(classes=len(FASHION_CLASSES), side=32, channels=1)


def fill_from_data(settings: Settings) -> Settings:
    """Settings of a training with what follows from its data filled in; unchanged where nothing is missing.

    Raises:
        MgenError: the data cannot be read, or are none for this task.
    """
    settings = _sides_of_model(settings)
    model, task, data = (settings.get(key) for key in ("model", "task", "data"))
    rule = settings["steps"] if isinstance(settings.get("steps"), dict) else None
    fill = FILLS.get(task) if isinstance(task, str) else None
    if fill is not None and (
        not isinstance(model, dict) or not isinstance(model.get("class"), str) or not fill.lacks(model)
    ):
        fill = None
    if (rule is None and fill is None) or not isinstance(data, dict | None):
        return settings
    config = build(DataConfig, data or {}, "data.")
    if task == "classifier":
        check_classes(config)
    # What Fashion-MNIST is like is known without reading it.
    images = make_dataset(config, split="train") if rule is not None or config.kind != "fmnist" else None
    if fill is not None:
        assert isinstance(model, dict)  # seen above
        found = FASHION if config.kind == "fmnist" else _found(images, data or {}, fill)
        settings = {**settings, "model": {**fill.settings(found, model), **model}}
        if isinstance(images, ImageFolder | TarImages):
            sides = {"image_size": found.side, "channels": found.channels}
            settings = merge(settings, {"data": sides | (data or {})})
    if rule is not None and images is not None:
        size = settings.get("batch_size", 64)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise MgenError(f"'batch_size' is {shown(size)}: expected a whole number, at least 1")
        settings = {**settings, "steps": build(StepRule, rule, "steps.").steps(len(images), size)}
    return settings


def _sides_of_model(settings: Settings) -> Settings:
    """Settings with the image size and channels of the data as the model gives them, where only the model does."""
    model, data = settings.get("model"), settings.get("data")
    if not isinstance(model, dict) or "class" not in model:
        return settings
    if not isinstance(data, dict) or data.get("kind") not in ("folder", "webdataset"):
        return settings
    given = {"image_size": model.get("image_size"), "channels": model.get("in_channels")}
    return merge(settings, {"data": {key: value for key, value in given.items() if type(value) is int} | data})


def _found(images: ImageData | None, data: Settings, fill: "Fill") -> Found:
    """What the data say; of a folder, a look at the files where `data` doesn't."""
    if isinstance(images, ImageFolder | TarImages):
        seen = look_at(images.files if isinstance(images, ImageFolder) else images.samples(MOST))
        side, channels = data.get("image_size", fill.side(seen)), data.get("channels", seen.channels)
        return Found(classes=images.num_classes, side=side, channels=channels)
    raise MgenError(TOKENS)


# -- by task ---------------------------------------------------------------------------------------------------------------


def check_classes(config: DataConfig) -> None:
    """Raise MgenError unless a folder has classes to tell apart, or for a cache, which has no images."""
    if config.kind == "cache":
        raise MgenError(TOKENS)
    if config.kind == "webdataset" and config.classes == "none":
        raise MgenError("a classifier is trained to tell classes apart, but data.classes is none: leave it out")
    if config.kind != "folder" or config.path is None:
        return
    names = [] if config.classes == "none" else class_folders(config.path)
    if len(names) < 2:
        has = f"has one class folder, {names[0]}" if names else "has no class folders"
        raise MgenError(
            f"a classifier is trained to tell classes apart, and {config.path} {has}: make one folder per class, at least two; images "
            "without classes are measured with --extractor inception (--inception-weights FILE), or with a classifier of similar images"
        )


def classifier_side(seen: Look) -> int:
    """The side in pixels of the images that a classifier is made for."""
    return SMALL if seen.side <= MOST_SMALL else LARGE


def classifier_settings(found: Found, model: Settings) -> Settings:
    """Of an ImageClassifier: stages that halve the side down to 8 pixels."""
    halvings = max(0, (found.side // LAST_SIDE).bit_length() - 1)
    first = 24 if found.side <= SMALL else 16  # the first stages cost most
    return {
        "image_size": found.side,
        "in_channels": found.channels,
        "num_classes": found.classes,
        "widths": [min(MOST_WIDTH, first << i) for i in range(min(halvings, 6) + 1)],
    }


@dataclass(frozen=True, kw_only=True)
class Fill:
    """How the settings of a task's model follow from the data.

    model: name of the class whose settings these are. keys: settings of the model that the data tell. settings: their values, from what
    the data say and the settings that are given. side: of the images as they are read.
    """

    model: str
    keys: tuple[str, ...]
    settings: Callable[[Found, Settings], Settings]
    side: Callable[[Look], int]

    def lacks(self, model: Settings) -> bool:
        """Whether this is a model of the class, and one of the keys is left out."""
        return RENAMED.get(model["class"], model["class"]) == self.model and not set(self.keys) <= model.keys()


FILLS = {
    "classifier": Fill(
        model="ImageClassifier",
        keys=("image_size", "in_channels", "num_classes", "widths"),
        settings=classifier_settings,
        side=classifier_side,
    )
}
