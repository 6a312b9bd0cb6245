"""The rules by which `mgen init` fills in settings: image size, networks, batch size, passes over the data, learning rate.

They start from the shipped trainings of Fashion-MNIST, whose settings were tried out here, and are stated in the files they fill in.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from mgen.utils.errors import MgenError

SIZES = (32, 64, 128, 256)
LARGEST_ON_CPU = 64
ENLARGED = 1.2  # images are enlarged at most so much
BATCH = 64  # of the shipped trainings
HELD_OUT, HELD_OUT_OF = 0.05, 2000  # share for validation; 0.1 of fewer images than this
FEW = 20_000  # images, below which dropout is switched on
KEPT = 2 * 10**9  # bytes of images that are kept in memory
Kind = Literal["index", "vector"]


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How long to train: passes over the data, but no fewer than `least` and no more than `most` images in all."""

    passes: int
    least: int
    most: int

    def steps(self, images: int, batch: int) -> int:
        return max(1, round(min(self.most, max(self.least, self.passes * images)) / batch))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The networks and the length of the trainings for one image size.

    Attributes:
        ids, vectors: settings of the tokenizer for MaskGIT (VQGAN), or for MAR (KLTokenizer). trunks: of the generator, by kind of token.
        lr_tokenizer, lr_generator: for a batch of `BATCH`.
    """

    ids: dict[str, Any]
    vectors: dict[str, Any]
    trunks: dict[Kind, dict[str, Any]]
    heads: dict[Kind, dict[str, Any]]
    batch: int
    tokenizer: Passes
    generator: Passes
    lr_tokenizer: float
    lr_generator: float
    large: bool = False


SMALL_GENERATOR: dict[str, Any] = dict(
    trunks={
        "index": {"type": "uvit", "dim": 192, "depth": 6, "heads": 6},
        "vector": {
            "type": "mae",
            **{"encoder_dim": 192, "encoder_depth": 3, "encoder_heads": 6},
            **{"decoder_dim": 192, "decoder_depth": 3, "decoder_heads": 6},
            "prefix_length": 4,
        },
    },
    heads={
        "index": {"type": "categorical", "table": "tied-detached"},
        "vector": {"type": "diffusion", "width": 192, "depth": 3},
    },
)
LARGE_GENERATOR: dict[str, Any] = dict(
    trunks={
        "index": {"type": "adaln", "dim": 512, "depth": 12, "heads": 8, "hidden": 1536},
        "vector": {
            "type": "mae",
            **{"encoder_dim": 512, "encoder_depth": 8, "encoder_heads": 8},
            **{"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 8},
            "prefix_length": 16,
        },
    },
    heads={
        "index": {"type": "categorical", "table": "tied", "transform": False, "mask_drawn": True},
        "vector": {"type": "diffusion", "width": 768, "depth": 4},
    },
)
SMALL_VQ = dict(channels=16, blocks=1, mid_blocks=1, norm_groups=0, shortcut="input")
LARGE_VQ = dict(blocks=2, mid_blocks=2, shortcut="input")
SMALL_KL = dict(latent_channels=4, layers=1, norm_groups=8, encoder_attention=(), middle_attention=False)
LARGE_KL = dict(layers=2, norm_groups=32, encoder_attention=())
SMALL_RUNS: dict[str, Any] = dict(
    batch=BATCH,
    tokenizer=Passes(passes=40, least=2400 * BATCH, most=8000 * BATCH),
    generator=Passes(passes=60, least=3200 * BATCH, most=20_000 * BATCH),
    lr_tokenizer=1e-3,
    lr_generator=1e-3,
)
LARGE_RUNS: dict[str, Any] = dict(
    batch=BATCH,
    tokenizer=Passes(passes=60, least=20_000 * BATCH, most=200_000 * BATCH),
    generator=Passes(passes=300, least=40_000 * BATCH, most=600_000 * BATCH),
    lr_tokenizer=1e-4,
    lr_generator=1e-4,
    large=True,
)
PRESETS = {
    32: Preset(
        ids=dict(SMALL_VQ, multipliers=(1, 2, 4), fsq_levels=(8, 8, 8)),
        vectors=dict(SMALL_KL, channels=(16, 32, 64)),
        **SMALL_GENERATOR,
        **SMALL_RUNS,
    ),
    64: Preset(
        ids=dict(SMALL_VQ, multipliers=(1, 2, 4, 4), fsq_levels=(8, 5, 5, 5)),
        vectors=dict(SMALL_KL, channels=(16, 32, 64, 64)),
        **SMALL_GENERATOR,
        **SMALL_RUNS,
    ),
    128: Preset(
        ids=dict(LARGE_VQ, channels=64, multipliers=(1, 2, 2, 4), fsq_levels=(8, 5, 5, 5)),
        vectors=dict(LARGE_KL, latent_channels=8, channels=(64, 128, 128, 256)),
        **LARGE_GENERATOR,
        **LARGE_RUNS,
    ),
    256: Preset(
        ids=dict(LARGE_VQ, channels=64, multipliers=(1, 1, 2, 2, 4), fsq_levels=(8, 5, 5, 5)),
        vectors=dict(LARGE_KL, latent_channels=16, channels=(64, 64, 128, 128, 256)),
        **LARGE_GENERATOR,
        **LARGE_RUNS,
    ),
}


def image_size(side: int, *, gpu: bool) -> int:
    """The largest supported size to which images of this median shorter side are enlarged by no more than a fifth."""
    fitting = [size for size in SIZES if size <= ENLARGED * side] or [SIZES[0]]
    return fitting[-1] if gpu else min(fitting[-1], LARGEST_ON_CPU)


def preset(size: int) -> Preset:
    """The preset for a supported image size, or the nearest one for another multiple of its downsampling."""
    nearest = min(SIZES, key=lambda known: abs(math.log(known / size)))
    found = PRESETS[nearest]
    factor = 2 ** (len(found.ids["multipliers"]) - 1)
    if size % factor:
        low = max(factor, size // factor * factor)
        raise MgenError(
            f"image size {size} is not a multiple of {factor}, by which the tokenizer makes images smaller: give {low} or {low + factor}"
        )
    return found


def batch_size(images: int, most: int = BATCH) -> int:
    """The largest power of two that is no more than `most` and an eighth of the images; 4 at least."""
    return min(most, max(4, 2 ** int(math.log2(max(1, images / 8)))))


def scaled_lr(lr: float, batch: int) -> float:
    """A learning rate for a batch of `BATCH` at another batch: with the square root, two digits."""
    return float(f"{lr * math.sqrt(batch / BATCH):.2g}")


def held_out(images: int) -> float:
    return HELD_OUT if images >= HELD_OUT_OF else 2 * HELD_OUT
