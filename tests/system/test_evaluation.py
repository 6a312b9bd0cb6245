"""Metrics against independent implementations, streaming, references, and what a result says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from mgen.evaluation.evaluate import metric_names, result
from mgen.evaluation.extractors import CNNExtractor, make_extractor, match_channels
from mgen.evaluation.folder_source import from_folder
from mgen.evaluation.frechet import frechet_distance
from mgen.evaluation.measure import measure
from mgen.evaluation.protocols import find_protocol
from mgen.evaluation.sources import from_npz
from mgen.evaluation.statistics import FeatureSums, Reference, load_statistics, save_statistics
from mgen.utils.errors import MgenError
from tests.evaluation import source_of, torch_fidelity_metrics
from tools.evaluation_speed import random_inception


def gaussian(seed: int, n: int, f: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, f)) @ rng.normal(size=(f, f)) + rng.normal(size=f)


def sums_of(x: np.ndarray, batch: int = 7) -> FeatureSums:
    sums = FeatureSums(x.shape[1])
    for start in range(0, len(x), batch):
        sums.update(torch.from_numpy(x[start : start + batch]))
    return sums


@pytest.mark.parametrize("n", [500, 40], ids=["full rank", "fewer images than features"])
def test_frechet_distance_equals_the_matrix_root(n: int) -> None:
    a, b = gaussian(0, n, 60), gaussian(1, n, 60)
    got = frechet_distance(*sums_of(a).finish(), *sums_of(b).finish())
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(s1 @ s2)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s1 + s2 - 2 * np.real(root))
    assert got == pytest.approx(expected, rel=1e-9 if n > 60 else 1e-5)
    assert frechet_distance(*sums_of(a).finish(), *sums_of(a).finish()) < 1e-7


def test_streaming_does_not_depend_on_the_batches() -> None:
    x = gaussian(2, 101, 12)
    mean, cov = sums_of(x, 101).finish()
    assert np.allclose(cov, np.cov(x, rowvar=False), atol=1e-10)
    for other in (sums_of(x, 8), sums_of(x, 33)):
        assert np.allclose(other.finish()[0], mean, atol=1e-12) and np.allclose(other.finish()[1], cov, atol=1e-10)


def test_fid_and_is_equal_torch_fidelity_on_inception(tmp_path: Path) -> None:
    """The whole way through the Inception network, with random weights, against torch-fidelity's own loop."""
    weights = random_inception(tmp_path / "inception.pth")
    images = [torch.randint(0, 256, (12, 3, 40, 40), dtype=torch.uint8) // k for k in (1, 2)]
    expected = torch_fidelity_metrics(images, weights, fid=True, isc=True, isc_splits=10)
    extractor = make_extractor("inception", weights=weights)
    mean, cov = measure(source_of(images[1]), extractor, batch_size=5).sums().finish()
    reference = Reference(mean=mean, cov=cov, name="second", count=12)
    measured = measure(source_of(images[0]), extractor, batch_size=5)
    protocol = find_protocol("torch-fidelity")
    got = result(measured, source_of(images[0]), extractor, protocol=protocol, reference=reference)["metrics"]
    assert got["FID-12"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert got["Inception Score"] == pytest.approx(expected["inception_score_mean"], rel=1e-5)


def test_only_inception_features_make_an_fid() -> None:
    extractor = make_extractor("fmnist-cnn")
    assert metric_names(extractor, 50000) == ("Fréchet distance (fmnist-cnn)", "classifier score (fmnist-cnn)")


def test_statistics_files(tmp_path: Path) -> None:
    extractor, classifier = make_extractor("fmnist-cnn"), make_extractor("fmnist-classifier")
    sums = FeatureSums(64)
    sums.update(extractor(torch.randint(0, 256, (90, 1, 32, 32), dtype=torch.uint8))[0])
    save_statistics(tmp_path / "s.safetensors", sums, extractor, "noise")
    reference = load_statistics(tmp_path / "s.safetensors", extractor)
    assert reference.count == 90 and np.array_equal(reference.cov, sums.finish()[1])
    with pytest.raises(MgenError, match="not with the weights"):
        load_statistics(tmp_path / "s.safetensors", classifier)
    mean, cov = sums.finish()
    np.savez(tmp_path / "s.npz", mu=mean.astype(np.float32), sigma=cov)
    torch.save({"mu": torch.from_numpy(mean), "sigma": torch.from_numpy(cov)}, tmp_path / "s.pt")
    for name in ("s.npz", "s.pt"):
        assert np.allclose(load_statistics(tmp_path / name, extractor).mean, mean, atol=1e-5)
    np.savez(tmp_path / "bad.npz", x=mean)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:50])
    for name in ("bad.npz", "cut.npz", "none.npz"):
        with pytest.raises(MgenError):
            load_statistics(tmp_path / name, extractor)
    with pytest.raises(MgenError, match="feature|length"):
        frechet_distance(mean, cov, mean[:5], cov[:5, :5])


def test_sources_keep_labels_and_mixed_sizes_are_an_error(tmp_path: Path) -> None:
    from PIL import Image

    for i, c in enumerate((4, 7)):
        Image.new("L", (32, 32), 100).save(tmp_path / f"{i:06d}_class-{c:04d}.png")
    Image.new("L", (9, 9)).save(tmp_path / "grid.png")
    batch = from_folder(tmp_path, channels=1).read(0, 2)
    assert batch.labels.tolist() == [4, 7] and batch.images.shape == (2, 1, 32, 32)
    Image.new("L", (16, 16)).save(tmp_path / "odd.png")
    with pytest.raises(MgenError, match="differs in size"):
        from_folder(tmp_path, channels=1).read(0, 3)
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((5, 8, 8, 3), np.uint8), arr_1=np.arange(5))
    source = from_npz(tmp_path / "x.npz", limit=4)
    batch = source.read(0, 3)
    assert source.count == 4 and batch.images.shape == (3, 3, 8, 8) and batch.labels.tolist() == [0, 1, 2]
    np.savez(tmp_path / "y.npz", arr_0=np.zeros((5, 8, 8, 3), np.float32))
    with pytest.raises(MgenError, match="uint8"):
        from_npz(tmp_path / "y.npz")


def test_channels_are_matched() -> None:
    gray = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(match_channels(match_channels(gray, 3), 1), gray)


def test_extractor_resizes_other_sizes() -> None:
    extractor = make_extractor("fmnist-cnn")
    assert isinstance(extractor, CNNExtractor)
    image = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    features, logits, _ = extractor(image)
    assert torch.allclose(features, extractor(image[:, :1, :32, :32])[0], atol=1e-4) and logits.shape == (1, 10)
