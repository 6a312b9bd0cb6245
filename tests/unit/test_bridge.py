"""Quantized KL tokenizers: levels, tokens, the order of channels, and what is lost by them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg
from torch import Tensor

from mgen.cli import main
from mgen.data import FashionMNIST, TokenCache, write_cache
from mgen.evaluation.extractors import InceptionExtractor, make_extractor
from mgen.evaluation.measure import measure
from mgen.evaluation.pixels import psnr, ssim
from mgen.evaluation.reconstruction import (
    distance_name,
    posterior_noise,
    reconstruction_metrics,
    reconstructions,
)
from mgen.nn.levels import FORMS, PUBLISHED_ORDER, best_range, dequantize, gaussian_levels, quantize
from mgen.pipelines.pixels import to_uint8
from mgen.pipelines.saved import load_tokenizer
from mgen.tokenizers import QuantizedKL
from mgen.tokenizers.frequency import frequency_order, measure_order
from mgen.tokens import LevelSpec
from mgen.utils.errors import MgenError
from tests.helpers import tiny_kl, tiny_tokenizer, write_idx

RANGE = dict(low=-5.0, high=5.0, span=3.0)


def normal(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


def squared_error(levels: int, form: str, r: float) -> float:
    x, values = normal(200_000), gaussian_levels(levels, form=form)[0]
    near = dict(low=-r, high=r, span=3.0)
    return (dequantize(quantize(x, values, **near), values, **near) - x).square().mean().item()


# -- levels -------------------------------------------------------------------------------------------------------------


def test_published_levels_are_those_of_the_paper() -> None:
    values, boundaries = gaussian_levels(64)
    assert values[:4].tolist() == pytest.approx([-2.4371, -1.9942, -1.7642, -1.6023], abs=1e-4)
    assert (boundaries[0].item(), boundaries[-1].item()) == (-3.0, 3.0)
    ends = dequantize(torch.tensor([0, 63]), values, **RANGE)
    assert ends.tolist() == pytest.approx([-4.06183, 4.06184], abs=1e-5)  # the range is never filled
    assert (gaussian_levels(1024)[0] == 0).sum() == 2  # its outermost cells are empty


@pytest.mark.parametrize("levels", [2, 3, 10, 64, 1000, 4096])
def test_clean_levels_fill_the_range_and_none_is_lost(levels: int) -> None:
    values, boundaries = gaussian_levels(levels, form="clean")
    assert len(values) == levels and len(boundaries) == levels + 1
    assert (values[0].item(), values[-1].item()) == (-3.0, 3.0)
    assert (values.diff() > 0).all() and torch.equal(values, -values.flip(0))
    assert (values > boundaries[:-1]).all() and (values < boundaries[1:]).all()
    ids = quantize(torch.tensor([-9.0, -1.5, 4.0, 9.0]), values, low=-1.5, high=4.0, span=3.0)
    assert ids.tolist() == [0, 0, levels - 1, levels - 1]
    assert dequantize(ids, values, low=-1.5, high=4.0, span=3.0).tolist() == [-1.5, -1.5, 4.0, 4.0]
    assert torch.equal(quantize(values, values, low=-3.0, high=3.0, span=3.0), torch.arange(levels))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", [7, 64, 1024])
def test_quantize_finds_the_nearest_level(levels: int, form: str) -> None:
    values = gaussian_levels(levels, form=form)[0]
    x = (2 * normal(3000)).view(3, 10, 100).transpose(1, 2)
    y = ((x + 5) / 10 * 6 - 3).clamp(-3, 3)
    assert torch.equal(quantize(x, values, **RANGE), (y.unsqueeze(-1) - values).abs().argmin(-1))


def test_ties_go_down_and_what_is_no_number_goes_somewhere() -> None:
    x = torch.tensor([0.0, math.nan, math.inf, -math.inf])
    for form in FORMS:
        assert quantize(x, gaussian_levels(64, form=form)[0], **RANGE).tolist() == [31, 0, 63, 0]
    assert quantize(torch.tensor([0.0]), gaussian_levels(1024)[0], **RANGE).item() == 0  # of equal levels the first


def test_squared_error_on_normal_numbers() -> None:
    """The published errors (6 bits, ±5: 6.58e-4), and what a filled range is worth."""
    assert squared_error(64, "published", 5.0) == pytest.approx(6.58e-4, rel=0.01)
    assert squared_error(64, "clean", best_range(64, form="clean")) == pytest.approx(6.62e-4, rel=0.01)
    assert squared_error(64, "clean", 3.0) < 0.4 * squared_error(64, "published", 3.0)
    for levels, form in ((16, "clean"), (100, "clean"), (64, "published")):
        best = best_range(levels, form=form)
        here = squared_error(levels, form, best)
        assert here < squared_error(levels, form, 0.85 * best) and here < squared_error(levels, form, 1.15 * best)


def test_levels_that_cannot_be() -> None:
    for arguments in (dict(levels=1), dict(levels=8, span=0.0), dict(levels=8, form="uniform")):
        with pytest.raises(MgenError):
            gaussian_levels(**arguments)


# -- the tokenizer ------------------------------------------------------------------------------------------------------


def tiny_bridge(**settings: object) -> QuantizedKL:
    return QuantizedKL.wrap(tiny_kl(scale=4.0), **{"levels": 16, "form": "clean", "low": -2.0, "high": 3.0, **settings})


@torch.inference_mode()
def test_ids_stand_for_the_numbers_of_the_kl_tokenizer() -> None:
    kl, net = tiny_kl(scale=4.0), tiny_bridge(levels=200)
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    noise = torch.randn(2, *net.noise_shape())
    for given in (None, noise):
        ids, tokens = net.encode(images, noise=given), kl.encode(images, noise=given)
        assert ids.shape == (2, 64, 4) and ids.dtype == torch.int64
        values = net.values(ids)
        widest = dequantize(torch.arange(200), net.level_values, low=-2.0, high=3.0, span=3.0).diff().max() / 2
        assert ((values - tokens.clamp(-2, 3)).abs() <= widest + 1e-6).all()
        assert torch.equal(net.decode(ids), kl.decode(values))
    assert not torch.equal(net.encode(images), net.encode(images, noise=noise))
    wide = torch.rand(1, 1, 16, 64) * 2 - 1
    assert net.decode(net.encode(wide), (4, 16)).shape == wide.shape
    spec = net.spec
    assert (spec.kind, spec.vocab_size, spec.channels, spec.length, spec.scale) == ("multi-index", 200, 4, 64, 4.0)
    assert net.fuse() is net and not net.training


@torch.inference_mode()
def test_a_saved_tokenizer_keeps_its_own_levels(tmp_path: Path) -> None:
    net = tiny_bridge(channel_order=(3, 1, 0, 2))
    net.level_values[5] += 0.01  # as of a checkpoint whose levels were computed otherwise
    net.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, QuantizedKL) and tuple(again.config.channel_order) == (3, 1, 0, 2)
    assert torch.equal(again.level_values, net.level_values) and again.spec == net.spec
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    assert torch.equal(again.encode(images), net.encode(images))
    assert torch.equal(again.decode(again.encode(images)), net.decode(net.encode(images)))
    again.register_to_config(image_size=64)
    again.save_pretrained(tmp_path / "larger")
    larger = QuantizedKL.from_pretrained(tmp_path / "larger")
    assert larger.spec.grid == (16, 16) and larger.noise_shape() == (4, 16, 16) and larger.config.in_channels == 1


def test_settings_that_cannot_be() -> None:
    for settings, text in (
        (dict(low=3.0), "range"),
        (dict(high=math.inf), "'high' takes a finite number"),
        (dict(channel_order=(0, 1, 2)), "permutation"),
        (dict(channel_order=PUBLISHED_ORDER), "permutation"),
        (dict(in_channels=3), "in_channels"),
        (dict(form="cleen"), "clean"),
    ):
        with pytest.raises(MgenError, match=text):
            tiny_bridge(**settings)
    with pytest.raises(MgenError, match="measure-scale"):
        QuantizedKL.wrap(tiny_kl(scale=None))
    with pytest.raises(MgenError, match="kl.chanels.*channels"):
        QuantizedKL(kl={"chanels": (8,)})
    with pytest.raises(MgenError, match="convert quantize"):
        tiny_bridge()(torch.zeros(1, 1, 32, 32))


def test_a_generator_is_told_which_tokens_do_not_fit() -> None:
    spec = tiny_bridge().spec
    spec.require(spec, by="G")
    with pytest.raises(MgenError, match="multi-index"):
        tiny_kl().spec.require(spec, by="G")
    with pytest.raises(MgenError, match="64 tokens of 4 channels of 16 ids, .* 64 tokens of 4 channels of 8 ids"):
        tiny_bridge(levels=8).spec.require(spec, by="G")
    with pytest.raises(MgenError, match=r"clean in \[-2, 3\], the tokenizer has published in \[-2, 3\], span 3"):
        tiny_bridge(form="published").spec.require(spec, by="G")
    assert spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert "levels" not in tiny_kl().spec.to_dict()
    one, other = (str(LevelSpec(form="clean", low=-1.0, high=1.0, span=span)) for span in (2.0, 3.0))
    assert one == other  # the same numbers, whatever the scale they are written on


def test_one_cache_of_moments_serves_all_levels(tmp_path: Path) -> None:
    data, kl, net = FashionMNIST(root=write_idx(tmp_path / "idx", count=24)), tiny_kl(scale=4.0), tiny_bridge()
    for name, tokenizer in (("kl", kl), ("bridge", net)):
        write_cache(data, tokenizer, tmp_path / name, batch_size=16, progress=False)
    assert net.fingerprint() == kl.fingerprint() == tiny_bridge(levels=99).fingerprint()
    assert net.fingerprint() != QuantizedKL.wrap(tiny_kl(seed=5)).fingerprint()
    with torch.inference_mode():
        noise = torch.randn(3, *net.noise_shape())
        expected = net.encode(data.__getitems__([3, 5, 7])["image"], noise=noise)
        for name in ("kl", "bridge"):
            cache = TokenCache(tmp_path / name, fingerprint=net.fingerprint())
            moments = cache.__getitems__([3, 5, 7])["moments"][:, 0]
            assert (net.tokens(moments, noise) != expected).sum() <= 2  # batches of other sizes round otherwise


# -- the order of channels ----------------------------------------------------------------------------------------------


def test_channels_are_ordered_by_frequency() -> None:
    angle = torch.arange(16) / 16 * 2 * math.pi
    waves = [torch.cos(k * angle)[None, :] + torch.cos(k * angle)[:, None] for k in (5, 1, 7, 3)]
    strength = torch.tensor([1.0, 30.0, 0.1, 2.0]).view(1, 4, 1, 1)
    latents = torch.stack(waves)[None] * strength * torch.randn(6, 1, 1, 1) + torch.tensor([9.0, 0, 0, 9]).view(
        1, 4, 1, 1
    )
    assert frequency_order(latents) == (1, 3, 0, 2)
    assert frequency_order(torch.zeros(2, 3, 4, 4)) == (0, 1, 2)
    for bad in (torch.zeros(3, 4, 4), torch.full((1, 1, 2, 2), math.nan), torch.zeros(1, 2, 1, 1)):
        with pytest.raises(MgenError):
            frequency_order(bad)


def test_a_channel_of_noise_comes_last() -> None:
    kl = tiny_kl(scale=4.0)
    with torch.no_grad():
        assert kl.vae.quant_conv is not None
        kl.vae.quant_conv.bias[4:] -= 12.0  # log-variances
        kl.vae.quant_conv.bias[4 + 2] += 24.0
    ramp = torch.linspace(-1, 1, 32).expand(12, 1, 32, 32) * torch.randn(12, 1, 1, 1)
    order = measure_order(kl, [ramp[:5], ramp[5:]])
    assert order[-1] == 2 and sorted(order) == [0, 1, 2, 3]
    assert measure_order(kl, [ramp]) == order
    with pytest.raises(MgenError, match="no images"):
        measure_order(kl, [])


# -- the command line ---------------------------------------------------------------------------------------------------


def test_quantize_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    idx, kl, out = write_idx(tmp_path / "idx"), str(tmp_path / "kl"), str(tmp_path / "bridge")
    tiny_kl(scale=4.0).save_pretrained(kl)
    measure = ["cache", "--data", "fmnist", "--data-path", str(idx), "--measure-order", "50", "--tokenizer"]
    assert main([*measure, kl]) == 0
    order = capsys.readouterr().out.strip()
    assert sorted(json.loads(order)) == [0, 1, 2, 3]
    assert main(["convert", "quantize", kl, "--out", out, "levels=20", "form=clean", f"channel_order={order}"]) == 0
    assert "4 channels of 20 ids" in capsys.readouterr().out
    net = load_tokenizer(out)
    assert list(net.config.channel_order) == json.loads(order) and len(net.level_values) == 20
    assert main([*measure, out]) == 0 and capsys.readouterr().out.strip() == order
    assert main(["convert", "quantize", out, "--out", out, "levels=30"]) == 0  # levels anew, of what it was made of
    assert len(load_tokenizer(out).level_values) == 30
    tiny_tokenizer().save_pretrained(tmp_path / "vq")
    for arguments, text in (
        ([kl, "level=20"], "levels"),
        ([kl, "levels=many"], "levels"),
        ([kl, "channel_order=3"], "channel_order"),
        ([kl, "channel_order=published"], "permutation"),
        ([str(tmp_path / "vq")], "VQGAN"),
        ([kl, "--tokenizer", kl], "generators"),
    ):
        assert main(["convert", "quantize", *arguments, "--out", str(tmp_path / "no")]) == 2
        assert text in capsys.readouterr().err
    assert main([*measure, str(tmp_path / "vq")]) == 2 and "KL" in capsys.readouterr().err


# -- reconstructions ----------------------------------------------------------------------------------------------------


def test_psnr_and_ssim_equal_scikit_image() -> None:
    """scikit-image 0.26: structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)."""
    for seed, shape, similarity, decibel in (
        (0, (1, 32, 32), 0.9807356762436223, 25.264892651212172),
        (1, (3, 24, 40), 0.9788017297840711, 25.10318905339444),
        (2, (3, 11, 11), 0.9876157999354701, 25.17825346590641),
    ):
        rng = np.random.RandomState(seed)
        a = np.cumsum(rng.randint(0, 256, shape) - 127, 2) // 4 % 256
        b = np.clip(a + rng.randint(-25, 26, shape), 0, 255)
        one, other = (torch.from_numpy(x.astype(np.uint8))[None].repeat(2, 1, 1, 1) for x in (a, b))
        assert ssim(one, other).tolist() == pytest.approx([similarity] * 2, abs=1e-12)
        assert psnr(one, other).tolist() == pytest.approx([decibel] * 2, abs=1e-12)
        assert ssim(one, one).tolist() == pytest.approx([1.0, 1.0]) and torch.isfinite(psnr(one, one)).all()
    with pytest.raises(MgenError, match="11"):
        ssim(one[..., :10], one[..., :10])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of photographs, larger than the tokenizer's images and not square."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(14):
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        ramp = np.linspace(0, 200, 50)[None, :] * rng.random() + rng.integers(0, 50, (40, 50))
        Image.fromarray(ramp.astype(np.uint8)).save(folder / "ab"[i % 2] / f"{i}.png")
    return folder


def test_noise_belongs_to_the_image() -> None:
    net = tiny_bridge()
    assert posterior_noise(net, "mean", 0, range(3)) == {}
    whole = posterior_noise(net, "sample", 7, [4, 9, 2])["noise"]
    assert torch.equal(whole[1:2], posterior_noise(net, "sample", 7, [9])["noise"])
    assert not torch.equal(whole, posterior_noise(net, "sample", 8, [4, 9, 2])["noise"])
    with pytest.raises(MgenError, match="VQGAN"):
        posterior_noise(tiny_tokenizer(), "sample", 0, [0])


def test_only_inception_makes_an_rfid() -> None:
    class Inception:
        name = InceptionExtractor.name

    assert distance_name(Inception(), 50000) == "rFID" and distance_name(Inception(), 200) == "rFID-200"  # type: ignore[arg-type]
    name = distance_name(make_extractor("fmnist-cnn"), 50000)
    assert name == "Fréchet distance (fmnist-cnn) to the originals"


def test_what_is_told_of_reconstructions_is_true(tmp_path: Path) -> None:
    data, net = FashionMNIST(root=write_idx(tmp_path / "idx", count=24)), tiny_bridge()
    extractor = make_extractor("fmnist-cnn")
    source = reconstructions(data, net, name="d", rows=range(1, 20, 2), posterior="sample", seed=3)
    measured = measure(source, extractor, batch_size=4)
    images = measured.examples()[0]
    with torch.inference_mode():
        truth = data.__getitems__(range(1, 20, 2))["image"]
        ids = net.encode(truth, **posterior_noise(net, "sample", 3, range(1, 20, 2)))
        expected = to_uint8(net.decode(ids))
    assert (images.int() - expected.int()).abs().max() <= 1
    assert torch.allclose(measured.rows("original"), extractor(to_uint8(truth)).features, atol=1e-5)
    metrics = reconstruction_metrics(measured, source, extractor)
    made, true = (np.cov(measured.rows(name).double().numpy(), rowvar=False) for name in ("features", "original"))
    moved = measured.rows("features").double().mean(0) - measured.rows("original").double().mean(0)
    distance = moved.square().sum().item() + np.trace(made + true - 2 * np.real(linalg.sqrtm(made @ true)))
    assert metrics.pop("Fréchet distance (fmnist-cnn) to the originals") == pytest.approx(distance, rel=1e-3, abs=1e-3)
    share = torch.stack([torch.bincount(column, minlength=16) for column in ids.flatten(0, 1).T]).double()
    used, share = (share > 0).sum(1).double().mean().item(), share / share.sum(1, keepdim=True)
    bits = -(share * share.clamp(min=1e-30).log2()).sum(1).mean().item()
    assert metrics == {
        "PSNR in dB, mean over images": pytest.approx(psnr(to_uint8(truth), expected).mean().item(), abs=1e-3),
        "SSIM, mean over images": pytest.approx(ssim(to_uint8(truth), expected).mean().item(), abs=1e-4),
        "ids used of 16, mean over 4 channels": pytest.approx(used, abs=0.3),
        "entropy of the ids in bits, mean over 4 channels": pytest.approx(bits, abs=1e-2),
    }


def test_eval_of_reconstructions_of_a_folder(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture) -> None:
    tiny_bridge().save_pretrained(tmp_path / "bridge")
    tiny_tokenizer().save_pretrained(tmp_path / "vq")
    out = ["--out", str(tmp_path / "e"), "--num-images", "9", "--extractor", "fmnist-cnn"]

    def metrics(tokenizer: str, *arguments: str) -> dict[str, float]:
        assert main(["eval", str(pictures), "--reconstruction", str(tmp_path / tokenizer), *arguments, *out]) == 0
        result = json.loads((tmp_path / "e" / "result.json").read_text())
        assert result["count"] == 9 and result["reference"]["name"] == "the originals" and result["classifier"] is None
        return result["metrics"]

    mean = metrics("bridge")
    assert mean == metrics("bridge", "--posterior", "mean", "--batch-size", "9")
    assert metrics("bridge", "--posterior", "sample") != mean
    assert metrics("bridge", "--posterior", "sample", "--seed", "4") != metrics("bridge", "--posterior", "sample")
    of_ids = metrics("vq")
    assert 1 <= of_ids["ids used of 64"] <= 64 and "PSNR in dB, mean over images" in of_ids
    assert "class accuracy by class" not in of_ids  # these are no garments
    capsys.readouterr()
    for arguments, text in (
        (["--posterior", "sample", "--reconstruction", str(tmp_path / "vq")], "VQGAN"),
        (["--posterior", "middle", "--reconstruction", str(tmp_path / "bridge")], "sample"),
        (["--posterior", "sample"], "--reconstruction"),
        (["--ranges", "3", "--reconstruction", str(tmp_path / "bridge")], "--levels"),
        (["--levels", "8", "--reconstruction", str(tmp_path / "vq")], "KL"),
        (["--levels", "8,x", "--reconstruction", str(tmp_path / "bridge")], "--levels"),
        (["--levels", "8", "--ranges", "-1", "--reconstruction", str(tmp_path / "bridge")], "--ranges"),
        (["--levels", "1", "--reconstruction", str(tmp_path / "bridge")], "at least 2"),
    ):
        assert main(["eval", str(pictures), *arguments, *out]) == 2, arguments
        assert text in capsys.readouterr().err


def test_levels_are_compared(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture) -> None:
    kl = tiny_kl(scale=4.0)
    kl.save_pretrained(tmp_path / "kl")
    line = ["eval", str(pictures), "--reconstruction", str(tmp_path / "kl"), "--out", str(tmp_path / "e")]
    line += ["--extractor", "fmnist-cnn"]
    assert main([*line, "--levels", "4,256", "--ranges", "1,best", "--batch-size", "5"]) == 0
    result = json.loads((tmp_path / "e" / "levels.json").read_text())
    rows = result["rows"]
    assert len(rows) == 1 + 2 * 2 * 2 and rows[0]["levels"] is None and rows[0]["squared_error"] == 0
    assert "--levels 4,256" in result["command"] and result["count"] == 14
    table = (tmp_path / "e" / "levels.md").read_text()
    assert table.count("\n| ") == 10 and result["command"] in table and table in capsys.readouterr().out
    by = {(row["levels"], row["form"], round(row["range"], 2)): row for row in rows[1:]}
    few, many = (
        by[4, "clean", round(best_range(4, form="clean"), 2)],
        by[256, "clean", round(best_range(256, form="clean"), 2)],
    )
    assert many["squared_error"] < 0.01 * few["squared_error"] and many["entropy"] > few["entropy"] + 3
    assert abs(many["psnr"] - rows[0]["psnr"]) < 0.05 and many["distance"] == pytest.approx(
        rows[0]["distance"], rel=0.05
    )
    with torch.inference_mode():
        from mgen.data import ImageFolder

        tokens = kl.encode(ImageFolder(root=pictures, image_size=32, channels=1).__getitems__(range(14))["image"])
    assert by[4, "clean", 1.0]["outside"] == pytest.approx((tokens.abs() > 1).double().mean().item(), abs=1e-3)
    made = QuantizedKL.wrap(kl, levels=4, form="clean", low=-1.0, high=1.0)
    ids = quantize(tokens, made.level_values, low=-1.0, high=1.0, span=3.0)
    error = (made.values(ids) - tokens).square().mean().item()
    assert by[4, "clean", 1.0]["squared_error"] == pytest.approx(error, rel=1e-4)
