"""KL autoencoders: `kl16.ckpt` of MAR, its safetensors mirror and others with LDM's keys; and folders of diffusers' AutoencoderKL,
such as the f8 autoencoders of Stable Diffusion."""

import inspect
import re
from pathlib import Path

from mgen.convert.reading import Renamed, State, attention, count
from mgen.tokenizers.kl import KLTokenizer
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.files import read_json


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

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Settings that KLTokenizer does not have, with the only value it can stand for.
FIXED = {"act_fn": "silu", "latents_mean": None, "latents_std": None}


def diffusers_file(path: Path) -> Path:
    """The weights of a saved AutoencoderKL: its folder, that of a pipeline with a `vae`, or the file itself."""
    if (path / "vae" / "config.json").is_file():
        path = path / "vae"
    return path / WEIGHTS if path.is_dir() else path


def diffusers_config(path: Path) -> Settings:
    """Constructor arguments from the config.json beside the weights; `patch` is chosen so that 256 px give 256 tokens.

    Raises:
        MgenError: no config.json, or one of another class or with settings that have no counterpart here.
    """
    file = path.parent / "config.json"
    c = read_json(file)
    if c.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise MgenError(f"{file} is of a {c['_class_name']}, not of an AutoencoderKL")
    for name, value in FIXED.items():
        if c.get(name, value) != value:
            raise MgenError(f"{file}: {name} is {c[name]!r}, which KLTokenizer cannot represent (only {value!r})")
    quant = {c.get("use_quant_conv", True), c.get("use_post_quant_conv", True)}
    if len(quant) > 1 or c.get("in_channels", 3) != c.get("out_channels", 3):
        raise MgenError(
            f"{file}: encoder and decoder differ in channels or quant_conv, which KLTokenizer cannot represent"
        )
    channels = tuple(c["block_out_channels"])
    down, up = c["down_block_types"], c["up_block_types"][::-1]
    stride = 2 ** (len(channels) - 1)
    return {
        "in_channels": c.get("in_channels", 3),
        "latent_channels": c.get("latent_channels", 4),
        "channels": channels,
        "layers": c.get("layers_per_block", 1),
        "norm_groups": c.get("norm_num_groups", 32),
        "encoder_attention": tuple(i for i, name in enumerate(down) if name.startswith("Attn")),
        "decoder_attention": tuple(i for i, name in enumerate(up) if name.startswith("Attn")),
        "middle_attention": c.get("mid_block_add_attention", True),
        "quant_conv": quant.pop(),
        "patch": max(1, 16 // stride),
        "scale": c.get("scaling_factor", 0.18215),
        "shift": c.get("shift_factor") or 0.0,
    }


def diffusers_rename(state: State) -> Renamed:
    """Ours are diffusers' names below `vae.`; files from before 2023 have other names in the attention."""
    out = Renamed()
    for name, value in state.items():
        new, value = attention(name, value)
        out.put(name, f"vae.{new}", value)
    return out
