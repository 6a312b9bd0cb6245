"""What the tasks share: the model with its initial weights, frozen parameters, the data and its check."""

import difflib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import nn

from mgen.data import ImageData, ImageFolder, TarImages, record_of
from mgen.data.record import TrainedOn, write_trained_on
from mgen.pipelines.pretrained import Start, load_weights
from mgen.training.config import TrainConfig, build_model
from mgen.training.data import Renumbered, make_dataset
from mgen.training.model_settings import model_settings
from mgen.training.objective import Objective
from mgen.utils.errors import MgenError, naming
from mgen.utils.modeling import Model


class Task:
    """What the training loop needs to know about what it trains."""

    objective: Objective[Any]  # the model and its loss
    train_data: ImageData
    val_data: ImageData | None
    validated: tuple[int, dict[str, float]] = (0, {})  # the step of the last validation, and what it gave
    start: Start | None  # the weights that the run started from, None: random ones
    tokens_fingerprint: str | None = None  # of the tokenizer that makes the tokens, or made the cache

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.model = build_model(model_settings(config))
        self.start: Start | None = load_weights(self.model, config.init) if config.init else None

    def load_data(self, *, fingerprint: str | None = None) -> None:
        """Open the data, for `fingerprint` see make_dataset, and freeze what is not trained."""
        train = make_dataset(self.config.data, split="train", fingerprint=fingerprint)
        assert train is not None  # make_dataset raises an error if there is none
        self.train_data = train
        with naming("data.val_path") if self.config.data.val_path else nullcontext():
            self.val_data = make_dataset(self.config.data, split="test", fingerprint=fingerprint)
        prefixes = self.config.optim.freeze
        check_prefixes(self.model, prefixes, "optim.freeze")
        for name, parameter in self.model.named_parameters():
            if name.startswith(prefixes):
                parameter.requires_grad_(False)

    def check_classes(self, count: int, key: str) -> None:
        """Raise MgenError unless the data has as many classes as the model; number the classes of the validation data likewise.

        Args:
            count: classes of the model. key: the setting that says so.
        """
        data = self.train_data
        if data.num_classes != count:
            raise MgenError(
                f"the data has {data.num_classes} class{'es' * (data.num_classes != 1)}, but {key} is {count}: "
                f"set {key}={data.num_classes}, or leave it out"
            )
        if self.val_data is not None and list(self.val_data.class_names) != list(data.class_names):
            self.val_data = Renumbered(self.val_data, data.class_names)

    def preview(self, device: torch.device, title: str) -> Image | None:
        """A picture that shows what the model has learned, with a title above it; None if there can be none."""
        return None

    def export(self, folder: Path) -> None:
        """Write the model as users load it, and what it was trained on."""
        self.model.save_pretrained(folder)
        self.write_data(folder)

    def write_data(self, folder: Path, accuracy: float | None = None) -> None:
        """Write what the model in this folder was trained on, if the data tell."""
        if (record := record_of(self.train_data)) is not None:
            held_out = 0 if self.val_data is None else len(self.val_data)
            write_trained_on(
                folder, TrainedOn(data=record, images=len(self.train_data), held_out=held_out, accuracy=accuracy)
            )

    def export_adapter(self, folder: Path) -> None:
        """Write the adapters of a training with `lora` alone."""
        raise NotImplementedError


def check_prefixes(model: nn.Module, prefixes: tuple[str, ...], where: str) -> None:
    """Raise MgenError for a prefix with which no parameter's name starts."""
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            near = difflib.get_close_matches(prefix, names, n=3, cutoff=0.0)
            modules = sorted({name.split(".")[0] for name in names})
            raise MgenError(
                f"{where} has {prefix!r}, but no parameter's name starts with it: the nearest are {', '.join(near)}; all names start "
                f"with one of {', '.join(modules)}"
            )


def check_images(data: ImageData, network: Model, *, task: str) -> None:
    """Raise MgenError unless the data has images of the size that the network was built for."""
    if isinstance(data, ImageFolder | TarImages):  # before one is read
        channels, side = data.channels, data.image_size
    else:
        batch = data.__getitems__([0])
        if "image" not in batch:
            raise MgenError(f"task {task!r} trains on images, but data.kind=cache holds tokens: use a folder or fmnist")
        channels, side = batch["image"].shape[1:3]
    wanted, size = network.config.in_channels, network.config.image_size
    if (channels, side) != (wanted, size):
        raise MgenError(
            f"the data has {channels}×{side}×{side} images, but the {type(network).__name__} is for {wanted}×{size}×{size}: set "
            "data.image_size and data.channels, or leave image_size and in_channels of the model out"
        )
    data.__getitems__([0])  # can be read
