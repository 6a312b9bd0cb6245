"""One training step of a small generator, from random numbers that are the same on every device; settings of a small training."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgen.heads import HeadNoise
from mgen.training.carried import encode_features
from tests.helpers import tiny_config, tiny_tokenizer, tiny_tokens, write_idx


def training_step(net: Any, *, masked: int) -> tuple[Tensor, Tensor]:
    """Mean loss of two images, of whose tokens so many are masked, and the norm of every gradient."""
    rng, units, device = torch.Generator().manual_seed(masked), net.units, net.device
    order = torch.rand(2, units.length, generator=rng).argsort(1)
    known = torch.zeros_like(order, dtype=torch.bool) if net.capabilities.one_by_one else order >= masked
    shape = (2, *units.shape)
    ids = units.dtype == torch.int64
    tokens = (torch.randint(16, shape, generator=rng) if ids else torch.randn(shape, generator=rng)).to(device)
    made = [net.head.training_noise(units.length, 2, rng) for _ in range(2)]
    noise = None
    if made[0] is not None:
        noise = HeadNoise(*(torch.stack([getattr(one, name) for one in made]).to(device) for name in ("t", "noise")))
    labels, more = torch.tensor([0, 1], device=device), {}
    if net.capabilities.carried_features:  # of a simulated earlier step, with other weights
        weights = {f"model.{name}": 1.1 * p for name, p in net.named_parameters()}
        earlier = known & (order >= masked + 3)
        more["cache"] = encode_features(net, tokens, labels, earlier.to(device), weights)
    torch.manual_seed(0)  # of dropout
    drawn = net.trunk.training_noise(order, known)
    drawn = None if drawn is None else drawn.to(device)
    loss = net(tokens, labels, known.to(device), noise=noise, trunk_noise=drawn, **more)[0].mean()
    net.zero_grad()
    loss.backward()
    return loss.detach(), torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None])


def small_training(folder: Path) -> dict[str, Any]:
    """Settings of a run of two steps of a small U-ViT on images and a tokenizer in `folder`; `output` is missing."""
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    tokens = tiny_tokens(side=8, vocab_size=64)
    return {
        "task": "generator",
        "steps": 2,
        "batch_size": 6,
        "model": tiny_config("uvit", tokens=tokens, classes={"count": 10}),
        "data": {"kind": "fmnist", "path": str(write_idx(folder / "idx", count=24))},
        "objective": {"tokenizer": str(folder / "tokenizer"), "sampler": {"steps": 2}},
        "ema": {"decay": 0.9},
        "log": {"every": 1, "checkpoint_every": 1, "tensorboard": False},
    }


def logged_losses(output: Path) -> dict[int, float]:
    """The loss of every step that a run has logged."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}
