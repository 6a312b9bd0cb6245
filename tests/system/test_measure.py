"""Measuring: shards of features, processes, kills, references of every dialect, npz files, nearest images, the commands."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from mgen.cli import main
from mgen.evaluation.extractors import Extractor, make_extractor
from mgen.evaluation.feature_files import begin, shard_file
from mgen.evaluation.folder_source import from_folder
from mgen.evaluation.measure import Workers, example_rows, measure
from mgen.evaluation.measured import Measured
from mgen.evaluation.neighbors import nearest, nearest_rows
from mgen.evaluation.npz import NpzImages
from mgen.evaluation.references import find_reference
from mgen.evaluation.source import Batch, Source
from mgen.evaluation.sources import from_npz
from mgen.evaluation.statistics import FeatureSums, load_statistics, save_statistics
from mgen.pipelines.pixels import to_pil
from mgen.utils.errors import MgenError
from mgen.utils.files import write_json
from mgen.utils.reading import read_json
from tests.evaluation import Plain, pictures, source_of


def test_one_measurement_whatever_the_batches_and_the_processes(tmp_path: Path) -> None:
    images = pictures(1230)
    labels = torch.arange(1230) % 10
    whole = measure(source_of(images, labels), Plain(), batch_size=100, progress=False)
    for rank in (1, 0):  # the order of the processes does not matter
        folder = tmp_path / "shared"
        if rank:
            measure_rank = Plain()
            measure(
                source_of(images, labels),
                measure_rank,
                folder=folder,
                workers=Workers(rank=1, world=2),
                batch_size=33,
                progress=False,
            )
            with pytest.raises(MgenError, match="part-00000000.safetensors is missing"):
                Measured(folder, 1230)
            assert sum(measure_rank.calls) == 500
    shared = measure(
        source_of(images, labels),
        Plain(),
        folder=folder,
        workers=Workers(rank=0, world=2),
        batch_size=33,
        progress=False,
    )
    mean, cov = whole.sums().finish()
    assert np.allclose(shared.sums().finish()[0], mean, atol=1e-7) and np.allclose(
        shared.sums().finish()[1], cov, atol=1e-6
    )
    assert torch.equal(shared.rows("labels"), labels) and torch.allclose(
        shared.mapped("features"), whole.rows("features"), atol=1e-6
    )
    again = Plain()
    same = measure(source_of(images, labels), again, folder=folder, batch_size=33, progress=False)
    assert not again.calls, "a finished measurement was made again"
    assert torch.equal(same.rows("features"), shared.rows("features"))
    shard_file(folder, 500).unlink()
    measure(source_of(images, labels), again, folder=folder, batch_size=33, progress=False)
    assert sum(again.calls) == 500, "only the missing shard is measured again"
    assert torch.equal(Measured(folder, 1230).rows("features"), shared.rows("features")), (
        "bit for bit after an interruption"
    )


def test_another_measurement_in_the_same_folder_is_an_error(tmp_path: Path) -> None:
    images, extractor = pictures(10), Plain()
    begin(tmp_path, source_of(images), extractor, "p1")
    begin(tmp_path, source_of(images), extractor, "p1")
    with pytest.raises(MgenError, match="choose another --out"):
        begin(tmp_path, source_of(images), extractor, "p2")
    other = source_of(images)
    other.key = "another list of files"
    with pytest.raises(MgenError, match="choose another --out"):
        begin(tmp_path, other, extractor, "p1")


def test_examples_show_classes_whether_in_turn_or_in_blocks() -> None:
    for count, wanted in ((5000, 100), (50000, 100), (1000, 100), (300, 100), (250, 100), (30, 100)):
        rows = example_rows(count, wanted)
        assert len(set(rows)) == len(rows) <= max(wanted, count) and max(rows) < count
        assert len({i % 10 for i in rows}) == 10 and len({i * 10 // count for i in rows}) == 10


def test_memory_holds_one_shard() -> None:
    """Images are read and dropped: never more than the batches in flight are alive."""
    alive = {"now": 0, "most": 0}

    class Tracked(Source):
        pass

    def read(start: int, stop: int) -> Batch:
        import weakref

        images = pictures(stop - start, seed=start)
        alive["now"] += 1
        alive["most"] = max(alive["most"], alive["now"])
        weakref.finalize(images, lambda: alive.__setitem__("now", alive["now"] - 1))
        return Batch(images=images, labels=torch.zeros(stop - start, dtype=torch.int64))

    source = Tracked(count=2000, about={"kind": "data"}, read=read)
    measure(source, Plain(), batch_size=50, examples=0, progress=False)
    assert alive["most"] <= 5


def test_nearest_training_images() -> None:
    training, extractor = pictures(1300), Plain()
    queries = extractor(training[[1100, 7]]).features
    found = nearest(queries, source_of(training), extractor, k=3)
    assert found.indices[:, 0].tolist() == [1100, 7] and found.distances[:, 0].max() < 1e-2
    other = nearest(queries, source_of(training), extractor, k=3, own=torch.tensor([1100, 7]))
    assert other.indices[:, :2].tolist() == found.indices[:, 1:].tolist(), "an image is not its own neighbor"
    exact = torch.cdist(queries, extractor(training).features).topk(3, largest=False).values
    assert torch.allclose(found.distances, exact, atol=1e-4)


def test_neighbors_are_read_in_their_order() -> None:
    training, read = pictures(600), []

    def forward(start: int, stop: int) -> Batch:
        read.append(start)
        return source_of(training).read(start, stop)

    source = Source(count=600, about={"kind": "data", "data": "pictures"}, read=forward, ahead=False)
    measured = measure(source_of(training[[550, 3, 200, 90]]), Plain(), progress=False)
    found = nearest_rows(measured, source, Plain(), k=2)
    assert [row["distance"] < 1e-2 for row in found["rows"]] == [True] * 4
    assert sum(b < a for a, b in zip(read, read[1:])) <= 2, "a stream is begun anew for each of the three passes alone"


def test_training_images_of_other_sizes_are_cut_to_those_measured(tmp_path: Path) -> None:
    for name, sides in (("drawn", (32, 32, 32)), ("training", (40, 64, 33))):
        (tmp_path / name).mkdir()
        for i, side in enumerate(sides):
            to_pil(pictures(1, seed=i, side=side))[0].save(tmp_path / name / f"{i:06d}.png")
    out = tmp_path / "out"
    names = [str(tmp_path / "drawn"), "--nearest", str(tmp_path / "training"), "--out", str(out)]
    assert main(["eval", *names, "--reference", "none", "--classifier", "none", "--bootstrap", "0"]) == 0
    told = read_json(out / "result.json")["nearest"]
    assert told["count"] == 3 and len(told["rows"]) == 3


def test_too_many_processes_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    images = source_of(pictures(600))
    for rank in (1, 0):
        measure(images, Plain(), folder=tmp_path, workers=Workers(rank=rank, world=2))
    assert "more than needed" not in capsys.readouterr().err
    measure(images, Plain(), folder=tmp_path, workers=Workers(rank=0, world=3))
    assert "600 images are 2 shards of 500 images: 3 processes are more than needed" in capsys.readouterr().err


def test_an_unfinished_run_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"num_images": 5})
    for i in range(4):
        to_pil(pictures(1))[0].save(tmp_path / f"{i:06d}_class-0001.png")
    for limit in (None, 5, 100):
        with pytest.raises(MgenError, match="holds 4 of the 5 images of its run"):
            from_folder(tmp_path, limit=limit)
    assert from_folder(tmp_path, limit=4).count == 4


def dialects(folder: Path, extractor: Extractor, rows: np.ndarray) -> Iterator[Path]:
    mean, cov = rows.mean(0), np.cov(rows, rowvar=False)
    for kind in (np.float32, np.float64):
        np.savez(
            folder / "adm.npz",
            mu=mean.astype(kind),
            sigma=cov.astype(kind),
            mu_s=np.zeros(4),
            sigma_s=np.eye(4),
            arr_0=pictures(5).permute(0, 2, 3, 1).numpy(),
        )
        yield folder / "adm.npz"
        torch.save({"mu": mean.astype(kind), "sigma": cov.astype(kind)}, folder / "torch_fidelity.pt")
        yield folder / "torch_fidelity.pt"
        torch.save(
            {"mu": torch.from_numpy(mean.astype(kind)), "sigma": torch.from_numpy(cov.astype(kind))},
            folder / "tensors.pt",
        )
        yield folder / "tensors.pt"
    sums = FeatureSums(rows.shape[1])
    sums.update(torch.from_numpy(rows))
    for name in ("own.npz", "own.safetensors"):
        save_statistics(folder / name, sums, extractor, "rows")
        yield folder / name


def test_every_dialect_of_statistics_is_read(tmp_path: Path) -> None:
    rows, extractor = np.random.default_rng(0).normal(size=(50, 12)), Plain()
    for path in dialects(tmp_path, extractor, rows):
        found = load_statistics(path, extractor)
        assert found.cov.dtype == np.float64 and np.allclose(found.cov, np.cov(rows, rowvar=False), atol=1e-5), path


def test_what_is_no_covariance_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    mean, cov = np.zeros(12), np.eye(12)
    crooked, broken = cov.copy(), cov.copy()
    crooked[0, 1], broken[3, 3] = 0.5, np.nan
    for bad, words in (
        (-cov, "no covariance"),
        (crooked, "no covariance"),
        (broken, "NaN"),
        (np.full((12, 12), "a"), "numbers"),
    ):
        np.savez(tmp_path / "bad.npz", mu=mean, sigma=bad)
        with pytest.raises(MgenError, match=f"bad.npz.*{words}"):
            load_statistics(tmp_path / "bad.npz", Plain())
    np.savez(tmp_path / "silent.npz", mu=mean, sigma=cov)
    assert not load_statistics(tmp_path / "silent.npz", Plain()).described


def test_images_that_nobody_would_compare_with_fashion_mnist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        to_pil(pictures(1, seed=i, side=96, channels=3))[0].save(tmp_path / f"{i:06d}.png")
    assert main(["eval", str(tmp_path), "--out", str(tmp_path / "e")]) == 2
    assert "holds images of 96 px" in capsys.readouterr().err
    assert main(["eval", str(tmp_path), "--reference", "fmnist", "--extractor", "fmnist-cnn"]) == 2
    assert "fmnist-train or fmnist-test" in capsys.readouterr().err
    assert main(["eval", "mar-l-imagenet256"]) == 2
    assert "--recipe mar-l-imagenet256" in capsys.readouterr().err
    assert main(["eval", str(tmp_path), "--save-statistics", str(tmp_path / "s.txt")]) == 2
    assert "must end in .safetensors or .npz" in capsys.readouterr().err


def test_statistics_of_another_resize_are_an_error(tmp_path: Path) -> None:
    rows, extractor = np.random.default_rng(0).normal(size=(50, 12)), Plain()
    *_, own = dialects(tmp_path, extractor, rows)
    other = Plain()
    other.resize = "antialiased bicubic to 299 px in floats"
    with pytest.raises(MgenError, match="the extractor's own"):
        load_statistics(own, other)
    with pytest.raises(MgenError, match="ADM's evaluator made it"):
        load_statistics(tmp_path / "adm.npz", other)


def test_a_reference_with_statistics_and_images_serves_both(tmp_path: Path) -> None:
    extractor = Plain()
    images = pictures(40)
    rows = np.random.default_rng(0).normal(size=(50, 12))
    np.savez(
        tmp_path / "r.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False), arr_0=images.permute(0, 2, 3, 1).numpy()
    )
    found = find_reference(str(tmp_path / "r.npz"), extractor, images=3)
    assert np.allclose(found.mean, rows.mean(0)) and torch.allclose(found.features, extractor(images).features)
    assert find_reference(str(tmp_path / "r.npz"), extractor).features is None
    np.savez(tmp_path / "images.npz", arr_0=images.permute(0, 2, 3, 1).numpy())
    measured = find_reference(str(tmp_path / "images.npz"), extractor, images=3)
    assert (
        np.allclose(measured.mean, extractor(images).features.double().mean(0).numpy(), atol=1e-6)
        and measured.count == 40
    )


def test_npz_is_read_as_a_stream(tmp_path: Path) -> None:
    images = pictures(700, channels=3).permute(0, 2, 3, 1).numpy()
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", arr_0=images, arr_1=np.arange(700))
        file = NpzImages(tmp_path / "x.npz")
        for a, b in ((0, 5), (300, 310), (10, 20), (690, 700)):
            assert np.array_equal(file.read(a, b).permute(0, 2, 3, 1).numpy(), images[a:b])
        assert file.labels[:3].tolist() == [0, 1, 2]
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-5000])
    with pytest.raises(MgenError, match="cut.npz"):
        from_npz(tmp_path / "cut.npz")
    np.savez(tmp_path / "labels.npz", arr_0=images, arr_1=np.arange(5))
    with pytest.raises(MgenError, match="arr_1 has shape"):
        from_npz(tmp_path / "labels.npz")


def test_stats_then_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for i, image in enumerate(pictures(30, side=40)):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i:06d}_class-{i % 3:04d}.png")
    stats = ["stats", str(tmp_path), "--image-size", "32", "--features", "20", "--batch-size", "7"]
    stats += ["--extractor", "fmnist-cnn"]
    assert main([*stats, "--out", str(tmp_path / "r" / "ref.safetensors")]) == 0
    assert not (tmp_path / "r" / "ref.safetensors.features").exists(), "working files are left"
    assert main([*stats, "--out", str(tmp_path / "r" / "ref.npz")]) == 2, "an npz for other tools keeps no features"
    assert main([*stats, "--features", "0", "--out", str(tmp_path / "r" / "ref.npz")]) == 0
    with np.load(tmp_path / "r" / "ref.npz") as file:
        assert {"mu", "sigma"} <= set(file.files) and file["mu"].dtype == np.float64
        assert str(file["prepared"]) == "center crop of 32 px (ADM's)"
    again = load_statistics(tmp_path / "r" / "ref.npz", make_extractor("fmnist-cnn"))
    assert again.count == 30 and again.described and again.prepared == "center crop of 32 px (ADM's)"
    line = ["eval", str(tmp_path), "--reference", str(tmp_path / "r" / "ref.safetensors"), "--bootstrap", "5"]
    line += ["--classifier", "fmnist-classifier", "--extractor", "fmnist-cnn"]
    out = tmp_path / "e"
    assert main([*line, "--nearest", str(tmp_path), "--out", str(out)]) == 0
    found = read_json(out / "result.json")
    assert found["protocol"]["name"] == "fmnist-cnn" and found["metrics"]["precision (fmnist-cnn)"] > 0.5
    assert set(found["deviations"]) >= {"Fréchet distance (fmnist-cnn)", "class accuracy (fmnist-classifier)"}
    assert "the kernel distance is over subsets of 20 images, not 1000" in found["note"]
    assert found["by_class"]["images"] == {"0": 10, "1": 10, "2": 10} and found["nearest"]["count"] == 30
    assert found["nearest"]["rows"][0]["distance"] < 1e-3, "every image is its own copy there"
    assert not (out / "features").exists() and (out / "report.html").is_file()
    capsys.readouterr()
    for arguments, words in (
        (["--protocol", "adm", "--extractor", "fmnist-cnn"], "leave one of the two"),
        (["--labels", "sorted"], "for models"),
        (["--quantization", "floor"], "for models"),
        (["--lpips-weights", "x"], "--reconstruction"),
        (["--bootstrap", "-1"], "at least 0"),
    ):
        assert main([*line, *arguments, "--out", str(tmp_path / "f")]) == 2, arguments
        assert words in capsys.readouterr().err
    assert main(["stats", str(tmp_path), "--out", str(tmp_path / "x.pt")]) == 2
    assert main(["eval", "--out", str(tmp_path / "g")]) == 2 and "nothing to measure" in capsys.readouterr().err


def test_a_folder_of_another_kind_says_so(tmp_path: Path) -> None:
    with pytest.raises(MgenError, match="no images"):
        from_folder(tmp_path)


def measure_slowly(folder: Path, rank: int, world: int) -> None:
    """What a process does, with a pause in every reading."""
    tqdm.set_lock(threading.RLock())  # its own is shared with the parent, and whoever is killed would keep it
    images = pictures(2600)

    def read(start: int, stop: int) -> Batch:
        time.sleep(0.02)
        return Batch(images=images[start:stop], labels=torch.arange(start, stop))

    source = Source(count=2600, about={"kind": "data"}, read=read, ahead=False)
    try:
        measure(source, Plain(), folder=folder, batch_size=100, progress=False, workers=Workers(rank=rank, world=world))
    except MgenError:
        os._exit(0)  # it looks for the other's shards, which may not be there yet


@pytest.mark.parametrize("world", [1, 2])
def test_a_killed_measurement_goes_on_to_the_same_features(tmp_path: Path, world: int) -> None:
    import multiprocessing
    import random

    whole = measure(source_of(pictures(2600)), Plain(), batch_size=100, progress=False)
    draw, fork, killed = random.Random(world), multiprocessing.get_context("fork"), 0
    for _ in range(10):
        children = [fork.Process(target=measure_slowly, args=(tmp_path, rank, world)) for rank in range(world)]
        for child in children:
            child.start()
        time.sleep(draw.uniform(0.02, 0.25))
        for child in children:
            child.kill()
            child.join()
            killed += child.exitcode == -9
    assert killed >= 5
    for rank in range(world):
        child = fork.Process(target=measure_slowly, args=(tmp_path, rank, world))
        child.start()
        child.join(120)
        assert child.exitcode == 0
    found = Measured(tmp_path, 2600)
    assert torch.equal(found.rows("features"), whole.rows("features")) and torch.equal(
        found.rows("labels"), torch.arange(2600)
    )


RECIPE = """
sampler: {steps: 2, order: confidence, schedule: cosine, guidance: 1.0, temperature: 1.0}
folder: MODEL
evaluation:
  protocol: fmnist-cnn
  reference: fmnist-train
  count: 12
  labels: sorted
  seed: 3
  published: {Fréchet distance (fmnist-cnn): 1.0, class accuracy (fmnist-classifier): 0.5, recall (fmnist-cnn): 0.9}
  tolerance: {Fréchet distance (fmnist-cnn): 0.1, class accuracy (fmnist-classifier): 0.5, recall (fmnist-cnn): 1.0}
"""


def test_a_recipe_is_measured_beside_its_published_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE.replace("MODEL", "fmnist-maskgit"))
    line = ["eval", "--recipe", str(file), "--bootstrap", "0", "--out"]
    assert main([*line, str(tmp_path / "a")]) == 0
    found, said = read_json(tmp_path / "a" / "result.json"), capsys.readouterr().out
    images = found["images"]
    assert (images["labels"], images["seed"], images["sampler"]["steps"], found["count"]) == ("sorted", 3, 2, 12)
    verdicts = {row["metric"].split()[0]: row["verdict"] for row in found["published"]["rows"]}
    assert "OUTSIDE" in verdicts["Fréchet"] and "within" in verdicts["class"] and "within" in verdicts["recall"]
    assert "OUTSIDE" in said and found["protocol"]["name"] == "fmnist-cnn"
    assert main([*line, str(tmp_path / "a2"), "--reference", "fmnist-test"]) == 0
    rows = read_json(tmp_path / "a2" / "result.json")["published"]["rows"]
    assert all(row["verdict"] == "not comparable, --reference given" for row in rows)
    assert main([*line, str(tmp_path / "b"), "--num-images", "6"]) == 0
    rows = read_json(tmp_path / "b" / "result.json")["published"]["rows"]
    assert all(row["verdict"] == "not comparable, 6 images instead of 12" for row in rows)
    assert main([*line, str(tmp_path / "c"), "fmnist-maskgit", "--protocol", "fmnist-cnn", "--num-images", "6"]) == 0
    sampled = read_json(tmp_path / "c" / "result.json")
    assert "published" not in sampled and sampled["images"]["labels"] == "balanced", (
        "then it is a recipe of the sampler alone"
    )
    capsys.readouterr()
    file.write_text(RECIPE.replace("MODEL", "models/nowhere"))
    assert main([*line, str(tmp_path / "d")]) == 2 and "mgen zoo" in capsys.readouterr().err
    file.write_text(RECIPE.replace("MODEL", "fmnist-maskgit").replace("reference: fmnist-train", "reference: gone.npz"))
    assert main([*line, str(tmp_path / "d")]) == 2 and "gone.npz was not found" in capsys.readouterr().err


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    """A real launch: 1,100 images are three shards, for two processes."""
    import subprocess
    import sys

    np.savez(tmp_path / "x.npz", arr_0=pictures(1100).permute(0, 2, 3, 1).numpy(), arr_1=np.arange(1100) % 10)
    line = ["-m", "mgen", "eval", str(tmp_path / "x.npz"), "--bootstrap", "3"]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    assert main([*line[2:], "--out", str(tmp_path / "one")]) == 0
    run = subprocess.run(
        [sys.executable, *launch, *line, "--out", str(tmp_path / "two")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    one, two = (read_json(tmp_path / name / "result.json") for name in ("one", "two"))
    assert one["metrics"] == two["metrics"] and one["deviations"] == two["deviations"]


def test_nothing_of_the_user_is_deleted_or_taken_for_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders that happen to have the names of working folders."""
    from PIL import Image

    for name in ("exp/reference", "exp/features", "samples"):
        (tmp_path / name).mkdir(parents=True)
        for i, image in enumerate(pictures(6)):
            Image.fromarray(image[0].numpy()).save(tmp_path / name / f"{i:06d}_class-0001.png")
    exp, line = tmp_path / "exp", ["eval", str(tmp_path / "samples"), "--bootstrap", "0"]
    for arguments in (["--reference", str(exp / "reference")], []):
        assert main([*line, *arguments, "--out", str(exp)]) == 2
        assert "choose another --out" in capsys.readouterr().err
    assert len(list((exp / "reference").glob("*.png"))) == len(list((exp / "features").glob("*.png"))) == 6
    orphan = shard_file(tmp_path / "o" / "features", 0)
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"of another run")
    assert main([*line, "--out", str(tmp_path / "o")]) == 0, "shards that do not say what they are of are not taken"


def test_features_of_other_weights_or_counts_are_not_taken(tmp_path: Path) -> None:
    from mgen.data import FashionMNIST
    from mgen.evaluation.reconstruction import reconstructions
    from tests.helpers import tiny_tokenizer, write_idx

    images = pictures(700)
    source, folder = source_of(images), tmp_path / "f"
    source.count = 600
    begin(folder, source, Plain(), "p")
    few = measure(source, Plain(), folder=folder, progress=False).mapped("features").clone()
    source.count = 700
    begin(folder, source, Plain(), "p")
    many = measure(source, Plain(), folder=folder, progress=False).mapped("features")
    assert many.shape == (700, 12) and torch.equal(many[:600], few)
    data = FashionMNIST(root=write_idx(tmp_path / "idx", count=24))
    keys = [reconstructions(data, tiny_tokenizer(), name="d", rows=range(n)).key for n in (4, 5)]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    "arguments", [["--steps", "3"], ["--set", "nonsense=1"], ["--dtype", "bf16"], ["--labels", "sorted"]]
)
def test_options_of_sampling_are_an_error_where_nothing_is_sampled(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", arr_0=pictures(4).permute(0, 2, 3, 1).numpy())
    for more in ([], ["--reconstruction", "fmnist-maskgit"]):
        assert main(["eval", str(tmp_path / "x.npz"), *arguments, *more, "--out", str(tmp_path / "e")]) == 2
        assert f"{arguments[0]}: for models" in capsys.readouterr().err
