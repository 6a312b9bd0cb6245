"""Folders of diffusers' AutoencoderDC, such as mit-han-lab/dc-ae-f32c32-in-1.0-diffusers."""

from pathlib import Path
from typing import Any

from mgen.convert.format import Format, register_format
from mgen.convert.readers.kl import diffusers_folder
from mgen.convert.reading import Renamed, State
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, shown
from mgen.utils.reading import read_json

# diffusers' names of the settings → ours. A name or list is the same for all levels, or one for each.
SETTINGS = {
    "in_channels": "in_channels",
    "latent_channels": "latent_channels",
    "attention_head_dim": "head_dim",
    "encoder_block_types": "encoder_blocks",
    "encoder_block_out_channels": "encoder_channels",
    "encoder_layers_per_block": "encoder_layers",
    "encoder_qkv_multiscales": "encoder_scales",
    "decoder_block_types": "decoder_blocks",
    "decoder_block_out_channels": "decoder_channels",
    "decoder_layers_per_block": "decoder_layers",
    "decoder_qkv_multiscales": "decoder_scales",
    "decoder_norm_types": "decoder_norms",
    "decoder_act_fns": "decoder_activations",
    "downsample_block_type": "downsample",
    "upsample_block_type": "upsample",
    "encoder_out_shortcut": "encoder_shortcut",
    "decoder_in_shortcut": "decoder_shortcut",
    "decoder_conv_act_fn": "decoder_end",
    "scaling_factor": "scale",
}


def config(path: Path) -> Settings:
    """Constructor arguments from the config.json beside the weights; MgenError for one of another class or without a setting."""
    file = path.parent / "config.json"
    data: Any = read_json(file)
    if not isinstance(data, dict) or data.get("_class_name") != "AutoencoderDC":
        name = shown(data.get("_class_name") if isinstance(data, dict) else data)
        raise MgenError(f"{file} is of {name}, not of an AutoencoderDC: give the folder of diffusers' version")
    if missing := [name for name in SETTINGS if name not in data]:
        raise MgenError(f"{file} lacks {missing[0]}: save the model with AutoencoderDC.save_pretrained")
    levels = len(data["encoder_block_out_channels"])
    out = {ours: _tuples(data[name]) for name, ours in SETTINGS.items()}
    for name in ("encoder_blocks", "decoder_blocks", "decoder_norms", "decoder_activations"):
        if isinstance(out[name], str):
            out[name] = (out[name],) * levels
    return out


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def rename(state: State) -> Renamed:
    """Ours are diffusers' names below `ae.`."""
    out = Renamed()
    for name, value in state.items():
        out.put(name, f"ae.{name}", value)
    return out


register_format(
    "diffusers-dc-ae",
    Format(model="DCAE", config=lambda state: {}, rename=rename, locate=diffusers_folder, beside=config),
)
