"""Weights to start from (`init=FOLDER`): those of a saved model of the same configuration, or of another number of classes."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgen.evaluation.cnn import ImageClassifier
from mgen.generators import Cascade, Generator
from mgen.pipelines.saved import INDEX, part_folder
from mgen.training.settings import changes, plain, told
from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.modeling import RENAMED, Model
from mgen.utils.reading import read_json, read_tensors

# What may differ: it changes neither what the weights mean nor, but for classes, their shapes.
COUNTS = ("classes.count", "num_classes")
FREE = ("dropout", "image_size", "scale")


def load_weights(model: Model, folder: str) -> None:
    """Load the weights of a saved model or pipeline; with a warning all but the class table, if the number of classes is another.

    Raises:
        MgenError: there is no model, its configuration is another (the same weights would be another function), or they don't fit.
    """
    path = Path(folder)
    if (path / INDEX).is_file():
        path = part_folder(path, "transformer")
    files = sorted(path.glob("*.safetensors"))
    if not files or not (path / "config.json").is_file():
        raise MgenError(f"init: no saved model in {folder}: expected config.json and safetensors files")
    saved = saved_config(model, path)
    different = list(changes(saved, plain(model.config)))
    counts = [c for c in different if c[0] in COUNTS]
    if other := [c for c in different if c[0] not in COUNTS and not c[0].endswith(FREE)]:
        raise MgenError(
            f"init: {folder} holds a model of another configuration: {told(other)}; set model.… as it was, or start from other weights"
        )
    found = {k: v.float() if v.is_floating_point() else v for file in files for k, v in read_tensors(file)[0].items()}
    if counts:
        found = with_new_classes(model, found, folder)
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        reason = (str(error).splitlines() + [""])[1].strip()[:160] or first_line(error)
        raise MgenError(f"init: the weights in {folder} do not fit the model: {reason}") from error
    if bad := next((name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()), None):
        raise MgenError(f"init: weight {bad!r} in {folder} holds NaN or infinity: the model is damaged or diverged")
    if counts:
        ((_, old, new),) = counts
        warnings.warn(f"init: {folder} has {old} classes, this run {new}: the class table starts anew", stacklevel=2)


def saved_config(model: Model, path: Path) -> Any:
    """The full configuration of a saved model of the same class, with the defaults of what its config.json leaves out."""
    file = path / "config.json"
    config = read_json(file)
    if not isinstance(config, dict):
        raise MgenError(f"init: {file} holds {shown(config)}: expected the configuration of a model")
    name = config.get("_class_name")
    if (RENAMED.get(name, name) if isinstance(name, str) else name) != type(model).__name__:
        raise MgenError(f"init: {path} holds a {shown(name)}, but this run trains a {type(model).__name__}")
    try:
        with torch.device("meta"):
            built = type(model).from_config({k: v for k, v in config.items() if not k.startswith("_")})
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise MgenError(f"init: {file} is no configuration of a {type(model).__name__}: {first_line(error)}") from error
    return plain(built.config)


def with_new_classes(model: Model, found: dict[str, Tensor], folder: str) -> dict[str, Tensor]:
    """Tensors that fit a model with another number of classes: rows of classes are the model's new ones, all others those `found`."""
    fitting = dict(found)
    own = model.state_dict(keep_vars=True)
    for name, (first, rows) in class_rows(model).items():
        new, old = own[name].detach(), found.get(name)
        if old is None or old.shape[1:] != new.shape[1:] or len(old) < first + len(new) - first - rows:
            raise MgenError(f"init: the weights in {folder} do not fit the model: {name}")
        behind = len(new) - first - rows  # such as the mask's row
        fitting[name] = torch.cat([old[:first], new[first : first + rows], old[len(old) - behind :]])
    return fitting


def class_rows(model: Model) -> dict[str, tuple[int, int]]:
    """Name of each tensor with a row for every class → number of the first of these rows, and how many there are."""
    if isinstance(model, ImageClassifier):
        count = model.config.num_classes
        return {"classify.weight": (0, count), "classify.bias": (0, count)}
    if not isinstance(model, Generator | Cascade):
        return {}
    classes = model.classes
    rows, first = classes.config.table_rows, classes.first
    table = classes._shared[0] if classes.config.table == "shared" else classes.vectors
    assert isinstance(table, nn.Embedding)
    names = {n: p for n, p in model.state_dict(keep_vars=True).items()}
    found = {n: (first, rows) for n, p in names.items() if p is table.weight}
    if classes.config.table == "shared":  # a tied head has a bias for each row of the table
        found |= {n: (first, rows) for n, p in names.items() if n.endswith("head.bias") and len(p) == len(table.weight)}
    return found
