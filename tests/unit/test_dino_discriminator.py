"""The discriminator on DINO features: its parts, what it sees of an image, what is trained and saved, runs that use it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.training.config import train_config
from mgen.training.dino_discriminator import DinoDiscriminator, VirtualBatchNorm, load_dino
from mgen.training.loop import run, train
from mgen.training.trainer import Trainer
from mgen.utils.config import read_config
from mgen.utils.errors import MgenError
from mgen.utils.folders import part
from tests.helpers import HITA, write_idx

SIDE = 16  # pixels that the tiny transformer sees


def tiny_vit(depth: int = 4) -> Any:
    settings: dict[str, Any] = dict(
        img_size=SIDE, patch_size=8, embed_dim=64, depth=depth, num_heads=1, mlp_ratio=2, num_classes=0
    )
    torch.manual_seed(depth)
    vit = timm.create_model("vit_small_patch16_224", pretrained=False, **settings)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return vit.eval()


@pytest.fixture(scope="module")
def dino_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dino") / "dino_tiny.pth"
    torch.save(tiny_vit().state_dict(), path)
    return path


def tiny(dino_file: Path, **settings: Any) -> DinoDiscriminator:
    torch.manual_seed(0)
    return DinoDiscriminator(dino_file, **settings)


def pictures(count: int = 3, channels: int = 1, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def crops(coin: float, y: float = 0.6, x: float = 0.3) -> Tensor:
    return torch.tensor([coin, y, x]).expand(3, 3, 3)


# -- its parts ---------------------------------------------------------------------------------------------------------


def test_virtual_batches_are_normalized_alone() -> None:
    torch.manual_seed(0)
    ours, x = VirtualBatchNorm(6), torch.randn(19, 6, 5) * 3 + 1
    nn.init.normal_(ours.weight), nn.init.normal_(ours.bias)
    plain = nn.BatchNorm1d(6, eps=1e-6)
    plain.weight, plain.bias = ours.weight, ours.bias
    for rows in (slice(0, 8), slice(8, 16), slice(16, 19)):
        assert torch.allclose(ours(x)[rows], plain(x[rows]), atol=1e-6)
    assert not torch.allclose(ours(x)[:8], plain(x)[:8], atol=1e-2)


def test_spectral_norm_bounds_every_convolution(dino_file: Path) -> None:
    net = tiny(dino_file)
    convs: list[Any] = [module for module in net.heads.modules() if isinstance(module, nn.Conv1d)]
    assert len(convs) == 15 and [conv.kernel_size[0] for conv in convs[:3]] == [1, 9, 1]
    with torch.no_grad():
        for conv in convs:
            conv.parametrizations.weight.original.mul_(20)
        for _ in range(60):
            assert all(conv.weight.isfinite().all() for conv in convs)  # each look in training mode is one iteration
    net.eval()
    for conv in convs:
        norm = torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item()
        assert norm == pytest.approx(1, abs=0.02)
    x = torch.randn(2, 64, 7)
    assert (convs[0](x) - convs[0].bias.view(-1, 1)).norm() <= 1.02 * x.norm()


def test_a_head_is_what_the_sheet_says(dino_file: Path) -> None:
    net = tiny(dino_file).eval()
    head, x = net.heads[1], torch.randn(5, 64, 7)
    convs: list[Any] = [module for module in head.modules() if isinstance(module, nn.Conv1d)]
    first, wide, last = convs

    def normalized(y: Tensor) -> Tensor:
        return (y - y.mean((0, 2), keepdim=True)) / (y.var((0, 2), unbiased=False, keepdim=True) + 1e-6).sqrt()

    y = torch.einsum("oi,bit->bot", first.weight[..., 0], x) + first.bias.view(-1, 1)
    y = F.leaky_relu(normalized(y), 0.2)
    shifts = torch.stack([y.roll(4 - k, dims=2) for k in range(9)])  # (9, B, W, T): neighbors around the circle
    z = torch.einsum("oik,kbit->bot", wide.weight, shifts) + wide.bias.view(-1, 1)
    y = (y + F.leaky_relu(normalized(z), 0.2)) / 2**0.5
    assert torch.allclose(
        head(x), torch.einsum("oi,bit->bot", last.weight[..., 0], y) + last.bias.view(-1, 1), atol=1e-5
    )


def test_readouts_are_those_of_timm(dino_file: Path, tmp_path: Path) -> None:
    vit, images = tiny_vit(), torch.randn(2, 3, SIDE, SIDE)
    net = tiny(dino_file)
    with torch.no_grad():
        found = net.readouts(images)
        expected = vit.forward_intermediates(
            images, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        assert torch.allclose(found[0], vit._pos_embed(vit.patch_embed(images)), atol=1e-6)
        for ours, (patches, prefix) in zip(found[1:], expected):
            assert torch.allclose(ours, torch.cat([prefix, patches], dim=1), atol=1e-5)  # whatever the bias of the keys
        assert net.scores(pictures(2)).shape == (2, 5 * 5)
    assert net.read_after == [0, 1, 2, 3] and all(b.attn.qkv.bias[64:128].eq(0).all() for b in net.vit.blocks)
    for depth, after in ((12, [2, 5, 8, 11]), (2, [0, 1]), (6, [1, 2, 4, 5])):
        torch.save(tiny_vit(depth).state_dict(), tmp_path / "dino.pth")
        net = tiny(tmp_path / "dino.pth")
        assert net.read_after == after and len(net.heads) == 1 + len(after)


# -- what it sees ------------------------------------------------------------------------------------------------------


def test_larger_images_are_cropped_or_reduced_by_the_coin(dino_file: Path) -> None:
    net, images = tiny(dino_file), pictures(2, 3, 32)
    assert torch.equal(net.fitted(images, crops(0.2)[0, 0]), images[..., 10:26, 5:21])  # ⌊0.6 · 17⌋ and ⌊0.3 · 17⌋
    assert torch.equal(net.fitted(images, crops(0.2, 0.0, 0.99)[0, 0]), images[..., :16, 16:])
    assert torch.allclose(net.fitted(images, crops(0.7)[0, 0]), F.avg_pool2d(images, 2))
    assert torch.allclose(net.fitted(images), F.avg_pool2d(images, 2))
    exact, small = pictures(2, 3, 16), pictures(2, 3, 8)
    for coin in (0.2, 0.7):
        assert torch.equal(net.fitted(exact, crops(coin)[0, 0]), exact)
        assert torch.equal(net.fitted(small, crops(coin)[0, 0]), F.interpolate(small, (16, 16), mode="bicubic"))
    gray = pictures(2)
    assert torch.equal(net.eval().scores(gray), net.scores(gray.expand(-1, 3, -1, -1)))


def test_randomness_comes_from_the_noise_alone(dino_file: Path) -> None:
    net, real, fake = tiny(dino_file).eval(), pictures(), pictures(seed=1)
    rng = torch.Generator().manual_seed(4)
    drawn = [net.crop_noise(3, rng) for _ in range(20)]
    assert all(d.shape == (3, 3, 3) and torch.equal(d, d[:1].expand_as(d)) for d in drawn)
    assert {bool(d[0, call, 0] < 0.5) for d in drawn for call in range(3)} == {True, False}
    assert torch.equal(net.crop_noise(2, torch.Generator().manual_seed(4)), drawn[0][:2])
    before = torch.get_rng_state()
    losses = [
        (net(real, fake, d).item(), net.generator_loss(fake, d).item()) for d in (crops(0.2), crops(0.2), crops(0.7))
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] and all(a != b for a, b in zip(losses[1], losses[2]))
    other = crops(0.7).clone()
    other[:, 0, 0] = 0.2  # the coin of the tokenizer's call is not that of the discriminator's own
    assert net(real, fake, other).item() == losses[2][0] and net.generator_loss(fake, other).item() == losses[0][1]


def test_losses_are_the_shared_ones(dino_file: Path) -> None:
    net, real, fake = tiny(dino_file, weight=0.5).eval(), pictures(), pictures(seed=1)
    on_real, on_fake = net.scores(real), net.scores(fake)
    hinge = (F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()) / 2
    assert net(real, fake).item() == pytest.approx(0.5 * hinge.item())
    assert net.generator_loss(fake).item() == pytest.approx(F.softplus(-on_fake).mean().item())
    with pytest.raises(MgenError, match="did you mean"):
        tiny(dino_file, loss="half_hinge")


# -- what is trained and saved -----------------------------------------------------------------------------------------


def test_gradient_reaches_the_image_and_never_the_transformer(dino_file: Path) -> None:
    net, real = tiny(dino_file), pictures()
    for coin in (0.2, 0.7):
        fake = pictures(seed=1).requires_grad_()
        net.generator_loss(fake, crops(coin)).backward()
        assert fake.grad is not None and fake.grad.abs().sum() > 0
        outside = fake.grad.clone()
        outside[..., 10:26, 5:21] = 0
        assert bool((outside == 0).all()) == (coin < 0.5)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    estimates = {name: value.clone() for name, value in net.named_buffers() if name.endswith("._u")}
    net.generator_loss(real)
    assert estimates and all(torch.equal(dict(net.named_buffers())[name], value) for name, value in estimates.items())
    fake = pictures(seed=1).requires_grad_()
    net(real, fake).backward()
    assert fake.grad is None and all(p.grad is not None for p in net.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in net.vit.parameters())


def test_only_the_heads_are_saved(dino_file: Path) -> None:
    net = tiny(dino_file).eval()
    assert {name.split(".")[0] for name in net.state_dict()} == {"heads"}
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {"heads"}
    torch.manual_seed(7)
    other = DinoDiscriminator(dino_file).eval()
    assert not torch.equal(other.scores(pictures()), net.scores(pictures()))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.scores(pictures()), net.scores(pictures()))
    net.double().train()
    assert net.vit.cls_token.dtype == torch.float64 and not net.vit.training  # it follows, and stays as it is


# -- runs --------------------------------------------------------------------------------------------------------------


def run_settings(idx: Path, output: Path, dino_file: Path, **settings: Any) -> dict[str, Any]:
    objective = {"l2": 8.0, "adversarial": 0.5, "adversarial_loss": "half-hinge-softplus", "discriminator": "dino"}
    objective |= {"discriminator_weights": str(dino_file), "discriminator_weight": 0.5, "adversarial_start": 1}
    return {
        "task": "tokenizer",
        "output": str(output),
        "steps": 3,
        "batch_size": 16,
        "model": {"class": "HitaTokenizer", **HITA, "depth": 1},
        "data": {"kind": "fmnist", "path": str(idx)},
        "objective": objective,
        "optim": {"lr": 1e-3, "betas": [0.9, 0.95], "clip": 1.0},
        "log": {"every": 1, "checkpoint_every": 1, "tensorboard": False},
        **settings,
    }


def logged(output: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "l2", "adversarial", "discriminator", "val_adversarial")
    return [tuple(line.get(name, -1.0) for name in names) for line in lines]


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx(tmp_path_factory.mktemp("idx"))


def test_a_resumed_run_repeats_the_uninterrupted_one(idx: Path, dino_file: Path, tmp_path: Path) -> None:
    settings = run_settings(idx, tmp_path / "whole", dino_file)
    train(train_config(settings))
    whole = logged(tmp_path / "whole")
    assert [line[4] > 0 for line in whole] == [False, True, True, False] and whole[-1][5] > 0
    trainer = Trainer(train_config({**settings, "output": str(tmp_path / "cut")}))
    real = trainer.train_step

    def stop_at_two(*args: Any) -> Any:
        if trainer.step == 2:
            raise KeyboardInterrupt
        return real(*args)

    trainer.train_step = stop_at_two  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        run(trainer)
    resumed = Trainer(train_config({**settings, "output": str(tmp_path / "cut")}))
    run(resumed)
    assert logged(tmp_path / "cut") == whole
    net = resumed.objective.companions.discriminator
    fresh = load_dino(dino_file)
    assert isinstance(net, DinoDiscriminator)
    assert all(torch.equal(a, b) for a, b in zip(net.vit.state_dict().values(), fresh.state_dict().values()))


def test_accumulation_computes_the_same(idx: Path, dino_file: Path, tmp_path: Path) -> None:
    for pieces in (1, 2):
        settings = run_settings(idx, tmp_path / str(pieces), dino_file, accumulate=pieces, steps=2)
        train(train_config(settings))
    one, two = logged(tmp_path / "1"), logged(tmp_path / "2")
    for a, b in zip(one[:2], two[:2]):
        assert a == pytest.approx(b, rel=2e-3)


def test_a_step_in_bf16(idx: Path, dino_file: Path, tmp_path: Path) -> None:
    train(train_config(run_settings(idx, tmp_path / "run", dino_file, steps=2, precision="bf16")))
    assert logged(tmp_path / "run")[1][4] > 0


def test_the_recipe_of_hita_u_uses_it() -> None:
    c = train_config(read_config(part("configs") / "train" / "imagenet256-hita-u.yaml")).objective
    assert (c.discriminator, c.discriminator_weights) == ("dino", "dino_deitsmall16_pretrain.pth")
    assert (c.adversarial_loss, c.adversarial, c.discriminator_weight) == ("half-hinge-softplus", 0.5, 0.5)


def test_files_and_settings_that_do_not_fit(
    idx: Path, dino_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MgenError, match="no such checkpoint file"):
        load_dino(tmp_path / "no.pth")
    state = torch.load(dino_file)
    narrow = timm.create_model("vit_small_patch16_224", embed_dim=48, num_heads=3, depth=1, num_classes=0).state_dict()
    for change, words in (
        ({"cls_token": None}, "timm's layout.*lacks cls_token"),
        ({"norm.bias": None}, "does not fit.*norm.bias"),
        ({"register_tokens": torch.zeros(1, 4, 64)}, "does not fit.*register_tokens"),
        ({"patch_embed.proj.weight": torch.zeros(64)}, "does not fit"),
        (narrow, "width 48.*attention_heads"),
    ):
        changed = narrow if change is narrow else {k: v for k, v in {**state, **change}.items() if v is not None}
        torch.save(changed, tmp_path / "bad.pth")
        with pytest.raises(MgenError, match=words):
            load_dino(tmp_path / "bad.pth")
    assert load_dino(tmp_path / "bad.pth", heads=3).embed_dim == 48
    with pytest.raises(MgenError, match="does not fit"):
        load_dino(tmp_path / "bad.pth", heads=5)
    settings = run_settings(idx, tmp_path / "run", dino_file)
    for objective, words in (
        ({"discriminator_weights": None}, "discriminator=dino needs objective.discriminator_weights"),
        ({"discriminator_weights": str(tmp_path / "no.pth")}, "no such checkpoint file"),
        ({"discriminator": "patch"}, "leave it out"),
        ({"r1": 1.0}, "objective.r1"),
        ({"discriminator": "dinov2"}, "discriminator"),
    ):
        with pytest.raises(MgenError, match=words):
            train(train_config({**settings, "objective": {**settings["objective"], **objective}}))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MgenError, match="pip install"):
        load_dino(dino_file)
