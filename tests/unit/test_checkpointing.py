"""Gradient checkpointing: the same losses and gradients, dropout included, and less that is kept for the backward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.generators.build import build_model
from mgen.heads.head import HeadNoise
from mgen.training.config import train_config
from mgen.training.estimate import needed_memory
from mgen.training.loop import run
from mgen.training.trainer import Trainer
from mgen.utils.errors import MgenError
from tests.helpers import TRUNKS, tiny_config, tiny_net, tiny_tokenizer, tiny_tokens, write_idx
from tests.system.test_training import generator_run, losses

DROPOUT = {"dropout": 0.1}
HALVES = {"encoder_depth": 1, "encoder_heads": 2, "decoder_depth": 1, "decoder_heads": 2}
XAR = {
    "tokens": tiny_tokens("vector"),
    "classes": {"count": 3},
    "trunk": {
        "type": "block-causal",
        "size": [2, 2],
        "dim": 32,
        "hidden": 48,
        **HALVES,
        "attn_dropout": 0.1,
        "dropout": 0.1,
    },
    "head": {"type": "velocity"},
}


def make(trunk: str) -> Any:
    """A small generator in training mode, with dropout where the trunk has any."""
    torch.manual_seed(0)
    if trunk == "block-causal":
        return build_model(XAR).train()
    dropout = DROPOUT if "dropout" in TRUNKS[trunk] else {}
    config = tiny_config(trunk, tokens=tiny_tokens("vector") if trunk == "mae" else tiny_tokens(), **dropout)
    return build_model(config).train()


def step(net: Any, seed: int) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and bytes that the forward pass keeps beside the weights."""
    tokens, units = net.tokens, net.units
    rng = torch.Generator().manual_seed(seed)
    batch, sizes = 4, dict[int, int]()
    if tokens.kind == "index":
        x = torch.randint(tokens.vocab_size, (batch, tokens.length), generator=rng)
    else:
        x = torch.randn(batch, tokens.length, tokens.channels, generator=rng)
    x = x if net.windows is None else net.windows.to_windows(x)
    uniform = torch.rand(batch, units.length, generator=rng)
    rank = uniform.argsort(dim=1).argsort(dim=1)
    known = rank >= units.length - torch.tensor([2, 5, 6, 7]).unsqueeze(1)  # as many as MAGE lets be known, at most
    made = [net.head.training_noise(units.length, 2, rng) for _ in range(batch)]
    noise = (
        None if made[0] is None else HeadNoise(*(torch.stack(parts) for parts in zip(*((m.t, m.noise) for m in made))))
    )
    own = {value.untyped_storage().data_ptr() for value in net.state_dict().values()}

    def keep(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in own:
            sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    torch.manual_seed(seed)
    net.zero_grad()
    trunk = net.trunk.training_noise(rank, known)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        losses, _ = net(x, torch.arange(batch) % 3, known, noise=noise, trunk_noise=trunk)
    losses.mean().backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return losses.detach(), grads, sum(sizes.values())


@pytest.mark.parametrize("trunk", [*TRUNKS, "block-causal"])
def test_checkpointing_gives_the_same_losses_and_gradients_and_keeps_less(trunk: str) -> None:
    net = make(trunk)
    losses, grads, kept = step(net, 1)
    net.enable_gradient_checkpointing()
    assert net.is_gradient_checkpointing
    again, others, less = step(net, 1)
    assert torch.equal(losses, again) and grads.keys() == others.keys()
    for name, value in grads.items():
        assert torch.equal(value, others[name]), name
    assert less < 0.75 * kept
    net.disable_gradient_checkpointing()
    assert not net.is_gradient_checkpointing and step(net, 1)[2] == kept


def test_a_function_of_diffusers_is_not_taken() -> None:
    with pytest.raises(MgenError, match="leave it out"):
        tiny_net("uvit").enable_gradient_checkpointing(lambda module, *args: module(*args))


def test_a_run_with_checkpointing_has_the_same_losses_and_is_estimated_to_need_less(tmp_path: Path) -> None:
    data, tokenizer = write_idx(tmp_path / "idx", count=48), tmp_path / "tokenizer"
    tiny_tokenizer().save_pretrained(tokenizer)
    found = {}
    for on in (False, True):
        settings = {"steps": 2, "gradient_checkpointing": on}
        trainer = Trainer(train_config(generator_run(data, tokenizer, tmp_path / str(on), **settings)))
        need = needed_memory(trainer).step
        run(trainer)
        found[on] = losses(tmp_path / str(on)), need
    assert found[True][0] == found[False][0]
    assert found[True][1] < found[False][1]


def test_tokenizers_and_classifiers_have_no_checkpointing(tmp_path: Path) -> None:
    model = {"class": "ImageClassifier", "widths": [8]}
    with pytest.raises(MgenError, match="task generator"):
        train_config(
            {"task": "classifier", "output": str(tmp_path), "steps": 1, "model": model, "gradient_checkpointing": True}
        )
