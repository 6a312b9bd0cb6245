"""The registry of official formats, and the conversion that is strict on every key."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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
from mgen.generators.presets import model_name, override
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.modeling import Model, check_keys
from mgen.utils.weights import read_weights


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one official layout is read.

    Attributes:
        model: name of our class. about: one line for help texts. trunk: of a generator, the type of its trunk.
        config: shapes → configuration, as far as shapes tell; the rest are the published values.
        notes: final arguments → lines that the user should read.
        locate: path as given → the file of the weights. beside: that file → arguments from a file next to it.
        rename: official state → ours, with what became of every name; it may take the final configuration as `config`.
        tokenizer: of a generator, the format of the tokenizer it was published with.
        tokenizer_inside: how the names of that tokenizer begin, where the generator's file holds it too.
        keys: where a torch file holds the weights, the first that is there. ema: where it holds their EMA, which is preferred.
        buffers: tensors that only the weights without EMA hold, because nothing averages them.
    """

    about: str
    config: Callable[[State], Settings]
    rename: Callable[..., Renamed]
    model: str = "Generator"
    trunk: str | None = None
    keys: tuple[str, ...] = ("model", "state_dict")
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
        about="kl16.ckpt of MAR, its safetensors mirror, and other KL autoencoders with LDM's keys",
        config=kl.config,
        notes=kl.notes,
        rename=kl.rename,
        keys=("state_dict", "model"),
    ),
    "diffusers-vae": Format(
        model="KLTokenizer",
        about="folder of diffusers' AutoencoderKL, e.g. sd-vae-ft-mse (f8, 4 channels: tokens of 2×2 patches)",
        config=lambda state: {},
        rename=kl.diffusers_rename,
        locate=kl.diffusers_file,
        beside=kl.diffusers_config,
    ),
    "enat": Format(
        trunk="enat",
        about="ENAT-L, nnet_ema.pth and nnet_ema_512.pth",
        config=enat.config,
        notes=enat.notes,
        rename=enat.rename,
        keys=("state_dict", "model"),
        tokenizer="maskgit-vqgan",
    ),
    "halton": Format(
        trunk="adaln",
        about="Halton-MaskGIT, ImageNet_{256,384}_{tiny,small,base,large}.pth",
        config=halton.config,
        notes=halton.notes,
        rename=halton.rename,
        keys=("model_state_dict", "state_dict", "model"),
        tokenizer="llamagen-vq",
    ),
    "himar": Format(
        model="Cascade",
        trunk="mae-two-stage",
        about="Hi-MAR-B/L/H, checkpoint-last.pth (EMA weights; --raw for the others)",
        config=himar.config,
        notes=himar.notes,
        rename=himar.rename,
        ema="model_ema",
        tokenizer="kl16",
    ),
    "hita": Format(
        model="HitaTokenizer",
        about="tokenizers of Hita, hita-tok.pt and hita-ultra.pt (EMA weights; --raw for the others)",
        config=hita.config,
        notes=hita.notes,
        rename=hita.rename,
        ema="ema",
    ),
    "hita-gpt": Format(
        trunk="causal",
        about="generators of Hita, GPT-{B,L,XL,XXL,2B}-{50,100,250,300}e.pt (EMA weights; --raw for the others)",
        config=causal.config,
        notes=causal.notes,
        rename=causal.rename,
        ema="ema",
        tokenizer="hita",
    ),
    "llamagen": Format(
        trunk="causal",
        about="generators of LlamaGen, c2i_{B,L,XL,XXL,3B}_{256,384}.pt",
        config=causal.config,
        notes=causal.notes,
        rename=causal.rename,
        keys=("model", "module", "state_dict"),
        tokenizer="llamagen-vq",
    ),
    "llamagen-vq": Format(
        model="LlamaGenVQ",
        about="tokenizers of LlamaGen and Halton-MaskGIT, vq_ds16_c2i.pt and vq_ds8_c2i.pt",
        config=llamagen.config,
        rename=llamagen.rename,
    ),
    "mage": Format(
        trunk="mage",
        about="MAGE-B/L pre-trained, mage-vitb-1600.pth; its VQGAN is in the same file",
        config=mage.config,
        notes=mage.notes,
        rename=mage.rename,
        tokenizer="maskgit-vqgan",
        tokenizer_inside="vqgan.",
    ),
    "mar": Format(
        trunk="mae",
        about="MAR-B/L/H, checkpoint-last.pth (EMA weights; --raw for the others) or a flat safetensors mirror",
        config=mar.config,
        notes=mar.notes,
        rename=mar.rename,
        ema="model_ema",
        tokenizer="kl16",
    ),
    "maskgit": Format(
        trunk="uvit",
        about="AutoNAT / MaskGIT-r U-ViT, nnet_ema.pth",
        config=maskgit.config,
        rename=maskgit.rename,
        keys=("state_dict", "model"),
        tokenizer="maskgit-vqgan",
    ),
    "maskgit-jax": Format(
        trunk="bert",
        about="google-research/maskgit transformer, maskgit_imagenet256_checkpoint (flax msgpack)",
        config=maskgit_jax.transformer_config,
        rename=maskgit_jax.transformer,
        tokenizer="maskgit-vqgan",
    ),
    "maskgit-vqgan": Format(
        model="VQGAN",
        about="VQGAN in taming-style keys (vqgan_jax_strongaug.ckpt), open-muse keys or flax msgpack",
        config=maskgit_vqgan.config,
        rename=maskgit_vqgan.rename,
        keys=("state_dict", "model"),
    ),
    "tokenbridge": Format(
        trunk="mae",
        about="TokenBridge-L/H, checkpoint-last.pth (EMA weights; --raw for the others)",
        config=tokenbridge.config,
        notes=tokenbridge.notes,
        rename=tokenbridge.rename,
        ema="model_ema",
        buffers=tokenbridge.BUFFERS,
        tokenizer="kl16",
    ),
}


@dataclass(kw_only=True)
class Conversion:
    """A converted model and what became of every official name."""

    model: Model
    config: Settings
    mapped: dict[str, str]
    ignored: dict[str, str]
    notes: list[str]

    def report(self) -> str:
        """Lines for a person: what was mapped, what was ignored and why."""
        count = sum(p.numel() for p in self.model.parameters())
        lines = [f"{type(self.model).__name__}: {len(self.mapped)} tensors mapped, {count:,} parameters, none missing"]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  ignored {name}: {reason}" for name, reason in self.ignored.items()]
        return "\n".join(lines)

    def names(self) -> str:
        """Every official name and ours, one pair a line."""
        return "\n".join(f"{official} -> {ours}" for official, ours in self.mapped.items())


def tokenizer_format(generator: Generator | Cascade) -> str:
    """The format of the tokenizer that generators of this kind were published with."""
    if generator.tokens.global_tokens:
        return "hita"
    trunk = generator.config["trunk"]["type"]
    found = {layout.trunk: layout.tokenizer for layout in FORMATS.values() if layout.tokenizer != "hita"}
    if not (name := found.get(trunk)):
        raise MgenError(f"no official tokenizer is known for trunk {trunk!r}: convert one and give its folder")
    return name


def convert(format_name: str, path: str | Path, *, raw: bool = False, **settings: object) -> Conversion:
    """Our model with the weights of an official file.

    Args:
        format_name: a key of FORMATS. path: the official file.
        raw: take the weights without EMA from a file that holds both.
        settings: what shapes cannot tell and that differs from the published values: of a generator sections of its configuration,
            such as trunk={"heads": 12}, or side=24 for the token grid; of a tokenizer constructor arguments.

    Raises:
        MgenError: unreadable file, or any name or shape that is left over, missing or different.
    """
    import mgen

    layout = FORMATS[check_choice("format", format_name, FORMATS)]
    if raw and not layout.ema:
        raise MgenError(f"format {format_name!r} has one set of weights in a file: leave --raw out")
    path = layout.locate(Path(path))
    official, taken = read_weights(path, layout.keys if raw or not layout.ema else (layout.ema, *layout.keys))
    notes = [f"weights under {taken!r}"] if taken else []
    if layout.buffers and taken == layout.ema:
        with suppress(MgenError):  # it holds the EMA weights alone
            other, _ = read_weights(path, layout.keys)
            official = {**{name: other[name] for name in layout.buffers if name in other}, **official}
    if raw and taken is None:
        raise MgenError(f"{path} holds one set of weights: leave --raw out")
    if layout.ema and not raw and taken in layout.keys:
        notes.append(f"no EMA weights ({layout.ema!r}) in the file")
    cls = getattr(mgen, layout.model)
    check_keys(settings, cls.config_keys() | ({"side"} if layout.trunk else set()), "")
    try:
        found = {**layout.config(official), **(layout.beside(path) if layout.beside else {})}
        config = override(found, _with_side(settings, found)) if layout.trunk else {**found, **settings}
        takes_config = "config" in inspect.signature(layout.rename).parameters
        renamed = layout.rename(official, config=config) if takes_config else layout.rename(official)
    except MgenError:
        raise
    except KeyError as error:
        raise MgenError(f"{path} is not of format {format_name!r}: it lacks {error.args[0]}") from error
    except (ValueError, IndexError, RuntimeError) as error:
        raise MgenError(f"{path} is not of format {format_name!r}: its names are those of another system") from error
    try:
        model = cls.from_config(config) if layout.trunk else cls(**config)
    except (TypeError, ValueError) as error:
        raise MgenError(f"{path} does not fit {layout.model} with {config}: {error}") from error
    _load_exactly(model, renamed.state, path)
    if layout.trunk:
        name = model_name(config)
        notes.append(f"model: {name} (mgen zoo)" if name else "model: none of configs/models has these sizes")
    return Conversion(
        model=model.eval(),
        config=config,
        mapped=renamed.names,
        ignored=renamed.ignored,
        notes=notes + renamed.notes + layout.notes(config),
    )


def _with_side(settings: Settings, found: Settings) -> Settings:
    """Settings in which `side`, of a square token grid, stands as sections of the configuration."""
    rest = {key: value for key, value in settings.items() if key != "side"}
    if "side" not in settings:
        return rest
    side = settings["side"]
    if "tokens" not in found or not isinstance(side, int) or side < 1:
        raise MgenError(f"side is {side!r}: a whole number of at least 1 is needed, of a model with one token grid")
    place = {"grid": [side, side], "length": side * side + found["tokens"].get("global_tokens", 0)}
    return override(rest, {"tokens": {**rest.get("tokens", {}), **place}})


def _load_exactly(model: Model, state: dict[str, Tensor], path: str | Path) -> None:
    own = model.state_dict()
    shapes = {k: (tuple(state[k].shape), tuple(own[k].shape)) for k in own.keys() & state.keys()}
    found = {
        "missing": own.keys() - state.keys(),
        "not expected": state.keys() - own.keys(),
        "of another shape": {f"{k} {given} for {right}" for k, (given, right) in shapes.items() if given != right},
    }
    problems = [f"{len(names)} {what}, e.g. {min(names)}" for what, names in found.items() if names]
    if problems:
        raise MgenError(f"{path} does not hold exactly the weights of {type(model).__name__}: {'; '.join(problems)}")
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise MgenError(f"{path}: {name} holds NaN or infinity; the file is damaged")
    model.load_state_dict({name: value.float() for name, value in state.items()})
