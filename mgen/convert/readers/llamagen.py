"""LlamaGen's VQ tokenizer: `vq_ds16_c2i.pt`, `vq_ds8_c2i.pt`, weights under `model`, and their safetensors mirrors, fp32."""

import re

import torch.nn.functional as F

from mgen.convert.format import Format, register_format
from mgen.convert.reading import Renamed, State, attention
from mgen.utils.config import Settings

BLOCK = r"encoder\.conv_blocks\.(\d+)\.res\.(\d+)\."
MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}


def config(state: State) -> Settings:
    """Constructor arguments that the shapes tell; image size, groups of the norms (32) and how codes are compared they do not."""
    blocks = [tuple(map(int, m.groups())) for name in state if (m := re.match(BLOCK, name))]
    levels, layers = (1 + max(numbers) for numbers in zip(*blocks))
    channels = tuple(state[f"encoder.conv_blocks.{i}.res.0.conv1.weight"].shape[0] for i in range(levels))
    stem, in_channels = state["encoder.conv_in.weight"].shape[:2]
    vocab_size, latent = state["quantize.embedding.weight"].shape
    out = {
        "in_channels": in_channels,
        "channels": channels,
        "layers": layers,
        "z_channels": state["encoder.conv_out.weight"].shape[0],
        "latent": latent,
        "vocab_size": vocab_size,
    }
    return out | ({"stem": stem} if stem != channels[0] else {})


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    if not config.get("normalized", True):
        return []
    return [
        "codes are compared by angle, as in the published files; weights do not tell: normalized=false is for files that were trained "
        "with codebook_l2_norm false"
    ]


def rename(state: State, config: Settings | None = None) -> Renamed:
    """diffusers' names; 1×1 convolutions of the attention become linear layers; codes that are compared by angle get length 1."""
    normalized = (config or {}).get("normalized", True)
    out = Renamed()
    for name, value in state.items():
        if name == "quantize.codebook_used":
            out.ignored[name] = "a record of the codes of the last training steps, not a weight"
            continue
        new = re.sub(r"^encoder\.conv_blocks\.", "encoder.down_blocks.", name)
        new = re.sub(r"^decoder\.conv_blocks\.", "decoder.up_blocks.", new)  # both store their levels in running order
        new = re.sub(r"\.mid\.([012])\.", lambda m: f".mid_block.{MIDDLE[m[1]]}.", new)
        new = new.replace(".res.", ".resnets.").replace(".attn.", ".attentions.")
        new = re.sub(r"\.(down|up)sample\.", r".\1samplers.0.", new)
        new = new.replace(".nin_shortcut.", ".conv_shortcut.").replace(".norm_out.", ".conv_norm_out.")
        new, value = attention(new, value)
        if name == "quantize.embedding.weight" and normalized:
            value = F.normalize(value.float(), dim=-1)
        out.put(name, f"vq.{new}", value)
    return out


register_format(
    "llamagen-vq",
    Format(
        model="LlamaGenVQ",
        config=config,
        notes=notes,
        rename=rename,
        ema="ema",
    ),
)
