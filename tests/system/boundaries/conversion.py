"""Official files of every format, from the golden sets, and what they are converted to."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mgen.convert import convert
from mgen.convert.convert import Conversion
from tests.golden import harness

State = dict[str, Tensor]
HEADS = {"trunk": {"heads": 4}}
HALVES = {"trunk": {"encoder_heads": 4, "decoder_heads": 4}}
# Format → weights in the golden sets, and settings that the shapes don't tell.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "enat": ("enat/weights", {"trunk": {"heads": 4, "encoder_depth": 3, "decoder_depth": 2}}),
    "halton": ("halton/weights", HEADS),
    "himar": ("himar/weights", {}),
    "hita": ("hita/weights", {"heads": 2}),
    "hita-gpt": ("hita_ar/weights", {"trunk": {"heads": 2}}),
    "kl16": ("kl16/weights", {}),
    "llamagen": ("llamagen/weights_gpt", {"trunk": {"heads": 2}}),
    "llamagen-vq": ("llamagen/weights", {}),
    "mage": ("mage/weights", {"trunk": {"encoder_heads": 4, "decoder_heads": 2}}),
    "mar": ("mar/weights", HALVES),
    "maskgit": ("maskgit/weights", HEADS),
    "maskgit-jax": ("maskgit_jax/weights", {"tokens": {"vocab_size": 64}, "classes": {"count": 20}}),
    "maskgit-vqgan": ("maskgit_vqgan/weights", {}),
    "titok-generator": ("titok_imagebert/weights", {}),
    "titok-vq": ("titok_tokenizer/weights", {"encoder_heads": 4, "decoder_heads": 4}),
    "rar": ("rar/weights", {}),
    "tokenbridge": ("tokenbridge/weights", HALVES),
}


def official(name: str = "maskgit") -> State:
    return load_file(harness.root() / f"{FORMATS[name][0]}.safetensors")


def converted(name: str, path: Path, **more: Any) -> Conversion:
    return convert(name, path, **FORMATS[name][1], **more)


def saved(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def same(a: Conversion, b: Conversion) -> bool:
    first, second = a.model.state_dict(), b.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
