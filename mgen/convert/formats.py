"""All official formats by name: those that the modules of mgen.convert.readers register. mgen.zoo.formats describes them in a line each."""

import importlib
import pkgutil

from mgen.convert import readers
from mgen.convert.format import REGISTERED
from mgen.generators import Cascade, Generator
from mgen.utils.errors import MgenError

for _module in pkgutil.iter_modules(readers.__path__):
    importlib.import_module(f"{readers.__name__}.{_module.name}")
FORMATS = dict(sorted(REGISTERED.items()))
OTHERS = ("hita", "ldetok", "titok-vae", "titok-vq")  # tokenizers of generators that share a trunk with others


def tokenizer_format(generator: Generator | Cascade, layout: str | None = None) -> str:
    """The format of the tokenizer that generators of this kind, or of the format `layout`, were published with."""
    if layout in FORMATS and (named := FORMATS[layout].tokenizer):
        return named
    if generator.tokens.global_tokens:
        return "hita"
    if generator.tokens.grid is None:
        return "titok-vae" if generator.tokens.kind == "vector" else "titok-vq"
    trunk = generator.config["trunk"]["type"]
    found = {layout.trunk: layout.tokenizer for layout in FORMATS.values() if layout.tokenizer not in OTHERS}
    if not (name := found.get(trunk)):
        raise MgenError(f"no official tokenizer is known for trunk {trunk!r}: convert one and give its folder")
    return name
