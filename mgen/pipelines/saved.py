"""The folder of a saved pipeline: model_index.json and a folder for each part."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BeforeValidator

from mgen.data.record import DataRecord, read_trained_on
from mgen.samplers import ParallelSampler
from mgen.tokenizers.base import TOKENIZERS, Tokenizer
from mgen.utils.class_names import names_by_id
from mgen.utils.devices import check_device
from mgen.utils.errors import MgenError, shown
from mgen.utils.folders import shipped
from mgen.utils.modeling import check_class, load_saved, saved_class
from mgen.utils.reading import read_json, read_mapping
from mgen.utils.schema import Text, build, schema
from mgen.zoo import resolve
from mgen.zoo.imagenet import COUNT, imagenet_names
from mgen.zoo.imagenet import NAME as IMAGENET

if TYPE_CHECKING:
    from mgen.generators import Cascade, Generator

INDEX = "model_index.json"
COMPONENTS = ("tokenizer", "transformer", "sampler")
EARLIER = {"transformer": "generator"}  # what earlier versions called a part, and its folder


def checked_names(names: object, count: int) -> tuple[str, ...] | None:
    """The names of `count` classes as a pipeline takes them: a list, what `names_by_id` reads, or "imagenet"; MgenError for others."""
    found = imagenet_names() if isinstance(names, str) and names == IMAGENET else names_by_id(names)
    if found is None:
        return None
    if (
        isinstance(found, str)
        or not isinstance(found, Sequence)
        or not all(isinstance(n, str) and n.strip() for n in found)
    ):
        raise MgenError(f"class_names is {shown(names)}: expected a list of texts that are not empty")
    if len(found) != count:
        raise MgenError(f"{len(found)} class names for {count} classes: give one for each")
    return tuple(found)


ClassNames = Annotated[tuple[Text, ...], BeforeValidator(names_by_id)]


@schema(extra=True)
class PipelineIndex:
    """model_index.json: package and class of every part, the names of the classes, and what the model was trained on."""

    tokenizer: tuple[Text, Text]
    transformer: tuple[Text, Text]
    sampler: tuple[Text, Text]
    class_names: ClassNames | None = None
    data: DataRecord | None = None


def read_index(folder: Path) -> PipelineIndex:
    """model_index.json of a folder; MgenError if it is missing, damaged, or names parts that aren't mgen's."""
    if not (folder / INDEX).is_file():
        config, what = (
            folder / "config.json",
            "expected a folder written by save_pretrained, mgen train or mgen convert",
        )
        if config.is_file():
            name = shown(read_mapping(config).get("_class_name")).strip("'")
            other = "generator" if name in TOKENIZERS else "tokenizer"
            what = f"it holds a {name} alone; join it with a {other} by mgen convert pipeline"
        raise MgenError(f"{folder} is no pipeline (model_index.json is missing): {what}")
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


def earlier_names(folder: Path, generator: "Generator | Cascade") -> tuple[str, ...] | None:
    """ImageNet's names for a published model that an earlier version converted without any: its conversion.txt says which one it is.

    Other models of 1,000 classes may be of other data, and get none.
    """
    file = folder / "conversion.txt"
    if not generator.conditional or generator.num_classes != COUNT or not file.is_file():
        return None
    with file.open(encoding="utf-8", errors="replace") as lines:
        said = re.search(r"^  note: model: (\S+) \(mgen zoo\)$", lines.read(2**16), re.MULTILINE)
    return imagenet_names() if said and said[1] in shipped("models") else None


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


def find_record(folder: str | Path) -> DataRecord | None:
    """What the model in a folder was trained on: a pipeline, a part of one, or a network on its own; None if that is not known."""
    folder = Path(folder)
    if (folder / INDEX).is_file():
        return read_index(folder).data
    if (about := read_trained_on(folder)) is not None:
        return about.data
    above = folder.parent
    part = folder.name in ("transformer", EARLIER["transformer"]) and (above / INDEX).is_file()
    return read_index(above).data if part else None


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
