"""Heads: context vector → token; a loss for training and a draw for sampling."""

from collections.abc import Mapping

from mgen.heads.categorical import CategoricalHead, DrawSettings
from mgen.heads.chains import ChainSettings
from mgen.heads.channels import ChannelHead, ChannelSettings
from mgen.heads.composite import PerCodebookHead, VectorWindowHead, WindowHead
from mgen.heads.diffusion import DiffusionHead
from mgen.heads.diffusion_transformer import DiffusionTransformerHead
from mgen.heads.flows import FlowSettings
from mgen.heads.head import (
    HEADS,
    DenoisingHead,
    Draw,
    Head,
    HeadInputs,
    HeadNoise,
    JointHead,
    NoiseSpec,
    register_head,
)
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, check_keys, shown

__all__ = [
    "CategoricalHead",
    "ChainSettings",
    "ChannelHead",
    "ChannelSettings",
    "DenoisingHead",
    "DiffusionHead",
    "DiffusionTransformerHead",
    "DrawSettings",
    "FlowSettings",
    "PerCodebookHead",
    "VectorWindowHead",
    "HEADS",
    "Draw",
    "Head",
    "HeadInputs",
    "HeadNoise",
    "JointHead",
    "NoiseSpec",
    "register_head",
    "WindowHead",
    "check_draw",
]


def check_draw(settings: Settings) -> None:
    """MgenError unless these are settings of some head's draw; whether of the head at hand, its own `check` tells."""
    if not isinstance(settings, Mapping):
        raise MgenError(f"head is {shown(settings)}: expected a mapping")
    kinds = (ChainSettings, FlowSettings, DrawSettings, ChannelSettings)
    check_keys(settings, {key for kind in kinds for key in kind.__dataclass_fields__}, "head.")
    for kind in kinds:
        if settings.keys() <= kind.__dataclass_fields__.keys():
            kind.of(settings)
            return
    raise MgenError(
        f"head {shown(dict(settings))} mixes settings of different heads: chain, steps, clip and spacing are of a diffusion head, "
        "solver and steps of a flow, tempered and mask of a categorical one, guide of a channel head"
    )
