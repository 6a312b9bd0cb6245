"""TiTok tokenizers: sizes, what they refuse, both stages of training, and tokens without a place in the image in every command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from mgen.cli import main
from mgen.convert import convert
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.samplers import ParallelSampler
from mgen.tokenizers import VQGAN, TiTok, TiTokKL, estimate_scale
from mgen.training.companions import Companions
from mgen.training.config import TokenizerObjectiveConfig, train_config
from mgen.training.loop import train
from mgen.training.noise import AugmentationNoise, TokenizerNoise
from mgen.training.proxy import load_proxy
from mgen.training.tokenizer_objective import TokenizerObjective
from mgen.utils.errors import MgenError
from tests.golden import harness
from tests.helpers import TITOK, TOKENIZER, tiny_net, tiny_tokenizer, write_idx

PIXELS = dict(channels=4, multipliers=(1, 2, 2), blocks=1, mid_blocks=1, latent=4, vocab_size=64, norm_groups=0)
SET = harness.root() / "titok_tokenizer"


def tiny_titok(**settings: Any) -> TiTok:
    torch.manual_seed(0)
    return TiTok(**{**TITOK, "vocab_size": 16, **settings}).eval()


def tiny_titok_kl(**settings: Any) -> TiTokKL:
    torch.manual_seed(0)
    return TiTokKL(**{**TITOK, "scale": 1.0, **settings}).eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    ("cls", "size", "millions", "tolerance"),
    [
        (TiTok, "l32", 641, 0.5),
        (TiTok, "b64", 204.8, 0.05),
        (TiTok, "s128", 83.7, 0.05),
        (TiTok, "bl64", 390, 1.0),
        (TiTok, "bl128", 390, 1.0),
        (TiTok, "sl256", 330, 1.0),
        (TiTokKL, "ll32", 607, 1.0),
        (TiTokKL, "bl64", 390, 1.0),
    ],
)
def test_published_sizes_have_the_published_numbers_of_parameters(
    cls: Any, size: str, millions: float, tolerance: float
) -> None:
    with torch.device("meta"):
        net = cls(**cls.SIZES[size])
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=tolerance)
    if size == "l32":
        pixels = sum(p.numel() for p in net.decoder.head.pixels.parameters())
        assert pixels / 1e6 == pytest.approx(30.5, abs=0.3)
        assert net.spec.length == 32 and net.spec.vocab_size == 4096 and net.spec.grid is None


def test_tokens_are_a_line() -> None:
    net = tiny_titok()
    ids = net.encode(images())
    assert ids.shape == (3, 6) and net.spec.grid is None and ids.dtype == torch.int64
    made = net.decode(ids)
    assert made.shape == (3, 1, 32, 32) and torch.equal(made, net.decode(ids, (1, 6)))
    with pytest.raises(MgenError, match="L = 6, which have no place in the image"):
        net.decode(ids[:, :4])
    with pytest.raises(MgenError, match="no grid"):
        net.decode(ids, (2, 3))
    with pytest.raises(MgenError, match="0 … 15"):
        net.decode(ids + 16)


def test_every_token_reaches_every_part_of_the_image() -> None:
    net, ids = tiny_titok(decoder_depth=2), torch.zeros(1, 6, dtype=torch.long)
    other = ids.clone()
    other[0, 2] = 9
    change = (net.decode(ids) - net.decode(other)).abs()
    assert F.max_pool2d(change, 8).min() > 0


@pytest.mark.parametrize("make", [tiny_titok, tiny_titok_kl])
def test_images_of_one_size_alone(make: Any) -> None:
    net = make()
    with pytest.raises(MgenError, match="64×64 pixels: a TiTok.* takes those of 32×32 alone"):
        net.encode(torch.zeros(1, 1, 64, 64))
    with pytest.raises(MgenError, match="images of 32 pixels alone"):
        net.at_size(64)
    assert net.at_size(32) is net


def test_codes_start_on_the_data() -> None:
    net = tiny_titok(unit_codes=True)
    net.initialize_codebooks(images(32), torch.Generator().manual_seed(0))
    assert torch.allclose(net.quantize.embedding.weight.norm(dim=1), torch.ones(16), atol=1e-6)
    assert net(images(32))[1]["commitment"] < 0.1


@pytest.mark.parametrize("unit_codes", [True, False])
def test_the_entropy_of_codes_is_computed_where_it_has_a_weight(unit_codes: bool) -> None:
    for weight in (0.0, 0.1):
        net = tiny_titok(unit_codes=unit_codes)
        TokenizerObjective(net, TokenizerObjectiveConfig(entropy=weight))
        assert ("entropy" in net(images())[1]) == bool(weight)


def test_the_scrambled_encoder_mixes_columns_of_the_reshaped_latents() -> None:
    plain, scrambled = tiny_titok(), tiny_titok(scrambled=True)
    scrambled.load_state_dict(plain.state_dict())
    seen: list[torch.Tensor] = []
    plain.encoder.norm_out.register_forward_hook(lambda module, given, out: seen.append(out))
    straight, mixed = plain.latents(images()), scrambled.latents(images())
    weight = plain.encoder.out.weight[:, :, None, None]
    rows = seen[0].reshape(3, 16, 6, 1)  # (B, N, D) read as (B, D, N, 1)
    assert torch.allclose(mixed.transpose(2, 3), F.conv2d(rows, weight, plain.encoder.out.bias), atol=1e-6)
    assert not torch.allclose(mixed, straight, atol=1e-3)


# -- vectors -------------------------------------------------------------------------------------------------------------


def test_vectors_are_samples_of_a_posterior() -> None:
    net, x = tiny_titok_kl(scale=2.0), images()
    moments = net.moments(x)
    assert moments.shape == (3, 8, 1, 6) and net.noise_shape() == (4, 1, 6)
    noise = torch.randn(3, 4, 1, 6, generator=torch.Generator().manual_seed(2))
    tokens = net.encode(x, noise=noise)
    mean, log_variance = moments.chunk(2, dim=1)
    expected = 2 * (mean + (log_variance / 2).exp() * noise)
    assert torch.allclose(tokens, expected.squeeze(2).transpose(1, 2), atol=1e-6)
    assert torch.allclose(net.decode(net.encode(x)), net(x)[0], atol=1e-5)
    kl = net(x, noise)[1]["kl"]
    by_hand = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    assert torch.allclose(kl, by_hand, atol=1e-6)
    with pytest.raises(MgenError, match="has no scale"):
        tiny_titok_kl(scale=None).encode(x)
    assert estimate_scale(net, [x]) > 0


# -- official files --------------------------------------------------------------------------------------------------------


def kl_state(path: Path) -> dict[str, torch.Tensor]:
    """A file of vectors: the public one of ids, whose last layer of the encoder gets rows for the log-variances."""
    state = load_file(SET / "weights_single_vq.safetensors")
    del state["quantize.embedding.weight"]
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        state[name] = torch.cat([state[name], -0.5 * state[name]])
    save_file(state, path)
    return state


def test_official_vectors_have_the_means_of_the_official_latents(tmp_path: Path) -> None:
    kl_state(tmp_path / "vae.safetensors")
    made = convert("titok-vae", tmp_path / "vae.safetensors", encoder_heads=4, decoder_heads=5)
    case = next(case for case in harness.read_cases("titok_tokenizer") if case.name == "single_vq")
    net = made.model
    assert isinstance(net, TiTokKL) and "no scale" in made.report()
    posterior = net.posterior(net.moments(case.inputs["images"] * 2 - 1))
    assert torch.allclose(posterior.mean, case.outputs["z"], atol=1e-5)
    assert torch.allclose(posterior.std, (-0.25 * case.outputs["z"]).exp(), atol=1e-5)


def test_a_folder_of_the_hub_says_what_its_codes_are(tmp_path: Path) -> None:
    state = load_file(SET / "weights_single_vq.safetensors")
    save_file({**state, "quantize.embed_prob": torch.zeros(64)}, tmp_path / "model.safetensors")
    heads = {"encoder_heads": 4, "decoder_heads": 5}
    bare = convert("titok-vq", tmp_path, **heads)
    assert not bare.config["unit_codes"] and list(bare.ignored) == ["quantize.embed_prob"]
    (tmp_path / "config.json").write_text(json.dumps({"model": {"vq_model": {"use_l2_norm": True}}}))
    assert convert("titok-vq", tmp_path, **heads).config["unit_codes"]
    (tmp_path / "config.json").write_text(json.dumps({"model": {"vq_model": {"use_l2_norm": 1}}}))
    with pytest.raises(MgenError, match="use_l2_norm is 1: expected true or false"):
        convert("titok-vq", tmp_path, **heads)


@pytest.mark.parametrize(
    ("change", "form", "words"),
    [
        (lambda s: {**s, "decoder.text_guidance_proj.weight": torch.zeros(2, 2)}, "titok-vq", "text-aware"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("pixel_")}, "titok-vq", "first stage"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("quantize")}, "titok-vq", "titok-vae"),
        (lambda s: s, "titok-vae", "titok-vq"),
        (lambda s: {k: v for k, v in s.items() if k != "latent_tokens"}, "titok-vq", "lacks latent_tokens"),
    ],
    ids=["TA-TiTok", "first stage", "no codebook", "codebook", "incomplete"],
)
def test_what_is_not_read_is_told(change: Any, form: str, words: str, tmp_path: Path) -> None:
    save_file(change(load_file(SET / "weights.safetensors")), tmp_path / "w.safetensors")
    with pytest.raises(MgenError, match=words):
        convert(form, tmp_path / "w.safetensors")


# -- the first of two stages -------------------------------------------------------------------------------------------------


def two_stages(**settings: Any) -> TiTok:
    return tiny_titok(decoder_patch=4, pixel_decoder={**PIXELS, "shortcut": "input"}, **settings)


def test_the_first_stage_learns_the_ids_of_the_vqgan(tmp_path: Path) -> None:
    torch.manual_seed(1)
    teacher = VQGAN(**{**TOKENIZER, **PIXELS, "shortcut": "input"}).eval()
    teacher.save_pretrained(tmp_path / "vqgan")
    net = two_stages()
    proxy = load_proxy(net, str(tmp_path / "vqgan"), anew=True)
    head = net.decoder.head
    assert torch.equal(head.codes.weight, teacher.quantize.embedding.weight)
    objective = TokenizerObjective(net.train(), TokenizerObjectiveConfig(), Companions(proxy=proxy))
    x, noise = images(4), TokenizerNoise(augmentation=AugmentationNoise())
    loss, logs, compared = objective({"image": x}, noise)
    quantized = net.quantize(net.latents(x))
    logits = head.logits(net.decoder.features(quantized.values.squeeze(2).transpose(1, 2)))
    proxy_loss = F.cross_entropy(logits.flatten(0, 1), teacher.encode(x).flatten())
    terms = quantized.losses
    assert torch.allclose(loss, proxy_loss + terms["codebook"] + 0.25 * terms["commitment"], atol=1e-6)
    assert compared is None and {"proxy", "proxy_accuracy", "usage"} <= logs.keys()
    loss.backward()
    trained = {name for name, p in net.named_parameters() if p.grad is not None}
    assert trained and not any(".pixels." in name or ".codes." in name for name in trained)
    # The image is the VQGAN's, of the expected code.
    expected = logits.softmax(-1) @ teacher.quantize.embedding.weight
    image = teacher.decode_latents(expected.transpose(1, 2).unflatten(2, (8, 8)))
    assert torch.allclose(net.decode(quantized.ids.flatten(1)), image, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "proxy", "words"),
    [
        (tiny_titok(), VQGAN(**TOKENIZER, latent=4, vocab_size=64), "two stages"),
        (two_stages(), tiny_titok(), "is a TiTok: a VQGAN is needed"),
        (two_stages(), VQGAN(**{**TOKENIZER, **PIXELS, "vocab_size": 32}), "shortcut is input|vocab_size is 64"),
        (two_stages(), VQGAN(**{**TOKENIZER, **PIXELS, "fsq_levels": (4, 4)}), "scalar quantizer"),
    ],
    ids=["pixels", "no VQGAN", "another VQGAN", "FSQ"],
)
def test_a_first_stage_that_does_not_fit_is_told(net: TiTok, proxy: Any, words: str, tmp_path: Path) -> None:
    proxy.save_pretrained(tmp_path / "vqgan")
    with pytest.raises(MgenError, match=words):
        load_proxy(net, str(tmp_path / "vqgan"), anew=True)
    for term in ("perceptual", "logits", "adversarial"):
        with pytest.raises(MgenError, match="set perceptual, logits and adversarial to 0"):
            TokenizerObjectiveConfig(proxy_tokenizer="vqgan", **{term: 0.1})


def test_both_stages_of_training(tmp_path: Path) -> None:
    idx = write_idx(tmp_path / "idx")
    torch.manual_seed(1)
    VQGAN(**{**TOKENIZER, **PIXELS, "shortcut": "input"}).save_pretrained(tmp_path / "vqgan")
    model = {"class": "TiTok", **TITOK, "vocab_size": 16, "decoder_patch": 4}
    model["pixel_decoder"] = {**PIXELS, "multipliers": [1, 2, 2], "shortcut": "input"}
    shared = {"task": "tokenizer", "batch_size": 8, "data": {"kind": "fmnist", "path": str(idx)}, "model": model}
    first = {"output": str(tmp_path / "1"), "steps": 6, "objective": {"proxy_tokenizer": str(tmp_path / "vqgan")}}
    train(train_config({**shared, **first, "optim": {"lr": 3e-3}, "log": {"every": 1}}))
    lines = [json.loads(line) for line in (tmp_path / "1" / "metrics.jsonl").read_text().splitlines()]
    assert lines[5]["proxy"] < lines[0]["proxy"]
    second = {"output": str(tmp_path / "2"), "steps": 2, "init": str(tmp_path / "1")}
    second |= {"optim": {"freeze": ["encoder.", "quantize."]}, "objective": {"codebook": 0.0, "commitment": 0.0}}
    train(train_config({**shared, **second}))
    before, after = (TiTok.from_pretrained(tmp_path / n / "model").state_dict() for n in ("1", "2"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}
    assert not torch.equal(before["decoder.head.pixels.conv_out.bias"], after["decoder.head.pixels.conv_out.bias"])


# -- tokens without a place in the image, in every command ---------------------------------------------------------------------


def generator_settings(tokenizer: Path, cache: Path, output: Path, kind: str) -> dict[str, Any]:
    tokens: dict[str, Any] = {"kind": kind, "length": 6}
    tokens |= {"vocab_size": 16} if kind == "index" else {"channels": 4}
    parts: dict[str, Any] = {
        "trunk": {"type": "uvit", "dim": 16, "depth": 2, "heads": 2},
        "head": {"type": "categorical"},
    }
    if kind == "vector":
        halves = {
            f"{part}_{key}": n
            for part in ("encoder", "decoder")
            for key, n in (("dim", 16), ("depth", 1), ("heads", 2))
        }
        parts = {
            "trunk": {"type": "mae", **halves, "prefix_length": 1},
            "head": {"type": "diffusion", "width": 16, "depth": 1},
        }
    return {
        "task": "generator",
        "output": str(output),
        "steps": 2,
        "batch_size": 8,
        "model": {"tokens": tokens, "classes": {"count": 10}, **parts},
        "data": {"kind": "cache", "path": str(cache)},
        "objective": {"tokenizer": str(tokenizer), "sampler": {"steps": 2}},
    }


@pytest.mark.parametrize("kind", ["index", "vector"])
def test_cache_train_sample_and_what_has_no_meaning(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    idx = write_idx(tmp_path / "idx")
    net = tiny_titok() if kind == "index" else tiny_titok_kl()
    net.save_pretrained(tmp_path / "tokenizer")
    fmnist = ["--data", "fmnist", "--data-path", str(idx), "--tokenizer", str(tmp_path / "tokenizer")]
    assert main(["cache", *fmnist, "--out", str(tmp_path / "cache")]) == 0
    settings = generator_settings(tmp_path / "tokenizer", tmp_path / "cache", tmp_path / "run", kind)
    train(train_config(settings))
    model, out = str(tmp_path / "run" / "model"), tmp_path / "images"
    more = ["--set", "head.steps=2"] if kind == "vector" else []
    assert main(["sample", "--model", model, "--num-images", "2", "--animation", "--out", str(out), *more]) == 0
    assert (out / "animation.gif").stat().st_size > 0
    Image.new("L", (32, 32)).save(tmp_path / "image.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "mask.png")
    edit = ["edit", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png"), "--model", model]
    assert main([*edit, "--class", "0", "--out", str(tmp_path / "edited")]) == 2
    assert "have no position in the image" in capsys.readouterr().err
    check = ["eval", str(out), "--reconstruction", str(tmp_path / "tokenizer"), "--check"]
    assert main(["sample", "--model", model, "--num-images", "4", "--out", str(out), "--overwrite", *more]) == 0
    capsys.readouterr()
    assert main([*check, "--out", str(tmp_path / "check")]) == 0, capsys.readouterr().err


def test_orders_that_need_a_grid_are_refused_and_others_sample() -> None:
    tokens: dict[str, Any] = {"kind": "index", "length": 6, "vocab_size": 16}
    net = tiny_net("uvit", tokens=tokens)
    for order in ("confidence", "random", "raster"):
        pipe = MaskedPipeline(tokenizer=tiny_titok(), transformer=net, sampler=ParallelSampler(steps=2, order=order))
        assert pipe([0, 1], progress=False, output_type="pt").images.shape == (2, 1, 32, 32)
    with pytest.raises(MgenError, match="position in the image"):
        ParallelSampler(steps=2, order="halton").check(net)


def test_other_tokenizers_keep_their_grids() -> None:
    net = tiny_tokenizer()
    assert net.side_for(net.spec) == 32
    with pytest.raises(MgenError, match="make no grid of 7×7"):
        net.decode(torch.zeros(1, 50, dtype=torch.long))
