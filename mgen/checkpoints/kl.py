"""KL autoencoders of the LDM line (`kl16.ckpt` of MAR, its safetensors mirror, other widths and depths): raw keys → diffusers'."""

import re
from typing import Any

from mgen.checkpoints.reading import Renamed, State

ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def config(state: State) -> dict[str, Any]:
    """Constructor arguments that the shapes tell; image size, groups of the norms (32), patch and scale they do not."""
    levels = 1 + max(int(m[1]) for name in state if (m := re.match(r"encoder\.down\.(\d+)\.", name)))
    blocks = 1 + max(int(m[1]) for name in state if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", name)))
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "channels": tuple(state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)),
        "layers": blocks,
        "encoder_attention": _with_attention(state, "encoder.down"),
        "decoder_attention": _with_attention(state, "decoder.up"),
        "middle_attention": "encoder.mid.attn_1.q.weight" in state,
        "quant_conv": "quant_conv.weight" in state,
    }


def rename(state: State) -> Renamed:
    """diffusers' names; the 1×1 convolutions of the attention become linear layers."""
    levels = 1 + max(int(m[1]) for name in state if (m := re.match(r"decoder\.up\.(\d+)\.", name)))
    out = Renamed()
    for name, value in state.items():
        new = name
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
        if m := re.match(r"(.*\.attentions\.\d+)\.(norm|q|k|v|proj_out)\.(weight|bias)$", new):
            new = f"{m[1]}.{ATTENTION[m[2]]}.{m[3]}"
            value = value[:, :, 0, 0] if value.ndim == 4 else value
        out.put(name, f"vae.{new}", value)
    return out


def _with_attention(state: State, part: str) -> tuple[int, ...]:
    return tuple(sorted({int(m[1]) for name in state if (m := re.match(rf"{part}\.(\d+)\.attn\.", name))}))
