"""Runs of many images: killed at random, shared between processes, prolonged, in PNGs or shards, they end with the same images."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

import mgen
import mgen.pipelines.generation
from mgen.cli import main
from mgen.pipelines.generation import Run, check_complete, complete_run, export_npz, run_images
from mgen.pipelines.labels import LabelPlan
from mgen.pipelines.pixels import to_uint8
from mgen.pipelines.runs import begin_images
from mgen.pipelines.shards import ShardFolder, find_shards, shard_name
from mgen.utils.errors import MgenError
from tests.helpers import tiny_pipeline

FORK = multiprocessing.get_context("fork")


def files(folder: Path) -> dict[str, bytes]:
    """What a run left, by name, but for the description and the grid."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in ("run.json", "grid.png")}


def make_run(out: Path, *, count: int = 7, plan: str = "balanced", classes: Any = (0, 1, 2), **settings: Any) -> Run:
    return Run(out=out, labels=LabelPlan(plan, classes=classes, count=count, seed=4), **settings)


def begin(run: Run) -> None:
    begin_images(run, {"model": "tiny"})


# ---- killed at random


@pytest.fixture(scope="module")
def embedded() -> Any:
    torch.set_num_threads(1)
    pipe = mgen.load("fmnist-maskgit").optimize()
    pipe.sampler = pipe.sampler.override(steps=2)
    return pipe


KILLED: dict[str, dict[str, Any]] = {
    "png": dict(count=14, plan="balanced", classes=range(10)),
    "npz": dict(count=14, plan="sorted", classes=range(10), format="npz", shard_size=2),
}


@pytest.fixture(scope="module", params=list(KILLED))
def undisturbed(request: pytest.FixtureRequest, embedded: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Format, files, and how long they took."""
    embedded([0], progress=False)  # warm
    run = make_run(tmp_path_factory.mktemp("whole"), **KILLED[request.param])
    began = time.monotonic()
    assert complete_run(embedded, run, about={}, batch_size=2) == 14
    return request.param, files(run.out), time.monotonic() - began


def drawn(run: Run) -> int:
    """Images that are there."""
    pngs = run.out.glob("*class-*.png")
    return sum(name.name[0] != "." for name in pngs) + sum(len(shard) for shard in find_shards(run.out))


def start(pipe: Any, run: Run, world: int) -> list[Any]:
    """The processes of a run, forked: they import nothing anew."""
    barrier = FORK.Barrier(world)

    def child(rank: int) -> None:
        tqdm.set_lock(threading.RLock())  # its own is shared with the parent, and whoever is killed would keep it
        complete_run(pipe, run, about={}, batch_size=2, rank=rank, world=world, wait=lambda: barrier.wait(120))

    children = [FORK.Process(target=child, args=(rank,), daemon=True) for rank in range(world)]
    for process in children:
        process.start()
    return children


@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_ten_points_ends_with_the_images_of_an_undisturbed_run(
    undisturbed: Any, embedded: Any, world: int, tmp_path: Path
) -> None:
    kind, whole, seconds = undisturbed
    run, rng = make_run(tmp_path / "run", **KILLED[kind]), random.Random(f"{kind} {world}")
    # Ten points of the run, by the images that are there, and then some part of the time that one takes.
    points = sorted(rng.randrange(0, 11) for _ in range(10))
    interrupted = between = 0
    for point in points:
        children, deadline = start(embedded, run, world), time.monotonic() + 120
        while drawn(run) < point and any(child.is_alive() for child in children) and time.monotonic() < deadline:
            time.sleep(0.003)
        time.sleep(rng.uniform(0, 2) * seconds / 14)
        for child in children:
            child.kill()
        for child in children:
            child.join()
        interrupted += any(child.exitcode == -signal.SIGKILL for child in children)
        found = files(run.out) if run.out.exists() else {}
        assert {name: data for name, data in found.items() if name[0] != "."}.items() <= whole.items()
        between += 0 < drawn(run) < 14
    for child in (last := start(embedded, run, world)):
        child.join(120)
    assert [child.exitcode for child in last] == [0] * world
    assert files(run.out) == whole
    assert interrupted >= 4 and between >= 2, (interrupted, between)


@pytest.mark.parametrize("form", ["png", "npz"])
def test_batches_stay_the_same_whatever_is_there_and_whoever_draws(
    form: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    real = mgen.pipelines.generation.sample_images

    def noting(pipe: Any, run: Run, indices: Any) -> Any:
        asked.append(tuple(indices))
        return real(pipe, run, indices)

    monkeypatch.setattr(mgen.pipelines.generation, "sample_images", noting)
    run = make_run(tmp_path, count=10, format=form, shard_size=4)
    begin(run)
    assert run_images(tiny, run, batch_size=3) == 10
    whole, batches = files(tmp_path), list(asked)
    png = form == "png"
    assert [len(b) for b in batches] == ([3, 3, 3, 1] if png else [3, 1, 3, 1, 2])
    for lost in ((1, 4, 5), (9,), tuple(range(10))):
        asked.clear()
        for file in {run.file(*span) for span in run.spans if set(range(*span)) & set(lost)}:
            (tmp_path / file).unlink()
        counts = [run_images(tiny, run, batch_size=3, rank=rank, world=3) for rank in range(3)]
        again = set(asked)
        assert again <= set(batches) and {i for b in again for i in b} >= set(lost)
        assert not png or sum(counts) == len(lost)
        assert files(tmp_path) == whole
    with pytest.warns(UserWarning, match="3 shards for 4 processes") if not png else nullcontext():
        run_images(tiny, run, batch_size=3, world=4)


def test_leftovers_of_killed_processes_are_swept_up_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", count=4)
    begin(run)
    ours = [
        ".000001_class-0001.png.77.tmp.png",
        ".000003.png.77.tmp.png",
        ".images-000000-000999.npz.1.tmp.npz",
        ".grid.png.5.tmp.png",
    ]
    others = [".hidden.png", "notes.tmp", ".000001_class-0001.png", ".x.png.77.tmp.png"]
    for name in (*ours, *others, ".run.json.8.tmp.json"):
        (run.out / name).write_bytes(b"half")
    begin(run)
    assert sorted(p.name for p in run.out.iterdir()) == sorted([*others, "run.json"])


def test_command_killed_once_goes_on_with_two_processes(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    tiny_pipeline().save_pretrained(folder)
    args = [
        "sample",
        "--model",
        str(folder),
        "--num-images",
        "60",
        "--batch-size",
        "2",
        "--steps",
        "3",
        "--labels",
        "random",
    ]
    assert main([*args, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "cut"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "mgen", *args, "--out", str(out)], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 240
        while len(list(out.glob("*class-*.png"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
    there = len(list(out.glob("*class-*.png")))
    assert process.returncode == -signal.SIGKILL and 5 <= there < 60
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    done = subprocess.run(
        [*launch, "--main_process_port", "0", "-m", "mgen", *args, "--out", str(out), "--npz", str(tmp_path / "a.npz")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "60 images" in done.stdout and "none missing" in done.stdout
    assert files(out) == files(tmp_path / "whole") and len(files(out)) == 60
    with np.load(tmp_path / "a.npz") as file:
        names = sorted(files(out))
        assert np.array_equal(file["arr_0"][..., 1], np.stack([np.asarray(Image.open(out / n)) for n in names]))
        assert file["arr_1"].tolist() == [int(name[13:17]) for name in names]


# ---- formats


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tiny_pipeline(steps=3)


def test_shards_hold_the_images_of_pngs_and_one_npz_holds_them_too(tiny: Any, tmp_path: Path) -> None:
    png = make_run(tmp_path / "png", plan="random")
    npz = make_run(tmp_path / "npz", plan="random", format="npz", shard_size=3)
    begin(npz)
    assert [run_images(tiny, npz, batch_size=2, rank=rank, world=2) for rank in (1, 0)] == [3, 4]
    check_complete(npz)
    complete_run(tiny, png, about={}, batch_size=7)
    names = sorted(files(png.out))
    stored = np.stack([np.asarray(Image.open(png.out / name)) for name in names])
    assert sorted(files(npz.out)) == [
        "images-000000-000002.npz",
        "images-000003-000005.npz",
        "images-000006-000006.npz",
    ]
    folder = ShardFolder(npz.out)
    images, labels = folder.read(0, 7)
    assert images.shape == (7, 1, 32, 32) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert np.array_equal(images[:, 0].numpy(), stored) and torch.equal(labels, folder.labels())
    assert labels.tolist() == [int(name[13:17]) for name in names] == [npz.labels(i) for i in range(7)]
    for first, stop in ((0, 1), (2, 4), (3, 6), (5, 7), (6, 7)):
        part, ids = folder.read(first, stop)
        assert torch.equal(part, images[first:stop]) and torch.equal(ids, labels[first:stop])
    for run in (png, npz):
        export_npz(run, tmp_path / f"{run.format}.npz")
    assert (tmp_path / "png.npz").read_bytes() == (tmp_path / "npz.npz").read_bytes()
    with np.load(tmp_path / "png.npz") as file:
        assert file.files == ["arr_0", "arr_1"] and file["arr_0"].shape == (7, 32, 32, 3)
        assert np.array_equal(file["arr_0"], np.repeat(stored[..., None], 3, -1)) and np.array_equal(
            file["arr_1"], labels
        )
    with zipfile.ZipFile(tmp_path / "png.npz") as archive:
        assert archive.testzip() is None and all(info.compress_type == 0 for info in archive.infolist())


def test_image_size_and_quantization(tiny: Any, tmp_path: Path) -> None:
    classes, indices = [0, 1, 2], range(3)
    given: dict[str, Any] = dict(seed=4, indices=indices, progress=False)
    unit = tiny(classes, output_type="raw", **given).images
    cases: dict[str, dict[str, Any]] = {
        "size": dict(image_size=20),
        "both": dict(image_size=20, quantization="truncate"),
        "cut": dict(quantization="truncate"),
        "half up": dict(quantization="half-up"),
        "as drawn": {},
    }
    for name, settings in cases.items():
        run = make_run(tmp_path / name, count=3, format="npz", **settings)
        complete_run(tiny, run, about={}, batch_size=2)
        images = ShardFolder(run.out).read(0, 3)[0]
        assert torch.equal(
            images, to_uint8(unit, size=settings.get("image_size"), quantization=settings.get("quantization", "round"))
        ), name
        assert json.loads((run.out / "run.json").read_text()).keys() & {"image_size", "quantization"} == settings.keys()
    assert torch.equal(images, tiny(classes, output_type="uint8", **given).images)


# ---- prolonging, and what raises an error


@pytest.mark.parametrize("form", ["png", "npz"])
@pytest.mark.parametrize("plan", ["balanced", "random"])
def test_prolonged_run_is_the_long_one(form: str, plan: str, tiny: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(plan=plan, format=form, shard_size=4)
    for count in (3, 6, 9):
        complete_run(tiny, make_run(tmp_path / "a", count=count, **settings), about={}, batch_size=2)
        if count == 3 and form == "npz":  # killed after a longer last shard, before the shorter one was removed
            (tmp_path / "old").write_bytes((tmp_path / "a" / shard_name(0, 3)).read_bytes())
    if form == "npz":
        (tmp_path / "old").rename(tmp_path / "a" / shard_name(0, 3))
        assert len(ShardFolder(tmp_path / "a")) == 9
        begin_images(make_run(tmp_path / "a", count=9, **settings), {})
    complete_run(tiny, make_run(tmp_path / "b", count=9, **settings), about={}, batch_size=2)
    assert files(tmp_path / "a") == files(tmp_path / "b") and len(files(tmp_path / "b")) == (9 if form == "png" else 3)
    with pytest.raises(MgenError, match="--num-images 9 or more"):
        complete_run(tiny, make_run(tmp_path / "a", count=5, **settings), about={}, batch_size=2)
    assert json.loads((tmp_path / "a" / "run.json").read_text())["num_images"] == 9


@pytest.mark.parametrize("form", ["png", "npz"])
def test_progress_of_a_prolonged_run_ends_at_its_images(
    form: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []

    class Noted(tqdm):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            bars.append(self)

    monkeypatch.setattr(mgen.pipelines.generation, "tqdm", Noted)
    for count in (3, 6, 9):  # the last shard is begun again
        complete_run(tiny, make_run(tmp_path, count=count, format=form, shard_size=4), about={}, batch_size=2)
    assert [made.n for made in bars] == [3, 6, 9]


def test_sorted_run_is_not_prolonged(tmp_path: Path) -> None:
    begin(make_run(tmp_path, plan="sorted"))
    begin(make_run(tmp_path, plan="sorted"))
    with pytest.raises(MgenError, match="7 images in sorted classes, now 8"):
        begin(make_run(tmp_path, plan="sorted", count=8))
    with pytest.raises(MgenError, match="labels was 'sorted', now it is 'balanced'"):
        begin(make_run(tmp_path))


def test_runs_of_older_versions_go_on(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    begin(run)
    there = json.loads((tmp_path / "run.json").read_text())
    older = {key: value for key, value in there.items() if key not in ("labels", "format")}
    (tmp_path / "run.json").write_text(json.dumps(older))
    for other in (dict(format="npz"), dict(plan="random"), dict(image_size=8), dict(quantization="truncate")):
        with pytest.raises(MgenError, match="choose another --out"):
            begin(make_run(tmp_path, **other))
    begin(run)
    assert json.loads((tmp_path / "run.json").read_text()) == there


def test_foreign_images_are_noticed(tmp_path: Path) -> None:
    def fails(name: str, message: str, **settings: Any) -> None:
        run = make_run(tmp_path / name.split(".")[0], **settings)
        begin(run)
        description = (run.out / "run.json").read_bytes()
        (run.out / name).write_bytes(b"")
        with pytest.raises(MgenError, match=message):
            begin(run)
        assert (run.out / "run.json").read_bytes() == description

    fails("000003_class-0001.png", "it is 000003_class-0000.png")
    fails("000003.png", "it is 000003_class-0000.png")
    fails("000004_class-0001.png", "it is 000004.png", classes=[None])
    fails("000009_class-0000.png", "--num-images 10 or more")
    fails("images-000000-000002.npz", "no file of this run")
    fails("000002_class-0002.png", "no file of this run", format="npz")
    fails("images-000000-000004.npz", "shards are of 3", format="npz", shard_size=3)
    fails("images-000001-000002.npz", "shards are of 3", format="npz", shard_size=3)
    fails("images-000006-000008.npz", "--num-images 9 or more", format="npz", shard_size=3)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "000000_class-0000.png").write_bytes(b"")
    with pytest.raises(MgenError, match="no run.json"):
        begin(make_run(tmp_path / "bare"))
    assert not (tmp_path / "bare" / "run.json").exists()
    (tmp_path / "bare" / "run.json").write_text("[]")
    with pytest.raises(MgenError, match="does not describe a run"):
        begin(make_run(tmp_path / "bare"))


def test_missing_images_are_named_at_the_end(tiny: Any, tmp_path: Path) -> None:
    for form, lost in (("png", "000004_class-0001.png"), ("npz", "images-000003-000005.npz")):
        run = make_run(tmp_path / form, format=form, shard_size=3)
        complete_run(tiny, run, about={}, batch_size=7)
        (run.out / lost).unlink()
        with pytest.raises(MgenError, match=f"1 of . files are missing.*{lost}"):
            check_complete(run)
    complete_run(tiny, run, about={}, batch_size=7)
    check_complete(run)
    with np.load(run.out / lost) as file:
        np.savez(run.out / lost, arr_0=file["arr_0"], arr_1=file["arr_1"] + 1)
    with pytest.raises(MgenError, match="not those of this run"):
        check_complete(run)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("form", ["png", "npz"])
def test_full_disk_is_one_error_and_leaves_nothing_half_written(form: str, tiny: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no tmpfs here")
    try:
        run = make_run(disk / "run", count=40, format=form, shard_size=5)
        with pytest.raises(MgenError, match="cannot write .*No space left.*free space"):
            complete_run(tiny, run, about={}, batch_size=3)
        found = files(run.out)
        assert not [name for name in found if ".tmp" in name]
        if form == "npz":
            assert len(find_shards(run.out)) == len(found)
        else:
            assert found and all(Image.open(run.out / name).load() for name in found)
        whole = replace(run, out=tmp_path / "whole")
        complete_run(tiny, whole, about={}, batch_size=3)
        assert found.items() <= files(whole.out).items()
        with pytest.raises(MgenError, match="cannot write .*No space left"):
            export_npz(whole, disk / "all.npz")
        assert sorted(p.name for p in disk.iterdir()) == ["run"]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_bar_is_gone_before_an_export_fails(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, images: Any, **_: Any) -> None:
        next(iter(images))
        raise MgenError(f"cannot write {file} (No space left on device)")

    run = make_run(tmp_path / "run")
    complete_run(tiny, run, about={}, batch_size=3)
    monkeypatch.setattr(mgen.pipelines.generation, "write_npz", full)
    with pytest.raises(MgenError, match="No space left") as caught:
        export_npz(run, tmp_path / "all.npz")
    assert caught.tb is not None and not [bar for bar in tqdm._instances if bar.desc == "all.npz"]


def test_a_failed_write_is_one_error(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for form in ("png", "npz"):
        run = make_run(tmp_path / form, format=form)
        begin(run)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(MgenError, match="cannot write .*No space left on device"):
                complete_run(tiny, run, about={"model": "tiny"}, batch_size=3)
        assert sorted(p.name for p in run.out.iterdir()) == ["run.json"]
