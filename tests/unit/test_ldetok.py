"""l-DeTok: statistics of the channels, official files of them, corruption in training, what the tokenizer and its loss refuse."""

import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import mgen
from mgen.cli import main
from mgen.convert import convert
from mgen.convert.readers.ldetok import PUBLISHED, read_statistics
from mgen.data import FashionMNIST, TokenCache, write_cache
from mgen.generators.presets import model_config, model_name
from mgen.heads.chains import Tables, linear_betas
from mgen.heads.diffusion import TABLES, DiffusionConfig
from mgen.tokenizers import LDeTok, QuantizedKL, Tokenizer
from mgen.tokens import TokenSpec
from mgen.training.config import CorruptionConfig, TokenizerObjectiveConfig, train_config
from mgen.training.logits import LogitDistance
from mgen.training.loop import train
from mgen.training.noise import Augmentation
from mgen.training.tokenizer_objective import TokenizerObjective
from mgen.utils.errors import MgenError
from tests.golden import harness
from tests.helpers import LDETOK, tiny_hita, tiny_kl, tiny_ldetok, tiny_tokenizer, tiny_tokens, write_idx

IMAGES = torch.rand(24, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
VECTORS = TokenSpec.from_dict(tiny_tokens("vector", side=8))
BARE = {"latents_mean": None, "latents_std": None}
TOKENIZER_FILE = harness.root() / "ldetok" / "weights.safetensors"
HEADS = {"encoder_heads": 3, "decoder_heads": 2}


# -- statistics of the channels -----------------------------------------------------------------------------------------


def test_measured_statistics_bring_every_channel_to_unit_variance() -> None:
    net = tiny_ldetok(**BARE)
    assert net.unmeasured and net.spec.scale is None
    with pytest.raises(MgenError, match="no statistics of its latents: measure them"):
        net.encode(IMAGES)
    with pytest.raises(MgenError, match="has no scale: measure it"):
        net.spec.require(VECTORS, by="Generator")
    net.register_to_config(**net.measure(IMAGES.split(7)))
    with torch.inference_mode():
        tokens = net.encode(IMAGES)
    assert torch.allclose(tokens.mean((0, 1)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(tokens.std((0, 1), correction=0), torch.ones(4), atol=1e-4)
    assert not net.unmeasured and net.spec.scale == 1.0
    net.spec.require(VECTORS, by="Generator")
    with pytest.raises(MgenError, match="there are no images"):
        net.measure([])
    with pytest.raises(MgenError, match="variances"):
        net.measure([IMAGES[:1] * 0, torch.full((1, 1, 32, 32), float("nan"))])


def test_a_generator_of_another_scale_is_refused() -> None:
    with pytest.raises(MgenError, match="trained on latents times 0.2325, the tokenizer's scale is 1.0"):
        tiny_ldetok().spec.require(replace(VECTORS, scale=0.2325), by="Generator")


def test_caches_know_no_statistics(tmp_path: Path) -> None:
    data, net = FashionMNIST(root=write_idx(tmp_path / "idx")), tiny_ldetok()
    assert net.fingerprint() == tiny_ldetok(**BARE).fingerprint() != tiny_ldetok(seed=5).fingerprint()
    write_cache(data, net, tmp_path / "c", flips=True, progress=False)
    stored = TokenCache(tmp_path / "c", fingerprint=net.fingerprint()).__getitems__([3, 50])["moments"]
    images = data.__getitems__([3, 50])["image"]
    noise = torch.randn(2, *net.noise_shape(), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(net.tokens(stored[:, 0], noise), net.encode(images, noise=noise), atol=1e-5)
        assert torch.allclose(stored[:, 1], net.moments(images.flip(-1)), atol=1e-6)


def test_a_run_measures_them_at_its_end(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = {
        "task": "tokenizer",
        "output": str(tmp_path / "run"),
        "steps": 2,
        "batch_size": 8,
        "model": {"class": "LDeTok", **LDETOK, **BARE},
        "data": {"kind": "fmnist", "path": str(write_idx(tmp_path / "idx"))},
        "objective": {"kl": 1e-3, "corruption": {"noise": 1.0, "mask": 0.7}},
        "optim": {"freeze": ["decoder.blocks"]},
        "ema": None,
    }
    train(train_config(config))
    net = LDeTok.from_pretrained(tmp_path / "run" / "model")
    data = FashionMNIST(root=tmp_path / "idx")
    found = net.measure([data.__getitems__(range(len(data)))["image"]])
    assert net.config.latents_mean == pytest.approx(found["latents_mean"], abs=1e-5)
    assert net.config.latents_std == pytest.approx(found["latents_std"], rel=1e-4)
    capsys.readouterr()
    command = ["cache", "--data", "fmnist", "--data-path", str(tmp_path / "idx"), "--measure-scale", "96"]
    assert main([*command, "--tokenizer", str(tmp_path / "run" / "model")]) == 0
    mean, std = capsys.readouterr().out.split()
    assert mean.startswith("latents_mean=[") and std.startswith("latents_std=[")
    assert [float(v) for v in std[13:-1].split(",")] == pytest.approx(list(net.config.latents_std), rel=1e-4)


# -- official files of statistics -----------------------------------------------------------------------------------------


def entry(channels: int) -> dict[str, Any]:
    mean, std = torch.arange(channels).float(), torch.arange(1, channels + 1).float()
    return {"single": (mean.mean(), std.mean()), "channel": (mean, std)}


def saved(data: object) -> bytes:
    """What torch.save writes."""
    torch.save(data, file := io.BytesIO())
    return file.getvalue()


def test_official_statistics_are_read(tmp_path: Path) -> None:
    file = tmp_path / "stats.pt"
    file.write_bytes(saved({"other": entry(4), PUBLISHED: entry(12)}))
    assert read_statistics(file)[1] == tuple(range(1, 13)) and len(read_statistics(file, "other")[0]) == 4
    made = convert("ldetok", TOKENIZER_FILE, **HEADS, stats=str(file)).model
    assert made.config.latents_mean == (0, 1, 2, 3, 4, 5) and made.spec.scale == 1.0  # the rest are log-variances'
    with pytest.raises(MgenError, match="statistics of 4 channels: this tokenizer has 6"):
        convert("ldetok", TOKENIZER_FILE, **HEADS, stats=str(file), stats_key="other")
    with pytest.raises(MgenError, match=r"no entry 'detok': choose stats_key from 'other', 'detok-BB"):
        read_statistics(file, "detok")
    with pytest.raises(MgenError, match="stats_key is 'other', but there is no stats=FILE"):
        convert("ldetok", TOKENIZER_FILE, **HEADS, stats_key="other")
    with pytest.raises(MgenError, match="unknown key 'stats'"):
        convert("kl16", TOKENIZER_FILE, stats=str(file))


class Call:
    """What a file must not be able to do."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path, ("/",)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (saved({PUBLISHED: Call()}), "no other Python objects"),
        (saved([1, 2]), "no mapping from names to statistics: it is a list"),
        (saved({PUBLISHED: 3}), "has no 'channel'"),
        (
            saved({PUBLISHED: {"channel": (torch.zeros(2), torch.ones(3))}}),
            "one mean and one standard deviation",
        ),
        (
            saved({PUBLISHED: {"channel": (torch.zeros(2), -torch.ones(2))}}),
            "one mean and one standard deviation",
        ),
        (saved({PUBLISHED: {"channel": ("a", "b")}}), "are no numbers"),
        (saved({PUBLISHED: entry(4)})[:-20], "cannot read"),
        (b"", "not written by torch.save"),
        (
            pickle.dumps({PUBLISHED: entry(4)}),
            "reads no other pickles, which can run code: if you trust it, write it again by",
        ),
    ],
)
def test_statistics_that_are_none(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "stats.pt").write_bytes(data)
    with pytest.raises(MgenError, match=words):
        read_statistics(tmp_path / "stats.pt")


# -- official checkpoints -------------------------------------------------------------------------------------------------


def test_official_files_become_a_pipeline(tmp_path: Path) -> None:
    """Wrapped as published: the EMA weights are taken; without statistics no generator can use the tokenizer."""
    state = load_file(TOKENIZER_FILE)
    shifted = {name: value + 1 for name, value in state.items()}
    torch.save({"model": shifted, "model_ema": state, "epoch": 1}, tmp_path / "detok.pth")
    torch.save({"model_ema": load_file(harness.root() / "ldetok_mar" / "weights.safetensors")}, tmp_path / "mar.pth")
    (tmp_path / "stats.pt").write_bytes(saved({PUBLISHED: entry(12)}))
    made = convert("ldetok", tmp_path / "detok.pth", **HEADS)
    assert torch.equal(made.model.encoder.head.bias, state["encoder.latent_head.bias"])
    assert any("no statistics of the latents" in note for note in made.notes)
    raw = convert("ldetok", tmp_path / "detok.pth", raw=True, **HEADS).model
    assert torch.equal(raw.encoder.head.bias, state["encoder.latent_head.bias"] + 1)

    heads = [f"{name}={count}" for name, count in HEADS.items()]
    generator = ["convert", "ldetok-mar", str(tmp_path / "mar.pth"), "trunk.encoder_heads=4", "trunk.decoder_heads=4"]
    assert main(["convert", "ldetok", str(tmp_path / "detok.pth"), *heads, "--out", str(tmp_path / "bare")]) == 0
    assert main([*generator, "--tokenizer", str(tmp_path / "bare"), "--out", str(tmp_path / "pipe")]) == 2
    stats = f"stats={tmp_path / 'stats.pt'}"
    assert main(["convert", "ldetok", str(tmp_path / "detok.pth"), *heads, stats, "--out", str(tmp_path / "tok")]) == 0
    for name, more in (("pipe", []), ("line", ["tokens.grid=null"])):
        assert main([*generator, *more, "--tokenizer", str(tmp_path / "tok"), "--out", str(tmp_path / name)]) == 0
        pipe = mgen.load(tmp_path / name)
        assert (pipe.transformer.tokens.grid is None) == bool(more)
        few = pipe.sampler.override(steps=2, head={"steps": 2, "clip": 4.0})
        assert pipe([1], seed=0, sampler=few, progress=False).images[0].size == (32, 32)


def test_models_that_differ_in_dropout_alone_are_told_apart() -> None:
    assert model_name(model_config("mar-b", trunk={"dropout": 0.0})) == "mar-b"
    assert model_name(model_config("ldetok-mar-b", trunk={"attn_dropout": 0.0})) == "ldetok-mar-b"


# -- sizes ------------------------------------------------------------------------------------------------------------------


def test_another_size_has_no_positions() -> None:
    net = tiny_ldetok()
    with pytest.raises(MgenError, match="are of .64, 64. pixels: this LDeTok has positions for 32×32 only"):
        net.encode(torch.zeros(1, 1, 64, 64))
    with pytest.raises(MgenError, match="positions for 8×8 only"):
        net.decode(torch.zeros(1, 64, 4), grid=(4, 16))
    with pytest.raises(MgenError, match="32 pixels alone"):
        net.at_size(64)


# -- corruption ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "settings", "words"),
    [
        (
            tiny_tokenizer(),
            {"noise": 1.0},
            "corruption.noise is 1, but a VQGAN cannot be trained with it.*KLTokenizer or LDeTok",
        ),
        (tiny_hita(), {"mask": 0.5}, "corruption.mask is 0.5, but a HitaTokenizer"),
        (
            tiny_kl(),
            {"mask": 0.5},
            "corruption.mask is 0.5, but a KLTokenizer cannot be trained with it: set it to 0, or use LDeTok",
        ),
        (QuantizedKL.wrap(tiny_kl()), {"noise": 1.0}, "a QuantizedKL cannot"),
    ],
)
def test_corruption_is_for_those_that_can_be_trained_with_it(
    net: Tokenizer, settings: dict[str, float], words: str
) -> None:
    with pytest.raises(MgenError, match=words):
        TokenizerObjective(net, TokenizerObjectiveConfig(corruption=CorruptionConfig(**settings)))


@pytest.mark.parametrize("net", [tiny_kl(), tiny_ldetok()], ids=["KLTokenizer", "LDeTok"])
def test_pieces_of_a_batch_are_corrupted_as_the_whole(net: Tokenizer) -> None:
    """And in training alone: the numbers of validation depend on no draw of a batch."""
    corruption = {"noise": 2.0, "mask": 0.7 if isinstance(net, LDeTok) else 0.0}
    objective = TokenizerObjective(net, TokenizerObjectiveConfig(kl=1e-3, corruption=CorruptionConfig(**corruption)))
    rng = torch.Generator().manual_seed(3)
    whole = objective.train().make_noise(6, rng, augmentation=Augmentation())
    assert whole.corruption is not None
    batch = {"image": IMAGES[:6]}
    with torch.no_grad():
        one = objective(batch, whole).loss
        parts = [objective({"image": IMAGES[r]}, whole.rows(r)).loss for r in (slice(0, 2), slice(2, 4), slice(4, 6))]
        clean = objective(batch, objective.eval().make_noise(6, rng, augmentation=Augmentation()))
    assert one.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-5)
    assert objective.make_noise(6, rng, augmentation=Augmentation()).corruption is None
    assert clean.loss != one


def test_every_parameter_of_the_decoder_takes_part_without_masking() -> None:
    net = tiny_ldetok().train()
    out, terms, _ = net(IMAGES[:2])
    (out.square().mean() + terms["kl"]).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


# -- a classifier's logits in the loss ------------------------------------------------------------------------------------------


class Colors(nn.Module):
    """Three logits: the mean of each color."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 224, 224)
        return x.mean((2, 3))


def test_logits_are_compared_in_the_colors_of_imagenet() -> None:
    distance = LogitDistance(Colors())
    white, black = torch.ones(2, 1, 32, 32), -torch.ones(2, 1, 32, 32)
    expected = sum((1 / std) ** 2 for std in (0.229, 0.224, 0.225)) / 3
    assert distance(white, black).item() == pytest.approx(expected, rel=1e-4) and distance(white, white) == 0


def test_logits_need_the_right_file(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "vgg.pth")
    with pytest.raises(MgenError, match="is not torchvision's ConvNeXt-S .*give convnext_small-0c510722.pth"):
        LogitDistance.from_file(tmp_path / "vgg.pth")
    with pytest.raises(MgenError, match="objective.logits needs objective.logits_model"):
        TokenizerObjective(tiny_kl(), TokenizerObjectiveConfig(logits=0.1))


def test_the_linear_noise_schedule_needs_steps_enough() -> None:
    with pytest.raises(MgenError, match="train_steps is 20: the linear noise schedule needs more than 20"):
        DiffusionConfig(train_steps=20, noise_schedule="linear")
    tables = Tables(linear_betas(21))
    assert all(np.isfinite(getattr(tables, name)).all() for name in TABLES)
