"""Hita tokenizers: what reaches the image, the vision encoder beside them, other grids, training, style."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mgen.cli import main
from mgen.data import FashionMNIST, TokenCache, write_cache
from mgen.evaluation.reconstruction import count_ids, id_metrics
from mgen.pipelines.editing import restyle
from mgen.pipelines.saved import load_tokenizer
from mgen.tokenizers import HitaTokenizer, LlamaGenVQ
from mgen.tokenizers.vision import VisionEncoder, give_vision, load_vision, resized
from mgen.training.adversarial import Discriminator
from mgen.training.config import build_model, train_config
from mgen.training.loop import train
from mgen.utils.errors import MgenError
from tests.helpers import HITA, tiny_hita, tiny_tokenizer, write_idx


def pictures(count: int = 2, side: int = 32, width: int | None = None) -> Tensor:
    return torch.rand(count, 1, side, width or side, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.fixture(scope="module")
def vision_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 with registers of one block and one head, in Meta's layout."""
    rng, w = torch.Generator().manual_seed(3), 64
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, w),
        "mask_token": (1, w),
        "pos_embed": (1, 26, w),
        "register_tokens": (1, 4, w),
        "patch_embed.proj.weight": (w, 3, 14, 14),
        "patch_embed.proj.bias": (w,),
        "blocks.0.attn.qkv.weight": (3 * w, w),
        "blocks.0.attn.qkv.bias": (3 * w,),
        "blocks.0.attn.proj.weight": (w, w),
        "blocks.0.attn.proj.bias": (w,),
        "blocks.0.mlp.fc1.weight": (2 * w, w),
        "blocks.0.mlp.fc1.bias": (2 * w,),
        "blocks.0.mlp.fc2.weight": (w, 2 * w),
        "blocks.0.mlp.fc2.bias": (w,),
        "blocks.0.ls1.gamma": (w,),
        "blocks.0.ls2.gamma": (w,),
        **{
            f"{norm}.{kind}": (w,)
            for norm in ("blocks.0.norm1", "blocks.0.norm2", "norm")
            for kind in ("weight", "bias")
        },
    }
    path = tmp_path_factory.mktemp("vision") / "dinov2_tiny_reg4.pth"
    torch.save({name: torch.randn(shape, generator=rng) * 0.2 for name, shape in shapes.items()}, path)
    return path


# -- tokens and images -------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_last_tokens_cannot_reach_the_image() -> None:
    net = tiny_hita()
    ids = net.encode(pictures())
    assert ids.shape == (2, net.spec.length) and net.spec.global_tokens == 6 and net.spec.grid == (8, 8)
    image = net.decode(ids)

    def changed(position: int) -> Tensor:
        other = ids.clone()
        other[:, position] = (other[:, position] + 1) % 32
        return net.decode(other)

    for position in range(ids.shape[1] - net.unused_tail, ids.shape[1]):
        assert torch.equal(changed(position), image)
    assert not torch.equal(changed(ids.shape[1] - net.unused_tail - 1), image)
    assert all(not torch.equal(changed(position), image) for position in range(6))
    assert torch.equal(net.decode(ids, (8, 8)), image)


@torch.inference_mode()
@pytest.mark.parametrize("shift", [0, 1, 6])
def test_skipping_unused_tokens_changes_nothing(shift: int) -> None:
    net = tiny_hita(shift=shift)
    holistic, patches = torch.randn(2, 6, 16), torch.randn(2, 16, 8, 8)
    stack = net.spreading
    local = patches.flatten(2).transpose(1, 2) + stack.position
    x = stack.norm(torch.cat([holistic + stack.holistic_position, local], dim=1))
    for block in stack.blocks:
        x = block(x, causal=True)
    whole = x[:, 6 - shift : 6 - shift + 64].transpose(1, 2).unflatten(2, (8, 8))
    assert torch.allclose(stack(holistic, patches), whole, atol=1e-6)


def test_feature_i_reads_patches_up_to_i_minus_shift() -> None:
    net = tiny_hita()
    patches = torch.randn(1, 16, 8, 8, requires_grad=True)
    out = net.spreading(torch.randn(1, 6, 16), patches).flatten(2)
    for i in (0, 2, 3, 10, 63):
        (grad,) = torch.autograd.grad(out[0, :, i].sum(), patches, retain_graph=True)
        read = grad.abs().sum(1).flatten() > 0
        assert read.nonzero().flatten().tolist() == list(range(i - 3 + 1))


@torch.inference_mode()
def test_other_image_sizes_and_saved_folders(tmp_path: Path) -> None:
    net = tiny_hita()
    wide = net.encode(pictures(1, 24, 40))
    assert wide.shape == (1, 6 + 6 * 10)
    assert net.decode(wide, (6, 10)).shape == (1, 1, 24, 40)
    with pytest.raises(MgenError, match="66 ids.*grid"):
        net.decode(wide)
    with pytest.raises(MgenError, match="multiple of 4"):
        net.encode(torch.zeros(1, 1, 30, 32))
    net.register_to_config(image_size=48)  # the tables keep their size
    net.save_pretrained(tmp_path / "hita")
    again = load_tokenizer(tmp_path / "hita")
    assert (again.config.position_side, again.spec.grid, again.spec.length) == (8, (12, 12), 150)
    for side in (32, 48):
        ids = net.encode(pictures(1, side))
        assert torch.equal(again.encode(pictures(1, side)), ids)
        assert torch.equal(again.decode(ids), net.decode(ids))
    assert again.fingerprint() == tiny_hita().fingerprint()


def test_settings_that_cannot_be() -> None:
    for settings, text in (
        ({"shift": 7}, "shift is 7"),
        ({"vision_loss": True}, "vision_loss"),
        ({"inner": 15}, "inner 15"),
        ({"image_size": 30}, "multiple of 4"),
        ({"heads": 3, "inner": 18}, "heads 3"),
    ):
        with pytest.raises(MgenError, match=text):
            tiny_hita(**settings)
    net = tiny_hita(vocab_size=16)
    assert net.spec.vocab_size == 32
    with pytest.raises(MgenError, match="below 16"):
        net.decode(torch.full((1, 70), 20))


def test_small_sizes_have_as_many_tokens_as_the_plain_tokenizer() -> None:
    hita = build_model({"class": "HitaTokenizer", "size": "fmnist"}).spec
    plain = build_model({"class": "LlamaGenVQ", "size": "fmnist"}).spec
    assert (hita.length, hita.global_tokens, hita.vocab_size) == (plain.length, 48, plain.vocab_size) == (64, 48, 512)
    assert build_model({"class": "HitaTokenizer", "size": "fmnist-8"}).spec.length == 80


def test_ids_of_the_two_codebooks_are_counted_apart() -> None:
    metrics = id_metrics(count_ids(torch.tensor([[0, 1, 2, 3, 0, 0]]), 8, global_tokens=4), "codebooks")
    assert metrics["ids used of 8, mean over 2 codebooks"] == 2.5
    assert metrics["entropy of the ids in bits, mean over 2 codebooks"] == pytest.approx(1.0)


# -- the vision encoder ------------------------------------------------------------------------------------------------


def test_only_encoding_needs_the_vision_encoder(vision_file: Path, tmp_path: Path) -> None:
    net = tiny_hita(vision=64)
    ids = torch.randint(32, (1, 70), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        image = net.decode(ids)
        with pytest.raises(MgenError, match="--vision-weights.*decoding does not"):
            net.encode(pictures())
        before = set(net.state_dict())
        net.use_vision(vision_file)
        assert net.encode(pictures()).shape == (2, 70)
        assert torch.equal(net.decode(ids), image)
    encoder = net.vision_encoder
    assert isinstance(encoder, VisionEncoder) and set(net.state_dict()) == before
    net.train()
    assert not encoder.vit.training and not any(p.requires_grad for p in encoder.parameters())
    net.double()
    assert encoder.vit.cls_token.dtype == torch.float64  # it follows the tokenizer
    net.float().save_pretrained(tmp_path / "hita")
    assert load_tokenizer(tmp_path / "hita").vision_encoder is None
    assert net.vision_tokens(pictures()).shape == (2, 257, 64)


def test_ids_depend_on_what_the_vision_encoder_sees(vision_file: Path) -> None:
    net, images = tiny_hita(vision=64).use_vision(vision_file), pictures()
    with torch.inference_mode():
        vision = net.vision_tokens(images)
        same, other = net.latents(images, vision)[0], net.latents(images, vision.flip(0))[0]
        assert torch.equal(net.latents(images)[0], same) and not torch.allclose(same, other)


def test_vision_weights_that_do_not_fit(vision_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MgenError, match="width 64, but this tokenizer takes 32"):
        tiny_hita(vision=32).use_vision(vision_file)
    for net in (tiny_hita(), tiny_tokenizer()):
        with pytest.raises(MgenError, match="leave the vision weights out"):
            give_vision(net, vision_file)
        give_vision(net, None)
    with pytest.raises(MgenError, match="no such checkpoint file"):
        load_vision(tmp_path / "no.pth")
    save_file({"cls_token": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(MgenError, match="patch_embed.proj.weight is missing"):
        load_vision(tmp_path / "other.safetensors")
    state = torch.load(vision_file)
    del state["norm.bias"]
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(MgenError, match="does not fit.*norm.bias"):
        load_vision(tmp_path / "short.safetensors")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MgenError, match="pip install"):
        load_vision(vision_file)


def test_preprocessing_keeps_flat_images_and_gray_ones(vision_file: Path) -> None:
    for side in (32, 224, 336, 500):
        assert torch.allclose(resized(torch.full((1, 3, side, side), 0.5)), torch.tensor(0.75), atol=1e-6)
    encoder = load_vision(vision_file)
    gray = pictures(1)
    assert torch.allclose(encoder(gray), encoder(gray.expand(-1, 3, -1, -1)), atol=1e-5)


# -- training ----------------------------------------------------------------------------------------------------------


def run_settings(tmp_path: Path, **overrides: Any) -> dict[str, Any]:
    return {
        "task": "tokenizer",
        "output": str(tmp_path / "run"),
        "steps": 1,
        "batch_size": 4,
        "data": {"kind": "fmnist", "path": str(write_idx(tmp_path / "idx"))},
        "log": {"every": 1, "tensorboard": False},
        "optim": {"lr": 3e-3, "clip": 1.0},
        "ema": None,
        **overrides,
    }


def first_line(tmp_path: Path) -> dict[str, float]:
    return json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])


def test_a_step_of_the_small_size(tmp_path: Path) -> None:
    objective = {"l2": 4.0, "entropy": 0.1}
    train(train_config(run_settings(tmp_path, model={"class": "HitaTokenizer", "size": "fmnist"}, objective=objective)))
    line = first_line(tmp_path)
    assert {"codebook", "commitment", "entropy", "usage", "holistic_usage", "holistic_perplexity"} <= line.keys()
    assert "vision" not in line and line["holistic_usage"] > 0
    net = load_tokenizer(tmp_path / "run" / "model")
    assert isinstance(net, HitaTokenizer) and net.spec.length == 64
    assert net.encode(pictures()).shape == (2, 64)


def test_training_with_vision_and_the_published_discriminator(tmp_path: Path, vision_file: Path) -> None:
    objective = {"l2": 8.0, "vision_weights": str(vision_file), "adversarial": 0.5, "discriminator_channels": 8}
    objective |= {"adversarial_loss": "half-hinge-softplus", "discriminator_norm": "batch", "discriminator_layers": 2}
    objective |= {"discriminator_weight": 0.5, "discriminator_betas": [0.9, 0.95]}
    model = {"class": "HitaTokenizer", **HITA, "vision": 64, "vision_loss": True}
    settings = run_settings(tmp_path, model=model, objective=objective, steps=6)
    train(train_config(settings))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "vision" in line]
    assert lines[-1]["vision"] < lines[0]["vision"] and "discriminator" in lines[0]
    with pytest.raises(MgenError, match="--vision-weights"):
        other = {**settings, "output": str(tmp_path / "other"), "objective": {}}
        train(train_config(other))


def test_losses_of_the_discriminator() -> None:
    torch.manual_seed(0)
    real, fake = torch.rand(2, 1, 32, 32) * 2 - 1, torch.rand(2, 1, 32, 32) * 2 - 1
    made = {}
    for loss in ("hinge", "half-hinge", "half-hinge-softplus", "non-saturating"):
        torch.manual_seed(1)
        net = Discriminator(in_channels=1, channels=8, layers=2, loss=loss, norm="batch", weight=0.5)
        made[loss] = (net(real, fake).item(), net.generator_loss(fake).item(), net.net(fake))
    own, deceit, scores = zip(*made.values())
    assert own[1] == own[2] == own[0] / 2 and own[3] not in own[:3]
    assert deceit[0] == deceit[1] == pytest.approx(-scores[0].mean().item())
    assert deceit[2] == deceit[3] == pytest.approx(torch.nn.functional.softplus(-scores[0]).mean().item())
    with pytest.raises(MgenError, match="did you mean"):
        Discriminator(in_channels=1, loss="half_hinge")


# -- the command line --------------------------------------------------------------------------------------------------


def save_picture(path: Path, seed: int) -> Tensor:
    image = np.random.default_rng(seed).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(image).save(path)
    return torch.from_numpy(image)[None]


def test_style_of_another_image(tmp_path: Path, vision_file: Path, capsys: pytest.CaptureFixture) -> None:
    content, style = save_picture(tmp_path / "a.png", 1), save_picture(tmp_path / "b.png", 2)
    net = tiny_hita(vision=64).use_vision(vision_file)
    images = torch.stack([content, style]).float() / 127.5 - 1
    net.initialize_codebooks(images, torch.Generator().manual_seed(0))  # so that both images have ids of their own
    net.save_pretrained(tmp_path / "hita")
    base = ["edit", str(tmp_path / "a.png"), "--style", str(tmp_path / "b.png"), "--out", str(tmp_path / "out")]
    line = [*base, "--model", str(tmp_path / "hita"), "--vision-weights", str(vision_file)]
    assert main(line) == 0
    assert capsys.readouterr().out.strip().endswith("grid.png")
    ids = net.encode(images)
    with torch.inference_mode():
        mixed = net.decode(torch.cat([ids[1:, :6], ids[:1, 6:]], dim=1)).clamp(-1, 1)
    expected = ((mixed[0, 0] + 1) * 127.5).round().numpy()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "restyled.png")), expected)
    assert torch.equal(restyle(net, content, style)[0], torch.from_numpy(expected).to(torch.uint8))
    assert not torch.equal(restyle(net, content, content), restyle(net, content, style))
    for arguments, words in (
        ([*base, "--model", str(tmp_path / "hita")], "--vision-weights"),
        (base, "makes no global tokens"),
        ([*line, "--class", "bag"], "--class"),
        ([*line, "--box", "0,0,4,4"], "not allowed with"),
    ):
        try:
            assert main(arguments) == 2
        except SystemExit as stop:  # argparse's own
            assert stop.code == 2
        assert words in capsys.readouterr().err
    with pytest.raises(MgenError, match="32×32"):
        restyle(net, content[:, :16], style)


def test_a_cache_of_ids_with_the_vision_encoder(
    tmp_path: Path, vision_file: Path, capsys: pytest.CaptureFixture
) -> None:
    idx, net = write_idx(tmp_path / "idx", count=12), tiny_hita(vision=64)
    net.save_pretrained(tmp_path / "hita")
    line = ["cache", "--data", "fmnist", "--data-path", str(idx), "--tokenizer", str(tmp_path / "hita")]
    line += ["--out", str(tmp_path / "cache"), "--device", "cpu"]
    assert main(line) == 2 and "--vision-weights" in capsys.readouterr().err
    assert main([*line, "--vision-weights", str(vision_file)]) == 0
    cache = TokenCache(tmp_path / "cache", fingerprint=net.fingerprint())  # of a tokenizer that holds no encoder
    assert cache.spec == net.spec
    images = FashionMNIST(root=idx).__getitems__([7, 2])["image"]
    with torch.inference_mode():
        expected = net.use_vision(vision_file).encode(images)
    assert torch.equal(cache.__getitems__([7, 2])["tokens"][:, 0], expected)
    assert main(["eval", "fmnist", "--vision-weights", str(vision_file)]) == 2
    assert "--reconstruction" in capsys.readouterr().err
    plain = LlamaGenVQ(**LlamaGenVQ.SIZES["fmnist"])
    with pytest.raises(MgenError, match="takes no vision encoder"):
        give_vision(plain, vision_file)
    write_cache(FashionMNIST(root=idx), tiny_hita(), tmp_path / "without", progress=False)
