"""The base class of all networks: diffusers' ModelMixin and ConfigMixin with strict loading.

diffusers fills missing weights with random values and only warns. A half-random generator could go unnoticed, so
`Model.from_pretrained` raises an error instead, also for unknown configuration keys.
"""

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import FrozenDict
from safetensors import SafetensorError

from mgen.utils.errors import MgenError, check_choice, check_keys, first_line, shown
from mgen.utils.estimates import check_fits
from mgen.utils.files import check_writable, scratch_folder
from mgen.utils.fitting import DataRows
from mgen.utils.hub import fetch, is_hub_id, model_card, push, take_options
from mgen.utils.reading import check_path, read_mapping
from mgen.utils.weight_files import check_weights, move_weights

T = TypeVar("T", bound=type)
RENAMED = {"FashionCNN": "ImageClassifier"}  # classes that earlier versions saved under another name
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def public(cls: T) -> T:
    """Make saved pipelines name this class `mgen.<Class>`, so that modules can move without breaking saved pipelines."""
    cls.__module__ = "mgen"
    return cls


def saved_class(name: object, where: str) -> "type[Model]":
    """The network class that a saved configuration or a `class:` setting names; MgenError with the nearest name for others."""
    import mgen

    known = {n: c for n in mgen.__all__ if isinstance(c := getattr(mgen, n), type) and issubclass(c, Model)}
    name = RENAMED.get(name, name) if isinstance(name, str) else shown(name)
    return known[check_choice(where, name, known)]


def load_saved(folder: str | Path) -> "Model":
    """The network of a folder written by `save_pretrained`, of the class that its config.json names."""
    config = Path(folder) / Model.config_name
    return saved_class(read_mapping(config).get("_class_name"), f"model class in {config}").from_pretrained(folder)


def check_class(config: object, name: str, file: Path) -> None:
    """MgenError if a saved configuration is of another class than the one called `name`; one that names none may be."""
    saved = config.get("_class_name", name) if isinstance(config, Mapping) else name
    if saved != name and not (isinstance(saved, str) and RENAMED.get(saved) == name):
        raise MgenError(f"{file}: _class_name is {shown(saved)}: expected {name}")


def constructor_keys(cls: Callable[..., object]) -> set[str]:
    """Names of the keyword arguments of `cls`."""
    return set(inspect.signature(cls).parameters)


def check_dtype(dtype: object) -> torch.dtype:
    """fp32, bf16 or fp16, by name or as torch.float32 …; MgenError for anything else."""
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    raise MgenError(
        f"dtype is {shown(dtype)}: choose {', '.join(DTYPES)}, or torch.float32, torch.bfloat16 or torch.float16"
    )


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

    def data_rows(self) -> DataRows:
        """Which rows of its tensors stand for classes, positions, ids or channels; what has none depends on the architecture alone."""
        return {}

    @classmethod
    def own_config(cls, config: object, where: str) -> dict[str, Any]:
        """The entries of a configuration that are the network's, not diffusers'; MgenError for no mapping and for unknown keys."""
        if not isinstance(config, Mapping):
            raise MgenError(f"{where} is {shown(config)}: expected a mapping, as in {cls.config_name}")
        own = {key: value for key, value in config.items() if not str(key).startswith("_")}
        check_keys(own, cls.config_keys(), f"{where}: ")
        return own

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **kwargs: Any) -> Self:
        """One with random weights from a configuration, as in config.json; MgenError for anything wrong in it."""
        cls.own_config(config, "the configuration")
        return super().from_config(config, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As of torch. diffusers warns of modules that should stay in fp32, of which there are none."""
        with _unlogged():
            return super().to(*args, **kwargs)

    def check_savable(self) -> None:
        """MgenError if the network can't be saved as it is."""

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write config.json and the weights into a folder; weight files that an earlier save left there are removed.

        Args:
            variant: of the names of weight files, such as "fp16". max_shard_size: of a weight file, such as "1GB".
            push_to_hub: then upload them; keyword arguments as of the method of this name, `repo_id` by default the folder's name.
        """
        self.check_savable()
        check_writable(check_path(save_directory, "save_directory"))
        saved = check_save_options(safe_serialization, variant, max_shard_size)
        with scratch_folder(save_directory) as scratch:
            super().save_pretrained(str(scratch), **saved)
            move_weights(scratch, Path(save_directory), variant)
        if push_to_hub:
            name = kwargs.pop("repo_id", None) or Path(os.path.abspath(save_directory)).name
            self.push_to_hub(name, safe_serialization=safe_serialization, variant=variant, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> Any:
        """Upload the network to a model on the hub, with a short README.md if it has none; the arguments are those of diffusers."""
        name = type(self).__name__
        within = f', subfolder="{subfolder}"' if subfolder else ""
        return push(
            lambda folder: self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant),
            model_card(
                str(repo_id).rpartition("/")[2],
                f"A `{name}` of mgen, a toolkit for masked generative image synthesis.",
                f'import mgen\n\nnetwork = mgen.{name}.from_pretrained("{repo_id}"{within})',
            ),
            repo_id,
            commit_message=commit_message or f"Upload {name}",
            private=private,
            token=token,
            create_pr=create_pr,
            subfolder=subfolder,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: object) -> Self:
        """Load a folder written by `save_pretrained`, or a model on the hub.

        Args:
            torch_dtype, dtype: of the weights, fp32 by default. subfolder: of the folder or of the hub's model.
            revision, token, cache_dir, local_files_only, force_download: of a model on the hub. Other keyword arguments as of diffusers.

        Raises:
            MgenError: the folder or its files are missing or damaged, a configuration key is unknown, or the weights are not exactly
                those of the model.
        """
        for key in ("subfolder", "variant"):
            if not isinstance(kwargs.get(key), str | None):
                raise MgenError(f"{key} is {shown(kwargs[key])}: expected text")
        hub, subfolder = take_options(kwargs), str(kwargs.pop("subfolder", None) or "")
        root = check_path(pretrained_model_name_or_path, "the folder of a model")
        if is_hub_id(root):
            variant = kwargs.get("variant")
            root = fetch(str(root), hub, subfolder=subfolder, variant=None if variant is None else str(variant))
        folder = root / subfolder
        names = [kwargs.pop(key, None) for key in ("dtype", "torch_dtype")]
        dtype = check_dtype(next((name for name in names if name is not None), torch.float32))
        config_file = folder / cls.config_name
        if not config_file.is_file():
            raise MgenError(
                f"no {cls.config_name} in {folder}: expected a folder written by save_pretrained or mgen convert"
            )
        saved_config = read_mapping(config_file)
        config = cls.own_config(saved_config, str(config_file))
        check_class(saved_config, cls.__name__, config_file)
        safe = check_weights(folder, kwargs.get("variant"))
        # low_cpu_mem_usage would leave missing weights on the meta device, where the check below cannot see them. Tables that a
        # constructor computes are made in fp32, whatever the weights become.
        given = {"low_cpu_mem_usage": False, "use_safetensors": safe, **kwargs}
        given |= {"torch_dtype": torch.float32, "output_loading_info": True}
        try:
            saved = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
            check_fits(lambda: cls.from_config(config), config, f"this {cls.__name__}", saved=saved)
            with _unlogged():
                model, info = super().from_pretrained(str(folder), **given)
        except MgenError as error:  # of the constructor
            raise MgenError(f"{config_file}: {error}") from error
        except (SafetensorError, OSError, EOFError) as error:
            raise MgenError(
                f"cannot read the weights in {folder} ({first_line(error)}): missing or truncated file"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise MgenError(
                f"the weights in {folder} do not fit their config.json: {' '.join(str(error).split())[:200]}"
            ) from error
        wrong = {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
        if wrong:
            text = "; ".join(f"{len(names)} {key.replace('_', ' ')}, e.g. {names[0]}" for key, names in wrong.items())
            raise MgenError(f"the weights in {folder} are not those of {cls.__name__}: {text}")
        _check_finite(model, f"{folder}: weight %s holds NaN or infinity; the checkpoint is damaged or diverged")
        # diffusers records the path a model was loaded from; keep users' folders out of saved configurations.
        model._internal_dict = FrozenDict({k: v for k, v in model.config.items() if k != "_name_or_path"})
        if dtype != torch.float32:
            model.to(dtype)
            _check_finite(model, f"{folder}: weight %s is too large for {dtype}: load it in torch.bfloat16")
        return model


def check_save_options(safe_serialization: object, variant: object, max_shard_size: object) -> dict[str, Any]:
    """The options of a save, as diffusers takes them; MgenError for another type."""
    for name, value, kind, expected in (
        ("safe_serialization", safe_serialization, bool, "true or false"),
        ("variant", variant, str | None, "text, such as fp16"),
        ("max_shard_size", max_shard_size, int | str | None, "a number of bytes, or text such as 1GB"),
    ):
        if not isinstance(value, kind):
            raise MgenError(f"{name} is {shown(value)}: expected {expected}")
    sizes = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    return {"safe_serialization": safe_serialization, "variant": variant, **sizes}


@contextmanager
def _unlogged() -> Iterator[None]:
    """diffusers logs nothing but errors: the weights that it would warn about raise an error of one line here."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_finite(model: torch.nn.Module, text: str) -> None:
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise MgenError(text % repr(name))
