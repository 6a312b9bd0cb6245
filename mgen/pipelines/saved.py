"""The folder of a saved pipeline: model_index.json and a folder for each part."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator

from mgen.samplers import ParallelSampler
from mgen.tokenizers.base import Tokenizer
from mgen.utils.devices import check_device
from mgen.utils.errors import MgenError
from mgen.utils.modeling import check_class, load_saved, saved_class
from mgen.utils.reading import read_json, read_mapping
from mgen.utils.schema import Text, build, schema
from mgen.zoo import resolve

INDEX = "model_index.json"
COMPONENTS = ("tokenizer", "transformer", "sampler")
EARLIER = {"transformer": "generator"}  # what earlier versions called a part, and its folder


def names_by_id(names: object) -> object:
    """Class names that are saved as {"0": …, "1": …} as a tuple; anything else as it is.

    diffusers takes every list in model_index.json for the package and class of a part, and so looks for it on the hub.
    """
    if isinstance(names, Mapping) and set(names) == {str(i) for i in range(len(names))}:
        return tuple(names[str(i)] for i in range(len(names)))
    return tuple(names) if isinstance(names, list) else names


ClassNames = Annotated[tuple[Text, ...], BeforeValidator(names_by_id)]


@schema(extra=True)
class PipelineIndex:
    """model_index.json: package and class of every part, and the names of the classes."""

    tokenizer: tuple[Text, Text]
    transformer: tuple[Text, Text]
    sampler: tuple[Text, Text]
    class_names: ClassNames | None = None


def read_index(folder: Path) -> PipelineIndex:
    """model_index.json of a folder; MgenError if it is damaged or names parts that aren't mgen's."""
    saved = read_json(folder / INDEX)
    if isinstance(saved, dict):
        saved = {name: saved[old] for name, old in EARLIER.items() if name not in saved and old in saved} | saved
    index = build(PipelineIndex, saved, f"{folder / INDEX}: ")
    check_class(saved, "MaskedPipeline", folder / INDEX)
    for part in COMPONENTS:
        package, name = getattr(index, part)
        if package.split(".")[0] != "mgen":
            raise MgenError(f"{folder / INDEX}: {part} is {name} of {package}, which is no part of mgen")
    return index


def part_folder(folder: Path, part: str) -> Path:
    """The folder of a part, under its name of today or of earlier versions."""
    earlier = folder / EARLIER.get(part, part)
    return earlier if earlier.is_dir() and not (folder / part).exists() else folder / part


def load_part(folder: Path, part: str, index: PipelineIndex, options: dict[str, Any]) -> Any:
    """The tokenizer, transformer or sampler of a folder; `options` of Model.from_pretrained."""
    name, inside = getattr(index, part)[1], part_folder(folder, part)
    if part == "sampler":
        config = inside / ParallelSampler.config_name
        saved = read_mapping(config)
        check_class(saved, ParallelSampler.__name__, config)
        own = {k: v for k, v in saved.items() if not k.startswith("_")}
        return ParallelSampler.from_settings(own, str(config))
    return saved_class(name, f"model class in {folder / INDEX}").from_pretrained(inside, **options)


def load_tokenizer(name: str | Path, *, device: str | torch.device = "cpu") -> Tokenizer:
    """The tokenizer of a pipeline, or a tokenizer saved on its own."""
    folder = resolve(name)
    if (folder / INDEX).is_file():
        tokenizer = load_part(folder, "tokenizer", read_index(folder), {})
    else:
        if not (folder / "config.json").is_file():
            raise MgenError(f"no tokenizer in {folder} (neither model_index.json nor config.json)")
        tokenizer = load_saved(folder)
    if not isinstance(tokenizer, Tokenizer):
        raise MgenError(f"{folder} holds a {type(tokenizer).__name__}, not a tokenizer")
    return tokenizer.eval().to(check_device(device))
