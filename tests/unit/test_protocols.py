"""Named protocols: what each says of the same images, against independent implementations and other tools."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from mgen.evaluation.bootstrap import deviations, multiplicities, weighted_sums
from mgen.evaluation.evaluate import result
from mgen.evaluation.extractors import clean_resize, make_extractor
from mgen.evaluation.measure import measure
from mgen.evaluation.neighbors import kernel_distance, precision_recall
from mgen.evaluation.protocols import PROTOCOLS, find_protocol
from mgen.evaluation.scores import class_score, split_of
from mgen.evaluation.statistics import FeatureSums, Reference
from mgen.utils.errors import MgenError
from tests.evaluation import Plain, pictures, source_of, torch_fidelity_metrics
from tools.evaluation_speed import random_inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_inception(tmp_path_factory.mktemp("inception") / "inception.pth")


def test_a_protocol_is_known_by_what_decides_its_numbers() -> None:
    ids = {p.id for p in PROTOCOLS.values()}
    assert len(ids) == len(PROTOCOLS), "two protocols that measure alike"
    assert (
        find_protocol("adm").id == PROTOCOLS["adm"].id
        and find_protocol(None, extractor="inception").name == "torch-fidelity"
    )
    changed = find_protocol("adm", image_size=256, quantization="truncate")
    assert changed.name == "adm" and changed.id not in ids
    assert (
        find_protocol("adm", quantization="round").id == PROTOCOLS["adm"].id
        and find_protocol(None).name == "fmnist-cnn"
    )
    assert find_protocol(None, extractor="runs/cnn").name == "custom"
    with pytest.raises(MgenError, match="not of fmnist-cnn"):
        find_protocol("adm", extractor="fmnist-cnn")
    with pytest.raises(MgenError, match="torch-fidelity"):
        find_protocol("torchfidelity")


def logits_of(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 20, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("count", [1003, 7])
def test_the_shuffled_score_is_torch_fidelitys(count: int) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = logits_of(count, 0)
    expected = isc_features_to_metric(logits, splits=min(10, count))
    got = class_score(logits.split(100), split_of(count, find_protocol("torch-fidelity")))
    assert got == pytest.approx(tuple(expected.values()), rel=1e-10)


def adm_score(logits: np.ndarray, size: int) -> float:
    """ADM's rule written down directly: consecutive splits, the exponential of the mean divergence of each, and their mean."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    scores = []
    for start in range(0, len(p), size):
        part = p[start : start + size]
        divergence = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(divergence.sum(1).mean()))
    return float(np.mean(scores))


def test_sorting_by_class_changes_adms_score_and_hardly_torch_fidelitys() -> None:
    draw = torch.Generator().manual_seed(1)
    classes = torch.arange(20000) % 10
    logits = torch.randn(20000, 10, generator=draw) + 6 * torch.eye(10)[classes]
    sorted_ = logits[classes.argsort(stable=True)]
    adm, shuffled = find_protocol("adm"), find_protocol("torch-fidelity")
    scores = {}
    for name, rows in (("turn", logits), ("sorted", sorted_)):
        assert (got := class_score([rows], split_of(20000, adm))[0]) == pytest.approx(
            adm_score(rows.double().numpy(), 5000), rel=1e-9
        )
        scores[name] = got, class_score([rows], split_of(20000, shuffled))[0]
    assert scores["sorted"][0] < 0.5 * scores["turn"][0], "four splits of two and a half classes each"
    assert scores["sorted"][1] == pytest.approx(scores["turn"][1], rel=0.01)


def brute_precision_recall(a: np.ndarray, b: np.ndarray, k: int) -> tuple[float, float]:
    """Kynkäänniemi et al. written down directly: is a point within the k-th neighbor's distance of any point of the other set?"""

    def radii(x: np.ndarray) -> np.ndarray:
        return np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), axis=1)[:, k]

    between = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return (between <= radii(b)[None]).any(1).mean(), (between.T <= radii(a)[None]).any(1).mean()


def test_images_sorted_by_class_are_told_where_the_score_depends_on_it() -> None:
    images, protocol = pictures(60), replace(find_protocol("adm"), splits=20, neighbors=0, spatial=False)
    for labels, told in ((torch.arange(60) // 6, True), (torch.arange(60) % 10, False)):
        source = source_of(images, labels)
        measured = measure(source, Plain(), progress=False)
        note = result(measured, source, Plain(), protocol=protocol, reference=None)["note"]
        assert ("sorted by class, 4 classes in a split of 20" in note) == told


def test_precision_recall_and_kernel_distance_by_torch_fidelity_equal_their_definitions() -> None:
    draw = torch.Generator().manual_seed(2)
    a, b = torch.randn(300, 6, generator=draw), torch.randn(200, 6, generator=draw) * 1.3 + 0.2
    assert precision_recall(a, b, neighbors=3) == pytest.approx(
        brute_precision_recall(a.numpy(), b.numpy(), 3), abs=1e-6
    )
    x, y = a[:150].double().numpy(), b[:150].double().numpy()
    rng = np.random.RandomState(2020)
    values = []
    for _ in range(100):
        p, q = x[rng.choice(150, 50, replace=False)], y[rng.choice(150, 50, replace=False)]
        pp, qq, pq = ((u @ v.T / 6 + 1) ** 3 for u, v in ((p, p), (q, q), (p, q)))
        off = ~np.eye(50, dtype=bool)
        values.append(pp[off].mean() + qq[off].mean() - 2 * pq.mean())
    got = kernel_distance(a[:150], b[:150], size=50)
    assert got == pytest.approx((np.mean(values), np.std(values)), rel=1e-3)


def test_the_clean_resize_is_clean_fids() -> None:
    resize = pytest.importorskip("cleanfid.resize", reason="pip install clean-fid").build_resizer("clean")
    for side in (40, 256, 299, 400):
        images = pictures(2, seed=side, side=side, channels=3)
        ours = clean_resize(images)
        theirs = torch.stack([torch.from_numpy(resize(i.permute(1, 2, 0).numpy())).permute(2, 0, 1) for i in images])
        assert (ours - theirs).abs().max() < 2e-3, side
    assert torch.equal(clean_resize(images, cut=True), clean_resize(images).floor())


@pytest.mark.slow
def test_protocols_see_the_same_images_differently(weights: Path) -> None:
    images = pictures(3, side=64, channels=3)
    seen = {
        kind: make_extractor("inception", weights=weights, resize=kind)(images).features
        for kind in ("tensorflow", "clean", "clean-uint8")
    }
    scale = seen["tensorflow"].std(0).mean()
    assert (seen["clean"] - seen["tensorflow"]).abs().max() > 0.01 * scale
    assert 0 < (seen["clean"] - seen["clean-uint8"]).abs().max() < (seen["clean"] - seen["tensorflow"]).abs().max()
    # What the network sees is exactly the resized image: at its own size no resize does anything.
    images = pictures(2, side=299, channels=3)
    plain, clean = (
        make_extractor("inception", weights=weights, resize=kind)(images).features for kind in ("tensorflow", "clean")
    )
    assert torch.allclose(plain, clean, atol=1e-5 * float(plain.abs().max()))


def test_spatial_features_are_adms(weights: Path) -> None:
    """2023 numbers: the first seven channels of the 17×17 map mixed_6/conv, channels last."""
    extractor = make_extractor("inception", weights=weights, spatial=True)
    images = pictures(2, side=299, channels=3)
    kept: list[torch.Tensor] = []
    extractor.model.Mixed_6d.branch1x1.register_forward_hook(lambda m, a, out: kept.append(out))  # type: ignore[attr-defined]
    seen = extractor(images)
    assert seen.spatial is not None and seen.spatial.shape == (2, 2023)
    assert seen.spatial[1, (3 * 17 + 5) * 7 + 4] == kept[0][1, 4, 3, 5] and (seen.spatial >= 0).all(), "after the ReLU"
    assert make_extractor("inception", weights=weights)(images).spatial is None


def test_golden_numbers_of_the_adm_protocol(tmp_path: Path) -> None:
    """FID, sFID, score, precision and recall of fixed arrays, by formulas written down here with scipy's matrix root."""
    rng = np.random.default_rng(0)
    features, spatial = rng.normal(size=(400, 12)).astype(np.float32), rng.normal(size=(400, 9)).astype(np.float32)
    reference, spatial_reference = rng.normal(size=(300, 12)) * 1.2 + 0.3, rng.normal(size=(300, 9)) * 0.7
    logits = rng.normal(size=(400, 10)).astype(np.float32) * 2

    class Given(Plain):
        spatial_length = 9

        def __call__(self, images: torch.Tensor):  # type: ignore[no-untyped-def]
            from mgen.evaluation.extractors import Seen

            row = images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1].long()
            return Seen(*(torch.from_numpy(x)[row] for x in (features, logits, spatial)))

    index = torch.arange(400)
    images = torch.zeros(400, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = (index // 256).byte(), (index % 256).byte()
    given = Given()
    ref = Reference(
        mean=reference.mean(0),
        cov=np.cov(reference, rowvar=False),
        name="golden",
        count=300,
        spatial=(spatial_reference.mean(0), np.cov(spatial_reference, rowvar=False)),
        features=torch.from_numpy(reference).float(),
    )
    from dataclasses import replace

    protocol = replace(find_protocol("adm"), splits=150)
    source = source_of(images)
    measured = measure(source, given, batch_size=64, progress=False)
    given.name = "inception-v3-compat"
    outcome = result(measured, source, given, protocol=protocol, reference=ref)

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
        return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s1 + s2 - 2 * np.real(linalg.sqrtm(s1 @ s2))))

    precision, recall = brute_precision_recall(features.astype(np.float64), reference, 3)
    expected = {
        "FID-400": distance(features.astype(np.float64), reference),
        "sFID-400": distance(spatial.astype(np.float64), spatial_reference),
        "Inception Score": adm_score(logits.astype(np.float64), 150),
        "precision": precision,
        "recall": recall,
    }
    assert outcome["metrics"] == pytest.approx(expected, rel=1e-7) and not outcome["missing"]
    assert "no multiple of 150" in outcome["note"] and outcome["protocol"]["name"] == "adm"


def test_bootstrap_finds_the_spread_of_new_images() -> None:
    """The standard deviation of a mean over replicates is that of the mean itself; equal seeds give equal replicates."""
    images, extractor = pictures(400), Plain()
    measured = measure(source_of(images), extractor, progress=False)
    column = torch.randn(400, generator=torch.Generator().manual_seed(3))
    mean, cov = measured.sums().finish()
    found = [
        deviations(
            measured,
            references={"distance": ("features", mean, cov)},
            score=("score", split_of(400, find_protocol("fmnist-cnn"))),
            means={"mean": column},
            replicates=100,
        )
        for _ in range(2)
    ]
    assert found[0] == found[1] and set(found[0]) == {"distance", "score", "mean"}
    assert found[0]["mean"] == pytest.approx(column.std().item() / 20, rel=0.25)
    assert found[0]["distance"] > 0 and found[0]["score"] > 0
    weights = multiplicities(400, 0, 0)
    rows = measured.rows("features")
    repeated = FeatureSums(12)
    repeated.update(rows.repeat_interleave(weights, 0))
    got = weighted_sums(measured.blocks("features"), weights)
    assert weights.sum() == 400 and np.allclose(got.finish()[1], repeated.finish()[1], atol=1e-5)


@pytest.mark.slow
def test_the_inception_loop_gives_torch_fidelitys_features(weights: Path) -> None:
    """KID, precision and recall of whole images through Inception, against torch-fidelity's own way."""
    images = [pictures(12, seed=k, side=48, channels=3) for k in (1, 2)]
    expected = torch_fidelity_metrics(images, weights, kid=True, prc=True, kid_subset_size=8)
    extractor = make_extractor("inception", weights=weights)
    ours = [measure(source_of(x), extractor, batch_size=5, progress=False).rows("features") for x in images]
    precision, recall = precision_recall(*ours, neighbors=3)
    kernel = kernel_distance(*ours, size=8)
    assert (precision, recall) == (expected["precision"], expected["recall"])
    assert kernel[0] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3, abs=1e-7)


@pytest.mark.slow
def test_lpips_is_the_authors(tmp_path: Path) -> None:
    lpips = pytest.importorskip("lpips", reason="pip install 'mgen[lpips]'")
    from torchvision.models import vgg16

    from mgen.evaluation.pixels import Lpips

    torch.manual_seed(0)
    state = {k: v for k, v in vgg16(weights=None).state_dict().items() if k.startswith("features")}
    torch.save(state, tmp_path / "vgg16.pth")
    a, b = pictures(3, side=64, channels=3), pictures(3, seed=1, side=64, channels=3)
    theirs = lpips.LPIPS(net="vgg", pretrained=True, pnet_rand=True, verbose=False).eval()
    for layer, module in theirs.net.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            number = layer.split(".")[-1]
            module.load_state_dict({k: state[f"features.{number}.{k}"] for k in ("weight", "bias")})
    expected = theirs(a.float() / 127.5 - 1, b.float() / 127.5 - 1).flatten()
    ours = Lpips(tmp_path / "vgg16.pth", torch.device("cpu"))
    assert torch.allclose(ours(a, b).float(), expected, rtol=1e-5) and ours(a, a).abs().max() == 0
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(MgenError, match="VGG16"):
        Lpips(tmp_path / "other.pth", torch.device("cpu"))
