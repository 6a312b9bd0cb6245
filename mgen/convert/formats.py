"""The registry of official formats: for each, how its names, shapes and files are read. mgen.zoo.formats describes them in a line each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mgen.convert import (
    causal,
    enat,
    halton,
    himar,
    hita,
    kl,
    llamagen,
    mage,
    mar,
    maskgit,
    maskgit_jax,
    maskgit_vqgan,
    tokenbridge,
)
from mgen.convert.reading import Renamed, State
from mgen.generators import Cascade, Generator
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one official layout is read.

    Attributes:
        model: name of our class. trunk: of a generator, the type of its trunk.
        config: shapes → configuration, as far as shapes tell; the rest are the published values.
        notes: final arguments → lines that the user should read.
        locate: path as given → the file of the weights, or its folder. beside: that file → arguments from a file next to it.
        rename: official state → ours, with what became of every name; it may take the final configuration as `config`.
        tokenizer: of a generator, the format of the tokenizer it was published with.
        tokenizer_inside: how the names of that tokenizer begin, where the generator's file holds it too.
        keys: where official files hold the weights, beside the places that all formats share. ema: where they hold an EMA, if the
            official scripts prefer it.
        buffers: tensors that only the weights without EMA hold, because nothing averages them.
    """

    config: Callable[[State], Settings]
    rename: Callable[..., Renamed]
    model: str = "Generator"
    trunk: str | None = None
    keys: tuple[str, ...] = ("model",)
    ema: str | None = None
    buffers: tuple[str, ...] = ()
    notes: Callable[[Settings], list[str]] = lambda config: []
    locate: Callable[[Path], Path] = Path
    beside: Callable[[Path], Settings] | None = None
    tokenizer: str | None = None
    tokenizer_inside: str | None = None


FORMATS = {
    "kl16": Format(
        model="KLTokenizer",
        config=kl.config,
        notes=kl.notes,
        rename=kl.rename,
        keys=("state_dict",),
    ),
    "diffusers-vae": Format(
        model="KLTokenizer",
        config=lambda state: {},
        rename=kl.diffusers_rename,
        locate=kl.diffusers_folder,
        beside=kl.diffusers_config,
    ),
    "enat": Format(
        trunk="enat",
        config=enat.config,
        notes=enat.notes,
        rename=enat.rename,
        tokenizer="maskgit-vqgan",
        keys=("state_dict",),
    ),
    "halton": Format(
        trunk="adaln",
        config=halton.config,
        notes=halton.notes,
        rename=halton.rename,
        tokenizer="llamagen-vq",
        keys=("model_state_dict",),
    ),
    "himar": Format(
        model="Cascade",
        trunk="mae-two-stage",
        config=himar.config,
        notes=himar.notes,
        rename=himar.rename,
        ema="model_ema",
        tokenizer="kl16",
    ),
    "hita": Format(
        model="HitaTokenizer",
        config=hita.config,
        notes=hita.notes,
        rename=hita.rename,
        ema="ema",
    ),
    "hita-gpt": Format(
        trunk="causal",
        config=causal.config,
        notes=causal.notes,
        rename=causal.rename,
        ema="ema",
        tokenizer="hita",
    ),
    "llamagen": Format(
        trunk="causal",
        config=causal.config,
        notes=causal.notes,
        rename=causal.rename,
        tokenizer="llamagen-vq",
    ),
    "llamagen-vq": Format(
        model="LlamaGenVQ",
        config=llamagen.config,
        rename=llamagen.rename,
        ema="ema",
    ),
    "mage": Format(
        trunk="mage",
        config=mage.config,
        notes=mage.notes,
        rename=mage.rename,
        tokenizer="maskgit-vqgan",
        tokenizer_inside="vqgan.",
    ),
    "mar": Format(
        trunk="mae",
        config=mar.config,
        notes=mar.notes,
        rename=mar.rename,
        ema="model_ema",
        tokenizer="kl16",
    ),
    "maskgit": Format(
        trunk="uvit",
        config=maskgit.config,
        rename=maskgit.rename,
        tokenizer="maskgit-vqgan",
        keys=("state_dict",),
    ),
    "maskgit-jax": Format(
        trunk="bert",
        config=maskgit_jax.transformer_config,
        rename=maskgit_jax.transformer,
        tokenizer="maskgit-vqgan",
    ),
    "maskgit-vqgan": Format(
        model="VQGAN",
        config=maskgit_vqgan.config,
        rename=maskgit_vqgan.rename,
        keys=("state_dict",),
    ),
    "tokenbridge": Format(
        trunk="mae",
        config=tokenbridge.config,
        notes=tokenbridge.notes,
        rename=tokenbridge.rename,
        ema="model_ema",
        buffers=tokenbridge.BUFFERS,
        tokenizer="kl16",
    ),
}


def tokenizer_format(generator: Generator | Cascade) -> str:
    """The format of the tokenizer that generators of this kind were published with."""
    if generator.tokens.global_tokens:
        return "hita"
    trunk = generator.config["trunk"]["type"]
    found = {layout.trunk: layout.tokenizer for layout in FORMATS.values() if layout.tokenizer != "hita"}
    if not (name := found.get(trunk)):
        raise MgenError(f"no official tokenizer is known for trunk {trunk!r}: convert one and give its folder")
    return name
