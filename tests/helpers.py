"""Tiny real components: random weights, seconds to run, nothing mocked."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mgen.generators import MAR, HiMAR, MaskGIT
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.samplers import ParallelSampler
from mgen.tokenizers import VQGAN, KLTokenizer

TOKENIZER = dict(image_size=32, in_channels=1, channels=8, multipliers=(1, 1, 2), blocks=1, mid_blocks=1, norm_groups=0)
KL = dict(
    image_size=32,
    in_channels=1,
    latent_channels=4,
    channels=(8, 8, 16),
    layers=1,
    norm_groups=4,
    encoder_attention=(),
    middle_attention=False,
)
CONTINUOUS = dict(
    side=8,
    channels=4,
    encoder_dim=32,
    encoder_depth=2,
    encoder_heads=2,
    decoder_dim=32,
    decoder_depth=2,
    decoder_heads=2,
    buffer=2,
    head_width=32,
    head_depth=2,
    num_classes=3,
    attn_dropout=0.0,
    dropout=0.0,
)
GENERATOR = dict(side=8, codes=64, dim=32, depth=2, heads=2, num_classes=3, dropout=0.0)


def tiny_tokenizer(seed: int = 0, **settings: Any) -> VQGAN:
    torch.manual_seed(seed)
    return VQGAN(**{**TOKENIZER, "latent": 4, "vocab_size": 64, **settings}).eval()


def tiny_generator(seed: int = 1, **settings: Any) -> MaskGIT:
    torch.manual_seed(seed)
    model = MaskGIT(**{**GENERATOR, **settings}).eval()
    with torch.no_grad():  # spread the logits, so that draws differ and near ties do not
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def tiny_kl(seed: int = 0, **settings: Any) -> KLTokenizer:
    torch.manual_seed(seed)
    return KLTokenizer(**{**KL, "scale": 1.0, **settings}).eval()


def tiny_mar(seed: int = 1, **settings: Any) -> MAR:
    torch.manual_seed(seed)
    model = MAR(**{**CONTINUOUS, "scale": 1.0, **settings}).eval()
    with torch.no_grad():  # the head starts at zero, where nothing would depend on the context
        for name, parameter in model.named_parameters():
            if parameter.abs().max() == 0 and name.endswith("weight"):
                parameter.normal_(std=0.02)
    return model


def tiny_himar(seed: int = 1, **settings: Any) -> HiMAR:
    torch.manual_seed(seed)
    own = dict(side=8, pivot_side=4, channels=4, scale=1.0, dim=32, encoder_depth=2, decoder_depth=2, heads=2, buffer=3)
    heads = dict(pivot_head_width=24, pivot_head_depth=2, head_width=32, head_depth=2, head_heads=2)
    model = HiMAR(**{**own, **heads, "num_classes": 3, "attn_dropout": 0.0, "dropout": 0.0, **settings}).eval()
    with (
        torch.no_grad()
    ):  # heads and modulations start at zero, where nothing would depend on the context or on the stage
        for name, parameter in model.named_parameters():
            if parameter.abs().max() == 0 and name.endswith(("weight", "task_scale")):
                parameter.normal_(std=0.05)
            elif "categorical" == model.config.head_kind and name.endswith("_proj.weight"):
                parameter.mul_(30.0)
    return model


def tiny_continuous(**sampler: Any) -> MaskedPipeline:
    settings = {"steps": 6, "order": "random", "guidance": 2.0, "head": {"steps": 8, "clip": 4.0}, **sampler}
    return MaskedPipeline(tokenizer=tiny_kl(), generator=tiny_mar(), sampler=ParallelSampler(**settings))


def tiny_pipeline(**sampler: Any) -> MaskedPipeline:
    settings = {"steps": 6, "guidance": 2.0, **sampler}
    return MaskedPipeline(tokenizer=tiny_tokenizer(), generator=tiny_generator(), sampler=ParallelSampler(**settings))


def write_idx(folder: Path, *, count: int = 96, classes: int = 3) -> Path:
    """The four IDX files of a small made-up Fashion-MNIST: a bright bar whose place tells the class."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, n in (("train", count), ("t10k", count // 2)):
        labels = np.arange(n, dtype=np.uint8) % classes
        images = rng.integers(0, 40, (n, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels):
            image[:, 4 + 8 * label : 10 + 8 * label] += 180
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return folder
