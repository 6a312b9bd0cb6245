"""Tiny real components: random weights, seconds to run, nothing mocked."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mgen.generators import Cascade, Generator, build_model
from mgen.generators.presets import model_config
from mgen.heads.categorical import OwnTable
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.samplers import ParallelSampler
from mgen.tokenizers import DCAE, VQGAN, HitaTokenizer, KLTokenizer, LDeTok

TOKENIZER = dict(image_size=32, in_channels=1, channels=8, multipliers=(1, 1, 2), blocks=1, mid_blocks=1, norm_groups=0)
DC_AE: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 1,
    "latent_channels": 4,
    "head_dim": 4,
    **{f"{half}_blocks": ("ResBlock", "ResBlock", "EfficientViTBlock") for half in ("encoder", "decoder")},
    **{f"{half}_channels": (8, 8, 16) for half in ("encoder", "decoder")},
    **{f"{half}_layers": (0, 1, 1) for half in ("encoder", "decoder")},
    **{f"{half}_scales": ((), (), (5,)) for half in ("encoder", "decoder")},
    "decoder_norms": ("batch_norm", "batch_norm", "rms_norm"),
    "decoder_activations": ("relu", "relu", "silu"),
    "scale": 0.3189,
}
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
LDETOK: dict[str, Any] = dict(
    image_size=32,
    in_channels=1,
    patch=4,
    latent_channels=4,
    **{f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in (("dim", 16), ("depth", 1), ("heads", 2))},
    latents_mean=(0.1, 0.0, -0.1, 0.2),
    latents_std=(0.5, 1.0, 1.5, 2.0),
)
HITA: dict[str, Any] = dict(
    image_size=32,
    in_channels=1,
    channels=(8, 8, 8),
    layers=1,
    norm_groups=4,
    global_tokens=6,
    shift=3,
    dim=16,
    depth=2,
    heads=2,
    hidden=24,
    vocab_size=32,
    global_vocab_size=32,
    latent=4,
    global_latent=5,
    dropout=0.0,
    vision=None,
)
# Of both classes of TiTok tokenizers.
TITOK: dict[str, Any] = dict(
    image_size=32,
    in_channels=1,
    latent_tokens=6,
    patch=8,
    encoder_dim=16,
    encoder_depth=1,
    encoder_heads=2,
    decoder_dim=16,
    decoder_depth=2,
    decoder_heads=2,
    latent=4,
)
HALVES = dict(encoder_dim=32, encoder_depth=2, encoder_heads=2, decoder_dim=32, decoder_depth=2, decoder_heads=2)
TRUNKS: dict[str, dict[str, Any]] = {
    "uvit": dict(dim=32, depth=2, heads=2, dropout=0.0),
    "bert": dict(dim=32, depth=2, heads=2, hidden=64, dropout=0.0),
    "mage": dict(**HALVES, dropout=0.0),
    "mae": dict(**HALVES, prefix_length=2, attn_dropout=0.0, dropout=0.0),
    "enat": dict(dim=32, encoder_depth=2, decoder_depth=2, heads=2, dropout=0.0),
    "adaln": dict(dim=32, depth=2, heads=2, hidden=64, dropout=0.0),
    "causal": dict(dim=32, depth=2, heads=2, hidden=64, dropout=0.0),
    "permuted": dict(dim=32, depth=2, heads=2, hidden=64, dropout=0.0, attn_dropout=0.0),
}
OF_IDS: dict[str, dict[str, Any]] = {
    "bert": dict(table="tied", loss_rows="table", approximate="tanh", eps=1e-12),
    "mae": dict(table="tied"),
    "adaln": dict(table="tied", transform=False, mask_drawn=True),
    "causal": dict(table="own", transform=False, bias=False),
    "permuted": dict(table="own", transform=False),
}
LEVELS = {"form": "published", "low": -5.0, "high": 5.0, "span": 3.0}


def tiny_tokens(
    kind: str = "index", *, side: int = 4, vocab_size: int = 16, channels: int = 4, global_tokens: int = 0
) -> dict[str, Any]:
    """The `tokens` section of a small grid."""
    tokens: dict[str, Any] = dict(kind=kind, length=side * side + global_tokens, grid=[side, side])
    if kind == "index":
        return tokens | dict(vocab_size=vocab_size, global_tokens=global_tokens)
    tokens |= dict(channels=channels, scale=1.0)
    return tokens if kind == "vector" else tokens | dict(vocab_size=vocab_size, levels=LEVELS)


def tiny_config(
    trunk: str,
    *,
    tokens: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    classes: dict[str, Any] | None = None,
    windows: dict[str, Any] | None = None,
    embedder: dict[str, Any] | None = None,
    **trunk_settings: Any,
) -> dict[str, Any]:
    """The configuration of a small generator: three classes, ids of 16, the head that the trunk was published with."""
    tokens = tokens or tiny_tokens()
    of_kind = {
        "index": {"type": "categorical", **OF_IDS.get(trunk, {})},
        "vector": {"type": "diffusion", "width": 32, "depth": 2},
        "multi-index": {"type": "channels", "width": 32, "depth": 2, "heads": 2},
    }[tokens["kind"]]
    shared = {"table": "shared"} if trunk in ("bert", "mage") and tokens["kind"] == "index" else {}
    config: dict[str, Any] = {
        "tokens": tokens,
        "classes": {"count": 3, **shared, **(classes or {})},
        "trunk": {"type": trunk, **TRUNKS[trunk], **trunk_settings},
        "head": {**(of_kind if head is None or "type" not in head else {}), **(head or {})},
    }
    for name, section in (("windows", windows), ("embedder", embedder)):
        if section is not None:
            config[name] = section
    return config


def tiny_net(trunk: str, seed: int = 0, **sections: Any) -> Any:
    """A small generator in evaluation mode; sections as in `tiny_config`."""
    torch.manual_seed(seed)
    return build_model(tiny_config(trunk, **sections)).eval()


def head_table(net: Any) -> OwnTable | nn.Embedding:
    """The table of ids that the head of a generator computes logits by: its own, which is zero at first, or the embedder's."""
    own = [module for module in net.head.modules() if isinstance(module, OwnTable)]
    return own[0] if own else net.embedder.token_table


def tiny_tokenizer(seed: int = 0, **settings: Any) -> VQGAN:
    torch.manual_seed(seed)
    return VQGAN(**{**TOKENIZER, "latent": 4, "vocab_size": 64, **settings}).eval()


def tiny_generator(seed: int = 1, **sections: Any) -> Generator:
    """A U-ViT on the ids of `tiny_tokenizer`, with larger weights, so that draws differ and near ties do not."""
    model = tiny_net("uvit", seed, **{"tokens": tiny_tokens(side=8, vocab_size=64), **sections})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def tiny_kl(seed: int = 0, **settings: Any) -> KLTokenizer:
    torch.manual_seed(seed)
    return KLTokenizer(**{**KL, "scale": 1.0, **settings}).eval()


def tiny_dc_ae(seed: int = 0, **settings: Any) -> DCAE:
    torch.manual_seed(seed)
    return DCAE(**{**DC_AE, **settings}).eval()


def tiny_ldetok(seed: int = 0, **settings: Any) -> LDeTok:
    torch.manual_seed(seed)
    return LDeTok(**{**LDETOK, **settings}).eval()


def tiny_hita(seed: int = 0, **settings: Any) -> HitaTokenizer:
    torch.manual_seed(seed)
    return HitaTokenizer(**{**HITA, **settings}).eval()


def tiny_mar(seed: int = 1, **sections: Any) -> Generator:
    """A masked autoencoder on the vectors of `tiny_kl`, with a head that depends on the context: a new one starts at zero."""
    model = tiny_net("mae", seed, **{"tokens": tiny_tokens("vector", side=8), **sections})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.abs().max() == 0 and name.endswith("weight"):
                parameter.normal_(std=0.02)
    return model


def tiny_cascade_config(kind: str = "vector", *, head: str = "diffusion-transformer", side: int = 8) -> dict[str, Any]:
    """The configuration of a small Hi-MAR: a first stage of half the side."""
    first, second = (tiny_tokens(kind, side=n) for n in (side // 2, side))
    heads: list[dict[str, Any]] = [{"type": "categorical"}] * 2
    if kind == "vector":
        of_second = {"heads": 2} if head == "diffusion-transformer" else {}
        heads = [{"type": "diffusion", "width": 24, "depth": 2}, {"type": head, "width": 32, "depth": 2, **of_second}]
    sizes = dict(dim=32, encoder_depth=2, decoder_depth=2, heads=2, prefix_length=3, attn_dropout=0.0, dropout=0.0)
    return {
        "first": {"tokens": first, "head": heads[0]},
        "second": {"tokens": second, "head": heads[1]},
        "classes": {"count": 3},
        "trunk": {"type": "mae-two-stage", **sizes},
    }


def tiny_himar(seed: int = 1, **settings: Any) -> Cascade:
    """A small Hi-MAR whose heads and modulations depend on context and stage: new ones start at zero."""
    torch.manual_seed(seed)
    model = build_model(tiny_cascade_config(**settings)).eval()
    assert isinstance(model, Cascade)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.abs().max() == 0 and name.endswith(("weight", "task_scale")):
                parameter.normal_(std=0.05)
            elif name.endswith("_embedder.table.weight"):
                parameter.mul_(30.0)
    return model


def tiny_continuous(**sampler: Any) -> MaskedPipeline:
    settings = {"steps": 6, "order": "random", "guidance": 2.0, "head": {"steps": 8, "clip": 4.0}, **sampler}
    return MaskedPipeline(tokenizer=tiny_kl(), transformer=tiny_mar(), sampler=ParallelSampler(**settings))


def tiny_pipeline(**sampler: Any) -> MaskedPipeline:
    settings = {"steps": 6, "guidance": 2.0, **sampler}
    return MaskedPipeline(tokenizer=tiny_tokenizer(), transformer=tiny_generator(), sampler=ParallelSampler(**settings))


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


SMALL = {
    "dim": 32,
    "encoder_dim": 32,
    "decoder_dim": 32,
    "width": 32,
    "hidden": 64,
    "prefix_length": 2,
    "global_tokens": 4,
}


def shrunk(config: dict[str, Any], side: int = 4) -> dict[str, Any]:
    """The configuration of a published architecture with a few small layers and tokens of a small grid; its options stay."""
    if isinstance(config.get("first"), dict):
        config = {**config, "first": shrunk(config["first"], side // 2)}
    out = {}
    for key, value in config.items():
        if isinstance(value, dict):
            out[key] = value if key == "first" else shrunk(value, side)
        elif key.endswith(("depth", "heads")):
            out[key] = 2
        elif key == "size":  # of an entity: cells of a quarter of the grid
            out[key] = [side // 2, side // 2]
        else:
            out[key] = SMALL.get(key, value) if value else value
    if "grid" in out:
        out |= {"grid": [side, side], "length": side**2 + (out.get("global_tokens") or 0)}
    return out


def tiny_architecture(name: str, seed: int = 0) -> Any:
    """A small one of a published architecture in evaluation mode, with weights where a new one has zeros."""
    torch.manual_seed(seed)
    model = build_model(shrunk(model_config(name))).eval()
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if weight.abs().max() == 0 and parameter.endswith("weight"):
                weight.normal_(std=0.02)
    return model
