"""Weights to start from: those of a model of the same architecture, which may differ in classes, grid, vocabulary or channels."""

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mgen.generators import Cascade, Generator, build_model, model_config
from mgen.generators.presets import override
from mgen.pipelines.saved import INDEX, part_folder
from mgen.tokenizers.base import Tokenizer
from mgen.utils.changes import Change, changes, plain, told
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.fitting import Fitted, fit
from mgen.utils.modeling import RENAMED, Model
from mgen.utils.reading import check_path, read_json, read_tensors
from mgen.zoo import recipe, resolve
from mgen.zoo.recipes import recipe_names

# Settings that follow from the data: rows of tensors depend on them, see Model.data_rows.
OF_DATA = (
    *("classes.count", "classes.rows", "classes.row", "num_classes", "in_channels", "position_side"),
    *("tokens.length", "tokens.grid", "tokens.vocab_size", "tokens.channels"),
)
OF_TOKENIZER = ("vocab_size", "global_vocab_size", "levels")
FREE = ("dropout", "image_size", "scale", "latents_mean", "latents_std")  # ends of settings that no tensor depends on
# As save_pretrained writes them, also in shards; a folder may hold other tensors too, such as statistics.
WEIGHTS = re.compile(r"diffusion_pytorch_model(-\d{5}-of-\d{5})?\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where weights came from, and what of them did not fit."""

    folder: Path
    fitted: Fitted

    def lines(self) -> list[str]:
        """As text: a line for each kind of rows that were not copied."""
        return [f"init: {line}" for line in self.fitted.lines()]

    def to_dict(self) -> Settings:
        """As written to init.json."""
        changes = [change._asdict() for change in self.fitted.changes]
        return {
            "from": str(self.folder),
            "copied": len(self.fitted.tensors) - len({c["tensor"] for c in changes}),
            "changes": changes,
        }


def create_model(
    name: str | Path | Settings, *, pretrained: str | Path | None = None, **overrides: object
) -> Generator | Cascade:
    """A generator: `create_model("mar-b", head={"type": "channels"}, trunk={"dropout": 0.0})`, with random weights.

    Args:
        name: of a model (`list_models()`), a YAML file, or a whole configuration as in config.json; entries of diffusers, such as
            `_class_name`, are left out. overrides: sections of the configuration, see `model_config`.
        pretrained: name or folder of a model of the same architecture, whose weights it gets. Classes, grid, vocabulary and channels
            of tokens may be others: what does not fit starts anew or, positions, is interpolated, with a warning that lists it.

    Raises:
        MgenError: an unknown name or setting, or there are no such weights, which is found before the network is built.
    """
    if pretrained is not None:
        pretrained = saved_weights(pretrained, "transformer")[0]
    if isinstance(name, Mapping):
        own = {key: value for key, value in name.items() if not str(key).startswith("_")}
        model = build_model(override(own, overrides))
    else:
        model = build_model(model_config(name, **overrides))
    if pretrained is not None:
        start = load_weights(model, pretrained)
        if lines := start.lines():
            warnings.warn("; ".join(lines), stacklevel=2)
        model.eval()
    return model


def load_weights(model: Model, name: str | Path) -> Start:
    """Load the weights of a saved model of the same architecture.

    Args:
        name: of a model of `mgen zoo` that is on this machine, or a folder: of a pipeline, of a network, or the output of a training.

    Raises:
        MgenError: there is no model, its architecture is another (the same weights would be another function), or its files are damaged.
    """
    folder, files = saved_weights(name, "tokenizer" if isinstance(model, Tokenizer) else "transformer")
    old = saved_model(model, folder)
    if other := list(other_architecture(plain(old.config), plain(model.config))):
        raise MgenError(
            f"init: {folder} holds a model of another configuration: {told(other)}; set model.… as it was, or start from other weights"
        )
    found = {k: v.float() if v.is_floating_point() else v for file in files for k, v in read_tensors(file)[0].items()}
    try:
        fitted = fit(found, old.data_rows(), model.state_dict(), model.data_rows())
        model.load_state_dict(dict(fitted.tensors))
    except (MgenError, RuntimeError) as error:
        raise MgenError(f"init: the weights in {folder} do not fit the model: {first_line(error)}") from error
    if bad := next((name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()), None):
        raise MgenError(f"init: weight {bad!r} in {folder} holds NaN or infinity: the model is damaged or diverged")
    return Start(folder=folder, fitted=fitted)


def fit_weights(model: Model, source: Model, what: str) -> Fitted:
    """Give a model the weights of another of the same architecture; MgenError, that begins with `what`, if it has another."""
    if type(model) is not type(source):
        raise MgenError(f"{what} is a {type(model).__name__}, this one is a {type(source).__name__}")
    if other := list(other_architecture(plain(source.config), plain(model.config))):
        raise MgenError(f"{what} has another configuration: {told(other)}")
    weights = {k: v.to("cpu", torch.float32) if v.is_floating_point() else v for k, v in source.state_dict().items()}
    fitted = fit(weights, source.data_rows(), model.state_dict(), model.data_rows())
    model.load_state_dict(dict(fitted.tensors))
    return fitted


def saved_weights(name: str | Path, part: str) -> tuple[Path, list[Path]]:
    """The folder of a network, see `weights_folder`, and its files of weights; MgenError if there are none."""
    folder = weights_folder(name, part)
    files = sorted(file for file in folder.glob("*.safetensors") if WEIGHTS.fullmatch(file.name))
    if not files or not (folder / "config.json").is_file():
        raise MgenError(f"init: no saved model in {folder}: expected config.json and safetensors files")
    return folder, files


def weights_folder(name: str | Path, part: str) -> Path:
    """The folder of a network: of a `part` of the pipeline that is meant, or of a network saved alone; see `load_weights`."""
    try:
        folder = find_model(name)
    except MgenError as error:
        raise MgenError(f"init: no saved model {shown(str(name), 200)}: {error}") from error
    inside = folder / "model"  # of the output of a training
    if not (folder / INDEX).is_file() and ((inside / INDEX).is_file() or (inside / "config.json").is_file()):
        folder = inside
    if (folder / INDEX).is_file():
        folder = part_folder(folder, part)
    return folder


def find_model(name: str | Path) -> Path:
    """The folder of a model: as `resolve`, and by the name of a recipe whose model is on this machine."""
    check_path(name, "model")
    if not Path(name).is_dir() and str(name) in recipe_names():
        folder = recipe(str(name)).folder
        if folder is not None:
            return folder
    return resolve(name)


def saved_model(model: Model, folder: Path) -> Model:
    """A model of the same class as `model` by the configuration in a folder, without values (on the meta device)."""
    file = folder / "config.json"
    config = read_json(file)
    if not isinstance(config, dict):
        raise MgenError(f"init: {file} holds {shown(config)}: expected the configuration of a model")
    name = config.get("_class_name")
    if (RENAMED.get(name, name) if isinstance(name, str) else name) != type(model).__name__:
        raise MgenError(f"init: {folder} holds a {shown(name)}, but this run trains a {type(model).__name__}")
    try:
        with torch.device("meta"):
            return type(model).from_config({k: v for k, v in config.items() if not k.startswith("_")})
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise MgenError(f"init: {file} is no configuration of a {type(model).__name__}: {first_line(error)}") from error


def other_architecture(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """What differs between two configurations beside classes, grid, vocabulary and channels of tokens."""
    found = list(changes(old, new))
    channels = any(key.endswith("tokens.channels") for key, *_ in found)
    for key, was, now in found:
        of_data = any(key == name or key.endswith(f".{name}") for name in OF_DATA) or key in OF_TOKENIZER
        if channels and key.endswith("head.order"):  # an order of other channels
            continue
        if not of_data and not key.endswith(FREE):
            yield key, was, now
