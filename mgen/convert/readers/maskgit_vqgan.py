"""The MaskGIT VQGAN in its three official layouts: taming-style keys, open-muse keys, flax msgpack.

All are brought to taming-style keys, which mgen.tokenizers.vqgan uses itself.
"""

import re

from mgen.convert.format import Format, register_format
from mgen.convert.reading import Renamed, State, count
from mgen.utils.config import Settings

INNER = {"GroupNorm_0": "norm1", "GroupNorm_1": "norm2"}  # of a block of flax
INNER |= {"Conv_0": "conv1", "Conv_1": "conv2", "Conv_2": "nin_shortcut"}


def config(state: State) -> Settings:
    """Constructor arguments that the shapes tell: all but the image size."""
    state = rename(state).state
    first = state["encoder.conv_in.weight"]
    levels, channels = count(state, r"encoder\.down\.(\d+)\."), first.shape[0]
    widths = [state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)]
    vocab_size, latent = state["quantize.embedding.weight"].shape
    return {
        "in_channels": first.shape[1],
        "channels": channels,
        "multipliers": tuple(w // channels for w in widths),
        "blocks": count(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "mid_blocks": count(state, r"encoder\.mid\.block_(\d+)\.") - 1,  # their names begin with 1
        "latent": latent,
        "vocab_size": vocab_size,
    }


def rename(state: State) -> Renamed:
    """Taming-style names for any of the layouts."""
    if any(name.startswith("params/") for name in state):
        return _from_flax(state)
    out = Renamed()
    inside = any(name.startswith("vqgan.") for name in state)  # MAGE's files hold it beside the generator
    for name, value in state.items():
        if inside and not name.startswith("vqgan."):
            out.ignored[name] = "of the generator in the same file"
            continue
        new = name.removeprefix("vqgan.")
        new = re.sub(r"\.mid\.(\d+)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", new)  # open-muse
        out.put(name, new.replace(".upsample_conv.", ".upsample.conv."), value)
    return out


def _from_flax(state: State) -> Renamed:
    """Flax tree (NHWC, kernels (kh, kw, in, out)) → taming-style names.

    Blocks are numbered in running order. Encoder: `blocks` per level, then the middle; decoder: the middle, then `blocks`
    per level from the coarsest. Flax has as many middle blocks as blocks per level.
    """
    levels = count(state, r"params/decoder/Conv_(\d+)/") - 1
    blocks = count(state, r"params/encoder/ResBlock_(\d+)/") // (levels + 1)
    out = Renamed()
    for name, value in state.items():
        part, *path = name.removeprefix("params/").split("/")
        if part == "quantizer":
            out.put(name, "quantize.embedding.weight", value)
            continue
        leaf = {"kernel": "weight", "scale": "weight", "bias": "bias"}[path[-1]]
        kind, number = path[0].rsplit("_", 1)
        n = int(number)
        if kind == "ResBlock":
            level, b = divmod(n, blocks)  # in the encoder the middle is level `levels`, in the decoder level 0
            if level == (levels if part == "encoder" else 0):
                place = f"mid.block_{1 + b}"
            else:
                place = f"down.{level}.block.{b}" if part == "encoder" else f"up.{levels - level}.block.{b}"
            new = f"{part}.{place}.{INNER[path[1]]}.{leaf}"
        elif kind == "GroupNorm":
            new = f"{part}.norm_out.{leaf}"
        elif n == 0:
            new = f"{part}.conv_in.{leaf}"
        elif part == "encoder" or n == levels:
            new = f"{part}.conv_out.{leaf}"
        else:
            new = f"{part}.up.{levels - n}.upsample.conv.{leaf}"
        out.put(name, new, value.permute(3, 2, 0, 1) if value.ndim == 4 else value)
    return out


register_format(
    "maskgit-vqgan",
    Format(
        model="VQGAN",
        config=config,
        rename=rename,
        keys=("state_dict",),
    ),
)
