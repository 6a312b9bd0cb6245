"""The file of an adapter: pytorch_lora_weights.safetensors, as diffusers reads and writes it.

    transformer.trunk.blocks.0.attn.qkv.lora_A.weight     (rank, inputs)
    transformer.trunk.blocks.0.attn.qkv.lora_B.weight     (outputs, rank)
    tables.classes.vectors.weight                         tensors that were trained beside the adapter, whole; diffusers passes them over

Its metadata has the settings of peft, and of a model with other classes or another grid than the one it was trained from, its
configuration.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, shown
from mgen.utils.files import check_output, write_tensors
from mgen.utils.reading import check_path, parse_json, read_tensors
from mgen.utils.schema import Positive, Text, build, schema

FILE = "pytorch_lora_weights.safetensors"
PREFIX, TABLES = "transformer.", "tables."
OF_PEFT, OF_MGEN = "lora_adapter_metadata", "mgen"  # keys of the metadata, whose values are JSON


@schema(extra=True)
class PeftSettings:
    """What counts of peft's LoraConfig; ranks are those of the tensors."""

    lora_alpha: Positive | None = None
    alpha_pattern: dict[str, Positive] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False

    def __post_init__(self) -> None:
        for key in self.alpha_pattern:  # peft takes them for regular expressions
            if not re.fullmatch(r"\^?[\w.]{1,500}", key):
                raise MgenError(f"alpha_pattern has {shown(key)}: expected the name of a layer")
        if self.use_rslora or self.use_dora:
            raise MgenError("use_rslora and use_dora are not supported: train the adapter without")


@schema
class About:
    """The model that an adapter makes: its configuration, names of its classes, where its weights started."""

    config: dict[str, Any] | None = None
    class_names: tuple[Text, ...] | None = None
    base: Annotated[str, Field(max_length=4096)] | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """An adapter: tensors of the layers, alpha (None: the rank) and those of layers that have another, tables, see the module."""

    layers: Mapping[str, Tensor]
    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    about: About = field(default_factory=About)
    where: str = "the adapter"

    def peft_settings(self, ranks: Mapping[str, int]) -> Settings:
        """Arguments of peft's LoraConfig for layers of these ranks."""
        rank = next(iter(ranks.values()))
        return {
            "r": rank,
            "lora_alpha": self.alpha if self.alpha is not None else float(rank),
            "target_modules": sorted(ranks),
            "rank_pattern": {f"^{name}": r for name, r in ranks.items() if r != rank},
            "alpha_pattern": dict(self.alphas)
            if self.alpha is not None
            else {f"^{n}": float(r) for n, r in ranks.items()},
        }

    def save(self, file: Path) -> None:
        """Write the file."""
        check_output(file)
        ranks = {name.removesuffix(".lora_A.weight"): len(v) for name, v in self.layers.items() if "lora_A" in name}
        settings = {f"{PREFIX}{key}": value for key, value in self.peft_settings(ranks).items()}
        about = {"config": self.about.config, "class_names": self.about.class_names, "base": self.about.base}
        metadata = {
            "format": "pt",
            OF_PEFT: json.dumps(settings, sort_keys=True),
            OF_MGEN: json.dumps(about, default=list),
        }
        tensors = {PREFIX + name: value for name, value in self.layers.items()}
        write_tensors(file, tensors | {TABLES + name: value for name, value in self.tables.items()}, metadata)


def find_adapter(path: str | Path) -> Path:
    """The file of an adapter: itself, or in a folder of one, or the output of a training; MgenError if there is none."""
    path = check_path(path, "the folder of an adapter")
    candidates = [path, path / FILE, path / "lora" / FILE]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        what = "there is no such folder" if not path.exists() else f"no {FILE} in it"
        raise MgenError(f"no adapter in {shown(str(path), 200)}: {what}; mgen train with lora writes OUTPUT/lora")
    return found


def read_adapter(
    source: "str | Path | Mapping[str, Tensor] | AdapterFile", prefix: str | None = "transformer"
) -> AdapterFile:
    """An adapter of a file, a folder or given tensors; names may start with `prefix` or not.

    Raises:
        MgenError: there is no adapter, or its file is damaged.
    """
    if isinstance(source, AdapterFile):
        return source
    metadata: Mapping[str, str] = {}
    if isinstance(source, Mapping):
        tensors, where = dict(source), "the adapter"
    else:
        file = find_adapter(source)
        where = str(file)
        tensors, metadata = read_tensors(file)
    tables = {k.removeprefix(TABLES): v for k, v in tensors.items() if k.startswith(TABLES)}
    layers = {k: v for k, v in tensors.items() if not k.startswith(TABLES)}
    front = f"{prefix}." if prefix else ""
    layers = {k.removeprefix(front): v for k, v in layers.items()}
    if not layers or not any(name.endswith(".lora_A.weight") for name in layers):
        raise MgenError(f"{where} holds no adapter: expected tensors such as trunk.blocks.0.attn.qkv.lora_A.weight")
    bad = next((k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()), None)
    if bad is not None:
        raise MgenError(f"{where}: {bad} holds NaN or infinity: the adapter is damaged, or its training diverged")
    settings = PeftSettings()
    if OF_PEFT in metadata:
        found = parse_json(metadata[OF_PEFT], f"{where}: {OF_PEFT}")
        plain = {k.removeprefix(front): v for k, v in found.items()} if isinstance(found, dict) else found
        if isinstance(plain, dict):
            plain = {k: v for k, v in plain.items() if k in PeftSettings.__dataclass_fields__}
        settings = build(PeftSettings, plain, f"{where}: {OF_PEFT}: ")
    about = About()
    if OF_MGEN in metadata:
        about = build(About, parse_json(metadata[OF_MGEN], f"{where}: {OF_MGEN}"), f"{where}: {OF_MGEN}: ")
    return AdapterFile(
        layers=layers, alpha=settings.lora_alpha, alphas=settings.alpha_pattern, tables=tables, about=about, where=where
    )
