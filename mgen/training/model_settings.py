"""What the `model:` section leaves out and the data decides: the number of classes, and side and channels of the images."""

from pathlib import Path
from typing import Any

from mgen.data.cache_format import read_index
from mgen.training.config import DataConfig, TrainConfig
from mgen.training.data import make_dataset
from mgen.utils.errors import MgenError


def model_settings(config: TrainConfig) -> Any:
    """The model's settings with `classes.count`, `num_classes`, `image_size` and `in_channels` of the data where they are left out.

    A model of configs/models has the number of classes that it was published with; it gives way to the data's, a number in the
    settings doesn't. What is written is never changed: where it differs from the data, the task raises an error.
    """
    if config.task == "generator":
        return _with_classes(config.model, config.data)
    settings = dict(config.model)
    left_out = _left_out(settings)
    if config.data.kind != "cache":
        channels, side = (1, 32) if config.data.kind == "fmnist" else (config.data.channels, config.data.image_size)
        settings |= {k: v for k, v in (("in_channels", channels), ("image_size", side)) if k in left_out}
    if config.task == "classifier" and "num_classes" in left_out:
        settings["num_classes"] = count_classes(config.data)
    return settings


def count_classes(data: DataConfig) -> int:
    """Classes of the training data; of a folder by its listing, of a cache by its index."""
    if data.kind == "cache" and data.path is not None:
        return read_index(Path(data.path)).num_classes
    found = make_dataset(data, split="train")
    assert found is not None  # make_dataset raises an error if there is none
    return found.num_classes


def _with_classes(settings: Any, data: DataConfig) -> Any:
    """A generator's settings with the number of classes of the data, unless they say one or the model knows no classes."""
    from mgen.generators.presets import named_config

    own = settings.get("classes") if isinstance(settings, dict) else None
    if isinstance(settings, dict) and (
        "class" in settings or not isinstance(own, dict | None) or "count" in (own or {})
    ):
        return settings
    base = named_config(settings).get("classes") or {}
    if not isinstance(base, dict) or base.get("count") == 0:
        return settings
    mapping = {"name": settings} if isinstance(settings, str) else dict(settings)
    return mapping | {"classes": {**(own or {}), "count": count_classes(data)}}


def _left_out(settings: dict[str, Any]) -> set[str]:
    """Arguments of the class that neither the settings nor the row of its table named `size` say; none for an unknown class."""
    from mgen.utils.modeling import constructor_keys, saved_class

    try:
        cls = saved_class(settings.get("class"), "model.class")
    except MgenError:  # building the model says so
        return set()
    sizes: dict[str, dict[str, Any]] = getattr(cls, "SIZES", {})
    size = settings.get("size")
    return constructor_keys(cls) - settings.keys() - (sizes.get(size, {}) if isinstance(size, str) else {}).keys()
