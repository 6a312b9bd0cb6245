"""A project's folder: its settings files, and the trainings that they describe."""

import functools
import os
from collections.abc import Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mgen.data import ImageData, ImageFolder
from mgen.training.config import DataConfig, TrainConfig, train_config
from mgen.training.data import make_dataset
from mgen.training.from_data import fill_from_data
from mgen.utils.config import Settings, merge, read_config
from mgen.utils.errors import MgenError, shown
from mgen.utils.schema import Count, PathText, Rate, Size, build, schema
from mgen.zoo import PROJECT

FILE = PROJECT
STAGES = ("classifier", "tokenizer", "check", "cache", "generator", "report")


@schema
class ProjectData:
    """The images of a project; keys as of `data` in a training."""

    path: PathText
    val_path: PathText | None = None
    held_out: Rate = 0.0
    classes: Literal["folders", "none"] = "folders"
    image_size: Size
    channels: Literal[1, 3] = 3
    flip: bool = False
    keep: bool = False
    workers: Annotated[int, Field(ge=0, le=256)] = 0


@schema
class CheckSettings:
    images: Count = 1000


@schema
class ReportSettings:
    images: Annotated[int, Field(ge=2, le=10**6)] = 1000


@schema
class ProjectSettings:
    """The contents of project.yaml."""

    data: ProjectData
    tokenizer: PathText | None = None
    check: CheckSettings = field(default_factory=CheckSettings)
    report: ReportSettings = field(default_factory=ReportSettings)


class Project:
    """The project in a folder.

    Raises:
        MgenError: there is no project.yaml, or something in it is wrong.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        file = Path(folder) / FILE
        if not file.is_file():
            raise MgenError(
                f"{folder} holds no {FILE}: mgen init --data FOLDER --out {folder} makes a project of a folder of images"
            )
        self.settings = build(ProjectSettings, read_config(file), f"{file}: ")

    @property
    def data(self) -> dict[str, Any]:
        """The `data` section of a training on the images."""
        values = asdict(self.settings.data)
        for key in ("path", "val_path"):
            if values[key] is not None:
                values[key] = str(self.folder / values[key])  # an absolute path stays
        if values["val_path"] is not None:
            values["held_out"] = 0.0
        return {"kind": "folder", **values}

    @functools.cached_property
    def train_images(self) -> ImageFolder:
        found = self._images("train")
        assert isinstance(found, ImageFolder)
        return found

    @functools.cached_property
    def val_images(self) -> ImageData | None:
        return self._images("test")

    def _images(self, split: str) -> ImageData | None:
        return make_dataset(build(DataConfig, self.data, f"{FILE}: data."), split=split)

    @property
    def conditional(self) -> bool:
        return self.train_images.num_classes > 1

    @property
    def tokenizer(self) -> Path | str:
        """The folder or name of the tokenizer, trained by the project or before."""
        given = self.settings.tokenizer
        if given is None:
            return self.folder / "tokenizer" / "model"
        inside = self.folder / given
        return inside if inside.is_dir() else given

    @property
    def stages(self) -> Sequence[str]:
        """The stages of this project, in order: no classifier of a single class, no training of a given tokenizer."""
        kept = {"classifier": self.conditional, "tokenizer": self.settings.tokenizer is None}
        return [stage for stage in STAGES if kept.get(stage, True)]

    def classifier(self, number: int) -> Path:
        """The folder of a run of the classifier, 0 or 1."""
        return self.folder / "classifier" / ("first", "second")[number]

    # -- trainings -----------------------------------------------------------------------------------------------------------

    def classifier_config(self, number: int) -> TrainConfig:
        data = {key: value for key, value in self.data.items() if key != "image_size"}
        settings = self._read("classifier", "classifier")
        seed = settings.get("seed", 0)
        if not isinstance(seed, int):
            raise MgenError(f"{self.folder / 'classifier.yaml'}: seed is {shown(seed)}: expected a whole number")
        own = {"output": str(self.classifier(number)), "seed": seed + number}
        return self._config("classifier", settings, data, own)

    def tokenizer_config(self) -> TrainConfig:
        settings = self._read("tokenizer", "tokenizer")
        objective = settings.get("objective")
        own: Settings = {"output": str(self.folder / "tokenizer")}
        if (
            isinstance(objective, dict)
            and objective.get("perceptual")
            and "perceptual_model" not in objective
            and self.conditional
        ):
            own["objective"] = {"perceptual_model": str(self.classifier(1) / "model")}
        return self._config("tokenizer", settings, self.data, own)

    def generator_config(self, tokens: Settings) -> TrainConfig:
        """The training of the generator on tokens of this format, see TokenSpec."""
        settings = self._read("generator", "generator")
        cached = {"kind": "cache", "path": str(self.cache("train")), "flip": self.settings.data.flip}
        if self.val_images is not None:
            cached["val_path"] = str(self.cache("val"))
        model = settings.get("model")
        if isinstance(model, str):
            settings["model"] = {"name": model, "tokens": tokens}
        elif isinstance(model, dict) and "tokens" not in model:
            settings["model"] = {"tokens": tokens, **model}
        own = {"output": str(self.folder / "generator"), "objective": {"tokenizer": str(self.tokenizer)}}
        return self._config("generator", settings, cached, own)

    def cache(self, part: str) -> Path:
        """The folder of the token cache of "train" or "val"."""
        return self.folder / "cache" / part

    def _read(self, stage: str, task: str) -> Settings:
        file = self.folder / f"{stage}.yaml"
        settings = read_config(file)
        if settings.get("task", task) != task:
            raise MgenError(f"{file}: task is {shown(settings['task'])}: the {stage} of a project has task: {task}")
        return {**settings, "task": task}

    def _config(self, stage: str, settings: Settings, data: Settings, own: Settings) -> TrainConfig:
        """The checked settings of a training; what the file says about the data goes before project.yaml."""
        section = settings.get("data")
        if not isinstance(section, dict | None):
            raise MgenError(f"{self.folder / stage}.yaml: data is {shown(section)}: expected a mapping")
        kept = {
            key: value
            for key, value in (section or {}).items()
            if key not in ("kind", "path", "val_path", "held_out", "classes")
        }
        try:
            return train_config(fill_from_data(merge({**settings, "data": {**data, **kept}}, own)))
        except MgenError as error:
            raise MgenError(f"{self.folder / stage}.yaml: {error}") from error
