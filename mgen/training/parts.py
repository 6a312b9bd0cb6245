"""Parts that the tasks share: the model with its initial weights, frozen parameters, the data and its check."""

import difflib
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from mgen.training.config import TrainConfig, build_model
from mgen.training.data import TrainingData, make_dataset
from mgen.utils.errors import MgenError
from mgen.utils.files import read_json, read_tensors
from mgen.utils.modeling import Model


def make_model(config: TrainConfig) -> Model:
    """The model of the settings, with the weights of the folder `init` if it is given."""
    model = build_model(config.model)
    if config.init:
        load_weights(model, config.init)
    return model


def load_weights(model: Model, folder: str) -> None:
    """Load the weights of a saved model or pipeline, which must fit exactly."""
    path = Path(folder)
    if (path / "generator").is_dir() and (path / "model_index.json").is_file():
        path = path / "generator"
    files = sorted(path.glob("*.safetensors"))
    if not files or not (path / "config.json").is_file():
        raise MgenError(f"init: no saved model in {folder}: expected config.json and safetensors files")
    saved = read_json(path / "config.json").get("_class_name")
    if saved != type(model).__name__:
        raise MgenError(f"init: {folder} holds a {saved}, but this run trains a {type(model).__name__}")
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(read_tensors(file)[0])
    try:
        model.load_state_dict({k: v.float() for k, v in state.items()})
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[1].strip()[:160]
        raise MgenError(f"init: the weights in {folder} do not fit the model: {reason}") from error


def freeze(model: Model, prefixes: tuple[str, ...]) -> None:
    """Keep parameters whose names start with one of these prefixes out of training."""
    check_prefixes(model, prefixes, "optim.freeze")
    for name, parameter in model.named_parameters():
        if prefixes and name.startswith(prefixes):
            parameter.requires_grad_(False)


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


def make_data(config: TrainConfig, *, fingerprint: str | None = None) -> tuple[TrainingData, TrainingData | None]:
    """Training and validation data; for `fingerprint` see make_dataset."""
    train = make_dataset(config.data, split="train", fingerprint=fingerprint)
    assert train is not None  # make_dataset raises an error if there is none
    return train, make_dataset(config.data, split="test", fingerprint=fingerprint)


def check_images(data: TrainingData, network: Model, *, task: str) -> None:
    """Raise MgenError unless the data has images of the size that the network was built for."""
    batch = data.__getitems__([0])
    if "image" not in batch:
        raise MgenError(f"task {task!r} trains on images, but data.kind=cache holds tokens: use a folder or fmnist")
    channels, side = batch["image"].shape[1:3]
    wanted, size = network.config.in_channels, network.config.image_size
    if (channels, side) != (wanted, size):
        raise MgenError(
            f"the data has {channels}×{side}×{side} images, but the {type(network).__name__} is for {wanted}×{size}×{size}: set "
            "data.image_size and data.channels, or choose another model"
        )
