"""KL autoencoders: `kl16.ckpt` of MAR, its safetensors mirror and others with LDM's keys; and folders of diffusers' AutoencoderKL,
such as the f8 autoencoders of Stable Diffusion."""

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mgen.convert.format import Format, register_format
from mgen.convert.reading import Renamed, State, attention, count
from mgen.tokenizers.kl import KLTokenizer
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, shown
from mgen.utils.reading import read_json
from mgen.utils.schema import Positive, Size, build, schema


def config(state: State) -> Settings:
    """Constructor arguments that the shapes tell; image size, groups of the norms (32) and patch they do not.

    The scale belongs to the weights, not to the layout: 0.2325 is that of KL16, any other network gets none.
    """
    levels = count(state, r"encoder\.down\.(\d+)\.")
    quant = "quant_conv.weight" in state
    z_channels = state["decoder.conv_in.weight"].shape[1]
    out: Settings = {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "latent_channels": state["post_quant_conv.weight"].shape[1] if quant else z_channels,
        "channels": tuple(state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)),
        "layers": count(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "encoder_attention": _with_attention(state, "encoder.down"),
        "decoder_attention": _with_attention(state, "decoder.up"),
        "middle_attention": "encoder.mid.attn_1.q.weight" in state,
        "quant_conv": quant,
    }
    if (stem := state["encoder.conv_in.weight"].shape[0]) != out["channels"][0]:
        out["stem"] = stem
    if z_channels != out["latent_channels"]:
        out["z_channels"] = z_channels
    defaults = inspect.signature(KLTokenizer).parameters
    is_kl16 = all(defaults[name].default == value for name, value in out.items())
    return out | {"scale": 0.2325 if is_kl16 else None}


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    if config.get("scale") is not None:
        return []
    return [
        "no scale: these are not the weights of KL16; give scale=S, or measure it (mgen cache … --measure-scale 2000) and convert again"
    ]


def rename(state: State) -> Renamed:
    """diffusers' names; the 1×1 convolutions of the attention become linear layers."""
    levels = count(state, r"decoder\.up\.(\d+)\.")
    out = Renamed()
    for name, value in state.items():
        new = name
        if name.startswith("loss."):
            out.ignored[name] = "of the training loss (discriminator, LPIPS), not of the autoencoder"
            continue
        if m := re.match(r"(encoder\.down|decoder\.up)\.(\d+)\.(.*)", name):
            # The decoder's levels are stored finest first; diffusers stores them in running order.
            place = int(m[2]) if m[1] == "encoder.down" else levels - 1 - int(m[2])
            rest = re.sub(r"^block\.", "resnets.", m[3])
            rest = re.sub(r"^attn\.", "attentions.", rest)
            rest = re.sub(r"^(down|up)sample\.", r"\1samplers.0.", rest)
            new = f"{m[1]}_blocks.{place}.{rest}"
        new = re.sub(r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", new)
        new = new.replace(".mid.attn_1.", ".mid_block.attentions.0.")
        new = new.replace(".nin_shortcut.", ".conv_shortcut.").replace(".norm_out.", ".conv_norm_out.")
        new, value = attention(new, value)
        out.put(name, f"vae.{new}", value)
    return out


def _with_attention(state: State, part: str) -> tuple[int, ...]:
    return tuple(sorted({int(m[1]) for name in state if (m := re.match(rf"{part}\.(\d+)\.attn\.", name))}))


# -- diffusers' own layout ---------------------------------------------------------------------------------------------


@schema(extra=True)
class AutoencoderConfig:
    """config.json of an AutoencoderKL, without what says nothing about the network; defaults are diffusers'."""

    class_name: str = "AutoencoderKL"
    in_channels: Size = 3
    out_channels: Size = 3
    latent_channels: Size = 4
    block_out_channels: Annotated[tuple[Size, ...], Field(min_length=1, max_length=16)]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    layers_per_block: Size = 1
    norm_num_groups: Size = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: Positive = 0.18215
    shift_factor: float | None = None
    act_fn: str = "silu"
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.class_name != "AutoencoderKL":
            raise MgenError(f"it is of a {shown(self.class_name)}, not of an AutoencoderKL")
        for name, only in FIXED.items():
            if (given := getattr(self, name)) != only:
                raise MgenError(f"{name} is {shown(given)}, which KLTokenizer cannot represent (only {only!r})")
        if self.in_channels != self.out_channels or self.use_quant_conv != self.use_post_quant_conv:
            raise MgenError("encoder and decoder differ in channels or quant_conv, which KLTokenizer cannot represent")
        levels = {len(self.block_out_channels), len(self.down_block_types), len(self.up_block_types)}
        if len(levels) > 1:
            raise MgenError("block_out_channels, down_block_types and up_block_types differ in length")


# Settings that KLTokenizer does not have, with the only value it can stand for.
FIXED = {"act_fn": "silu", "latents_mean": None, "latents_std": None}


def diffusers_folder(path: Path) -> Path:
    """Where the weights of a saved AutoencoderKL are: its folder, that of a pipeline with a `vae`, or the file itself."""
    return path / "vae" if (path / "vae" / "config.json").is_file() else path


def diffusers_config(path: Path) -> Settings:
    """Constructor arguments from the config.json beside the weights; `patch` is chosen so that 256 px give 256 tokens.

    Raises:
        MgenError: no config.json, or one of another class or with settings that have no counterpart here.
    """
    file = path.parent / "config.json"
    data = read_json(file)
    if isinstance(data, dict) and "_class_name" in data:
        data = {**data, "class_name": data["_class_name"]}
    c = build(AutoencoderConfig, data, f"{file}: ")
    return {
        "in_channels": c.in_channels,
        "latent_channels": c.latent_channels,
        "channels": c.block_out_channels,
        "layers": c.layers_per_block,
        "norm_groups": c.norm_num_groups,
        "encoder_attention": _attention_levels(c.down_block_types),
        "decoder_attention": _attention_levels(c.up_block_types[::-1]),
        "middle_attention": c.mid_block_add_attention,
        "quant_conv": c.use_quant_conv,
        "patch": max(1, 16 // 2 ** (len(c.block_out_channels) - 1)),
        "scale": c.scaling_factor,
        "shift": c.shift_factor or 0.0,
    }


def _attention_levels(types: Sequence[str]) -> tuple[int, ...]:
    return tuple(i for i, name in enumerate(types) if name.startswith("Attn"))


def diffusers_rename(state: State) -> Renamed:
    """Ours are diffusers' names below `vae.`; files from before 2023 have other names in the attention."""
    out = Renamed()
    for name, value in state.items():
        new, value = attention(name, value)
        out.put(name, f"vae.{new}", value)
    return out


register_format(
    "kl16",
    Format(
        model="KLTokenizer",
        config=config,
        notes=notes,
        rename=rename,
        keys=("state_dict",),
    ),
)

register_format(
    "diffusers-vae",
    Format(
        model="KLTokenizer",
        config=lambda state: {},
        rename=diffusers_rename,
        locate=diffusers_folder,
        beside=diffusers_config,
    ),
)
