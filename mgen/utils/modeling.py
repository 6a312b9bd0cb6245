"""The base class of all networks: diffusers' ModelMixin and ConfigMixin with strict loading.

diffusers fills missing weights with random values and only warns. A half-random generator could go unnoticed, so
`Model.from_pretrained` raises an error instead, also for unknown configuration keys.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import FrozenDict
from safetensors import SafetensorError

from mgen.utils.errors import MgenError, check_choice, check_keys, first_line
from mgen.utils.files import read_json

T = TypeVar("T", bound=type)


def public(cls: T) -> T:
    """Make saved pipelines name this class `mgen.<Class>`, so that modules can move without breaking saved pipelines."""
    cls.__module__ = "mgen"
    return cls


def saved_class(name: object, where: str) -> "type[Model]":
    """The network class that a saved configuration or a `class:` setting names; MgenError with the nearest name for others."""
    import mgen

    known = {n: c for n in mgen.__all__ if isinstance(c := getattr(mgen, n), type) and issubclass(c, Model)}
    return known[check_choice(where, str(name), known)]


def load_saved(folder: str | Path) -> "Model":
    """The network of a folder written by `save_pretrained`, of the class that its config.json names."""
    config = Path(folder) / Model.config_name
    return saved_class(read_json(config).get("_class_name"), f"model class in {config}").from_pretrained(folder)


def constructor_keys(cls: Callable[..., object]) -> set[str]:
    """Names of the keyword arguments of `cls`."""
    return set(inspect.signature(cls).parameters)


class Model(ModelMixin, ConfigMixin):
    """A network with a configuration. `save_pretrained` writes config.json and safetensors; `from_pretrained` is strict."""

    config_name = "config.json"

    def __getattr__(self, name: str) -> Any:
        """Parameters and submodules by name. diffusers would answer with the configuration's entry of that name instead."""
        return torch.nn.Module.__getattr__(self, name)

    @classmethod
    def config_keys(cls) -> set[str]:
        """Keys that its configuration may have."""
        return constructor_keys(cls)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: object) -> Self:
        """Load a folder written by `save_pretrained`.

        Raises:
            MgenError: the folder or its files are missing or damaged, a configuration key is unknown, or the weights are not exactly
                those of the model.
        """
        folder = Path(pretrained_model_name_or_path) / str(kwargs.get("subfolder") or "")
        config_file = folder / cls.config_name
        if not config_file.is_file():
            raise MgenError(
                f"no {cls.config_name} in {folder}: expected a folder written by save_pretrained or mgen convert"
            )
        try:
            config = json.loads(config_file.read_text())
        except ValueError as error:
            raise MgenError(f"{config_file} is not valid JSON ({error}): write the folder again") from error
        own = {key: value for key, value in config.items() if not key.startswith("_")}
        check_keys(own, cls.config_keys(), f"{config_file}: ")
        # low_cpu_mem_usage would leave missing weights on the meta device, where the check below cannot see them.
        kwargs = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False, **kwargs, "output_loading_info": True}
        try:
            model, info = super().from_pretrained(str(pretrained_model_name_or_path), **kwargs)
        except (SafetensorError, OSError, EOFError) as error:
            raise MgenError(
                f"cannot read the weights in {folder} ({first_line(error)}): missing or truncated file"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise MgenError(f"the weights in {folder} do not fit their config.json: {first_line(error)}") from error
        wrong = {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
        if wrong:
            text = "; ".join(f"{len(names)} {key.replace('_', ' ')}, e.g. {names[0]}" for key, names in wrong.items())
            raise MgenError(f"the weights in {folder} are not those of {cls.__name__}: {text}")
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight).all():
                raise MgenError(
                    f"{folder}: weight {name!r} holds NaN or infinity; the checkpoint is damaged or diverged"
                )
        # diffusers records the path a model was loaded from; keep users' folders out of saved configurations.
        model._internal_dict = FrozenDict({k: v for k, v in model.config.items() if k != "_name_or_path"})
        return model
