"""Tokenizers and generators of vectors train alike on one process, on two, and in several pieces."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mgen.training.config import train_config
from mgen.training.loop import train
from tests.helpers import LDETOK, TITOK, tiny_config, tiny_kl, tiny_tokens, write_idx
from tests.processes import together
from tests.system.test_training import losses

TOKENIZERS: dict[str, dict[str, Any]] = {
    "l-detok": {
        "model": {"class": "LDeTok", **LDETOK, "latents_mean": None, "latents_std": None},
        "objective": {"kl": 1e-3, "corruption": {"noise": 2.0, "mask": 0.7}},
    },
    "titok": {"model": {"class": "TiTok", **TITOK, "vocab_size": 16}},
    "titok-kl": {"model": {"class": "TiTokKL", **TITOK, "scale": 1.0}},
}
HALVES = {"encoder_depth": 1, "encoder_heads": 2, "decoder_depth": 1, "decoder_heads": 2}
NO_DROPOUT = {"attn_dropout": 0.0, "dropout": 0.0}
GENERATORS: dict[str, dict[str, Any]] = {
    "xar": {
        "model": {
            "tokens": tiny_tokens("vector"),
            "classes": {"count": 10},
            "trunk": {"type": "block-causal", "size": [4, 4], "dim": 32, "hidden": 48, **HALVES, **NO_DROPOUT},
            "head": {"type": "velocity"},
        },
    },
    "emigm": {
        "model": tiny_config("mae", tokens=tiny_tokens("vector"), classes={"count": 10, "null_class": "mask"}),
        "objective": {
            "mask": {
                "distribution": "masked-diffusion",
                "curve": "exp5",
                "clamp": 0.2,
                "per": "batch",
                "rounding": "binomial",
            }
        },
    },
}


def run(output: Path, data: Path, changed: dict[str, Any]) -> dict[str, Any]:
    return {
        "output": str(output),
        "steps": 4,
        "batch_size": 48,
        "data": {"kind": "fmnist", "path": str(data), "flip": True},
        "optim": {"lr": 1e-3},
        "ema": {"decay": 0.9},
        "log": {"every": 1, "tensorboard": False},
        **changed,
    }


def weights(output: Path) -> dict[str, torch.Tensor]:
    return next(
        load_file(file)
        for file in sorted((output / "model").rglob("diffusion_pytorch_model.safetensors"), reverse=True)
    )


def compare(config: dict[str, Any], tmp_path: Path) -> None:
    """One process, three pieces, and two processes."""
    train(train_config(config))
    train(train_config({**config, "output": str(tmp_path / "pieces"), "accumulate": 3}))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "output": str(tmp_path / "two")}))
    together("train", "--config", str(tmp_path / "c.yaml"), "processes=2", log=tmp_path / "log")
    one = weights(tmp_path / "one")
    for other in ("pieces", "two"):
        assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / other), rel=1e-4)
        made = weights(tmp_path / other)
        assert all(torch.allclose(one[name], made[name], atol=2e-4) for name in one)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_train_alike(name: str, tmp_path: Path) -> None:
    data = write_idx(tmp_path / "idx")
    compare(run(tmp_path / "one", data, {"task": "tokenizer", **TOKENIZERS[name]}), tmp_path)


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_of_vectors_train_alike(name: str, tmp_path: Path) -> None:
    data, changed = write_idx(tmp_path / "idx"), GENERATORS[name]
    tiny_kl(channels=(8, 8, 16, 16)).save_pretrained(tmp_path / "kl")
    objective = {"tokenizer": str(tmp_path / "kl"), "diffusion_batch_mul": 1, **changed.get("objective", {})}
    compare(run(tmp_path / "one", data, {"task": "generator", **changed, "objective": objective}), tmp_path)
