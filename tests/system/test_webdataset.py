"""Images from tar shards: what is in them, whatever they hold, and in what order a training reads them."""

import io
import os
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mgen.cli import main
from mgen.data import ImageData, ImageFolder, TarImages, TokenCache, tar_indexes, tar_stream, write_cache
from mgen.data.images import open_images
from mgen.data.order import ShardOrder, Window
from mgen.data.read_ahead import ReadAhead
from mgen.data.tar_index import Forward, index_file, index_tar
from mgen.data.tar_stream import TarStream
from mgen.training.config import DataConfig, train_config
from mgen.training.data import BatchOrder, batches, make_dataset
from mgen.training.loop import train
from mgen.utils.errors import MgenError
from mgen.utils.tar_paths import expand_braces, find_tars, names_tars, set_name
from tests.helpers import TOKENIZER, tiny_tokenizer
from tests.system.test_training import losses

Members = list[tuple[str, bytes]]


def picture(number: int) -> bytes:
    """A PNG of 16 px, whose gray level is its number."""
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16), number, np.uint8)).save(file, format="PNG")
    return file.getvalue()


def write_tar(path: Path, members: Members, kind: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))


def samples(numbers: range) -> Members:
    return [
        m for n in numbers for m in ((f"./all/{n:03d}.png", picture(n)), (f"./all/{n:03d}.cls", str(n % 3).encode()))
    ]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three shards of 9, 10 and 4 images, in different formats of tar, with numbers as levels of gray."""
    formats = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
    for i, (numbers, kind) in enumerate(zip((range(9), range(9, 19), range(19, 23)), formats)):
        write_tar(tmp_path / f"s-{i:03d}.tar", samples(numbers), kind)
    return tmp_path


def levels(data: ImageData, rows: Any) -> list[int]:
    return (data.__getitems__(rows)["image"].amax((1, 2, 3)) * 127.5 + 127.5).round().int().tolist()


def opened(folder: Path, name: str = "s-{000..002}.tar", **settings: Any) -> TarImages:
    return TarImages(f"{folder}/{name}", image_size=16, channels=1, **settings)


def test_images_at_random_with_their_labels(tars: Path) -> None:
    data = opened(tars)
    assert len(data) == 23 and data.num_classes == 3 and data.class_names == ("0", "1", "2")
    rows = [22, 0, 9, 8, 18, 19, 9]
    assert levels(data, rows) == rows and data.__getitems__(rows)["label"].tolist() == [row % 3 for row in rows]
    assert sorted(p.name for p in tars.glob("*.index")) == [f"s-00{i}.tar.index" for i in range(3)]
    times = [p.stat().st_mtime_ns for p in tars.glob("*.index")]
    for name in ("", "s-*.tar", "s-{000,001}.tar::" + f"{tars}/s-002.tar"):  # a folder, wildcards, a list
        assert opened(tars, name).record.digest == data.record.digest
    assert times == [p.stat().st_mtime_ns for p in tars.glob("*.index")]
    write_tar(tars / "s-001.tar", samples(range(30, 33)))  # another one: a new index
    assert levels(opened(tars), range(9, 12)) == [30, 31, 32]
    (tars / "classnames.txt").write_text("ant\nbee\ncat\n")
    assert opened(tars).class_names == ("ant", "bee", "cat")
    assert opened(tars, classes="none").class_names == ("images",)
    index = opened(tars, index=tars / "own")
    assert len(list((tars / "own").iterdir())) == 3 and len(index) == 16


def test_the_library_webdataset_reads_the_same(tars: Path) -> None:
    import webdataset

    theirs = webdataset.WebDataset(f"{tars}/s-{{000..002}}.tar", shardshuffle=False).decode("l8").to_tuple("png", "cls")
    assert [(int(image.max()), label) for image, label in theirs] == [(i, i % 3) for i in range(23)]


def test_labels_in_json(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [("a.jpg", picture(1)), ("a.json", b'{"label": 4}'), ("b.webp", picture(2)), ("b.json", b'{"cls": 2}')],
    )
    data = opened(tmp_path, "a.tar")
    assert (
        data.labels.tolist() == [4, 2]
        and data.num_classes == 5
        and opened(tmp_path, "a.tar", num_classes=9).num_classes == 9
    )


def link(name: str, kind: bytes, target: str, size: int = 0) -> Callable[[Path], None]:
    def add(path: Path) -> None:
        with tarfile.open(path, "a") as tar:
            about = tarfile.TarInfo(name)
            about.type, about.linkname, about.size = kind, target, size
            tar.addfile(about)

    return add


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-11500])


def patch(place: int, data: bytes) -> Callable[[Path], None]:
    """Overwrite bytes of a header; its checksum is mended."""

    def change(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        start = place // 512 * 512
        raw[place : place + len(data)] = data
        raw[start + 148 : start + 156] = b" " * 8
        raw[start + 148 : start + 156] = b"%06o\0 " % sum(raw[start : start + 512])
        path.write_bytes(raw)

    return change


def more(*members: tuple[str, bytes]) -> Callable[[Path], None]:
    def add(path: Path) -> None:
        with tarfile.open(path, "a") as tar:
            for name, data in members:
                about = tarfile.TarInfo(name)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))

    return add


def no_header(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[4096 + 10 : 4096 + 200] = b"x" * 190
    path.write_bytes(raw)


# What is done to a shard of 9 images, words of the error, and how many images are left with on_error=skip.
DAMAGES: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "cut off": (cut_off, "damaged or cut off", 4),
    "header overwritten": (no_header, "damaged or cut off", 2),
    "a size beyond the end": (patch(512 * 4 + 124, b"77777777777\0"), "more than are left", 1),
    "a negative size": (patch(512 * 4 + 124, b"\xff" * 12), "negative|damaged", 1),
    "an image without label": (more(("z.png", picture(3))), "'z' has no label", 9),
    "a label that is none": (more(("z.png", picture(3)), ("z.cls", b"dog")), "label 'dog': expected a number", 9),
    "a negative label": (more(("z.png", picture(3)), ("z.cls", b"-1")), "label '-1'", 9),
    "a label too large": (more(("z.png", picture(3)), ("z.cls", b"99999999")), "label 99999999, allowed is 0 …", 9),
    "a json that is none": (more(("z.png", picture(3)), ("z.json", b"{")), "json that can't be read", 9),
    "a label without image": (more(("z.cls", b"1")), "'z' has no image", 9),
    "two images of a name": (more(("z.png", picture(3)), ("z.png", picture(4)), ("z.cls", b"1")), "two members", 10),
    "an empty image": (more(("z.png", b""), ("z.cls", b"1")), "has 0 bytes", 9),
    "a link out": (link("z.png", tarfile.SYMTYPE, "/etc/passwd"), "is a link", 9),
    "a hard link": (link("z.png", tarfile.LNKTYPE, "./all/000.png"), "is a link", 9),
    "a device": (link("z.png", tarfile.CHRTYPE, ""), "no regular file", 9),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_and_hostile_tars(name: str, tars: Path, recwarn: pytest.WarningsRecorder) -> None:
    change, words, left = DAMAGES[name]
    change(tars / "s-000.tar")
    before = sorted(tars.iterdir())
    with pytest.raises(MgenError, match=words):
        opened(tars, "s-000.tar")
    assert sorted(tars.iterdir()) == sorted([*before, tars / "s-000.tar.index"])  # nothing is ever extracted
    data = opened(tars, "s-000.tar", on_error="skip")
    assert len(data) == left and "left out" in str(recwarn.pop().message)
    assert levels(data, range(min(left, 9))) == list(range(min(left, 9)))


def test_names_of_members_are_keys_alone(tmp_path: Path) -> None:
    """Absolute paths, those that lead out of the folder, and characters that a terminal obeys."""
    names = ("/tmp/x", "../../y", "z\n\x1b[31m")
    write_tar(tmp_path / "a.tar", [m for n in names for m in ((f"{n}.png", picture(5)), (f"{n}.cls", b"0"))])
    before = sorted(tmp_path.iterdir())
    data = opened(tmp_path, "a.tar")
    assert levels(data, range(3)) == [5, 5, 5] and sorted(tmp_path.iterdir()) == [*before, tmp_path / "a.tar.index"]


def test_headers_that_ask_for_memory_or_recursion(tmp_path: Path) -> None:
    """A long name of 8 GB, and thousands of extended headers behind each other."""
    for kind, size, count in ((b"L", b"77777777777\0", 1), (b"x", b"00000000000\0", 5000)):
        header = bytearray(tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT))
        header[156:157], header[124:136], header[148:156] = kind, size, b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        write_tar(tmp_path / "a.tar", samples(range(2)))
        raw = (tmp_path / "a.tar").read_bytes()
        (tmp_path / "b.tar").write_bytes(raw[:4096] + bytes(header) * count + bytes(1024))
        assert len(opened(tmp_path, "b.tar", on_error="skip")) == 2
        with pytest.raises(MgenError, match="damaged"):
            opened(tmp_path, "b.tar")


def test_images_that_can_not_be_read(tars: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_tar(
        tars / "s-002.tar", [*samples(range(19, 21)), ("x.png", b"no image"), ("x.cls", b"1"), *samples(range(22, 23))]
    )
    with pytest.raises(MgenError, match=r"cannot read image s-002\.tar, image 2 at byte"):
        opened(tars).__getitems__([21])
    data = opened(tars, on_error="skip")
    assert len(data) == 23 and levels(data, [20, 21, 22]) == [20, 22, 22]
    assert data.__getitems__([21])["label"].tolist() == [22 % 3] and "the next one takes the place" in str(
        recwarn.pop().message
    )


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("pipe:cat a::b.tar", r"needs data\.index"),
        ("nowhere.tar", "no such tar"),
        ("https://x.org/a.tar", "pipe:curl -sf"),
        ("x-{0..9999999}.tar", "more than 1000000"),
        ("*.none.tar", "no file fits"),
        ("pipe:", "has no command"),
        ("pipe:cat x.tar", r"needs data\.index"),
        ("s-000.tar::s-000.tar", "twice"),
        ("s-000.tar::pipe:cat", "files and commands"),
        ("text.tar", "is no tar that can be read"),
        ("empty.tar", "no images in"),
        ("packed.tar.gz", "compressed ones must be unpacked"),
    ],
)
def test_names_of_shards(path: str, words: str, tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tars)
    (tars / "text.tar").write_text("no tar at all " * 100)
    write_tar(tars / "empty.tar", [])
    with tarfile.open(tars / "packed.tar.gz", "w:gz"):
        pass
    with pytest.raises(MgenError, match=words):
        TarImages(path, image_size=16, channels=1)
    assert expand_braces("a-{08..11}-{x,y}{z}") == [f"a-{i}-{w}{{z}}" for i in ("08", "09", "10", "11") for w in "xy"]


# -- trainings -------------------------------------------------------------------------------------------------------------


def settings_of(kind: str, tars: Path) -> dict[str, Any]:
    """Settings of the data, of 23 images that can be told by their level of gray, or by their class."""
    own: dict[str, Any] = {"image_size": 16, "channels": 1, "kind": "webdataset", "path": f"{tars}/s-{{000..002}}.tar"}
    if kind in ("folder", "cache"):
        for number in range(23):
            (tars / "images" / f"{number:02d}").mkdir(parents=True)
            (tars / "images" / f"{number:02d}" / "x.png").write_bytes(picture(number))
        own |= {"kind": "folder", "path": str(tars / "images")}
    if kind == "cache":
        data = make_dataset(DataConfig(**own), split="train")
        assert isinstance(data, ImageFolder)
        own = {"kind": "cache", "path": str(tars / "cache"), "shuffle": "shards", "buffer": 12}
        write_cache(data, tiny_tokenizer(image_size=16), own["path"], shard_size=5, shuffle=True, progress=False)
    if kind in ("shards", "streams", "pipe"):
        own |= {"shuffle": "shards", "buffer": 12}
    if kind == "streams":
        own |= {"streams": 2}
    if kind == "pipe":
        own |= {"path": f"pipe:cat {tars}/s-{{000..002}}.tar", "index": str(tars / "index")}
    return own


def batches_of(
    data: dict[str, Any], *, start: int = 0, rank: int = 0, world: int = 1, workers: int = 0
) -> Iterator[list[int]]:
    """The numbers of the images of each batch of one process."""
    config = train_config(
        {
            "task": "tokenizer",
            "output": "x",
            "steps": 12,
            "batch_size": 8,
            "accumulate": 2,
            "model": {"class": "VQGAN", "image_size": 16},
            "data": data,
        }
    )
    images = make_dataset(config.data, split="train")
    assert images is not None
    order = BatchOrder(config, data=images, rank=rank, world=world, start=start)
    for batch in batches(images, order, workers):
        if data["kind"] == "webdataset":
            yield (batch["image"].amax((1, 2, 3)) * 127.5 + 127.5).round().int().tolist()
        else:
            yield batch["label"].tolist()


@pytest.mark.parametrize("kind", ["folder", "cache", "full", "shards", "streams", "pipe"])
def test_a_training_goes_on_in_the_middle_of_an_epoch(kind: str, tars: Path) -> None:
    """On one and two processes, with loader workers: the same images in every batch."""
    settings = settings_of(kind, tars)
    whole = list(batches_of(settings))
    assert len(whole) == 24 and (kind == "streams" or sorted(sum(whole, [])[:23]) == list(range(23)))
    assert list(batches_of(settings, start=4, workers=2)) == whole[8:]
    by_process = [list(batches_of(settings, start=4, rank=rank, world=2, workers=rank)) for rank in (0, 1)]
    # Two pieces of two images by process; pieces of a process follow each other in the batch.
    joined = [by_process[rank][2 * i + piece] for i in range(8) for rank in (0, 1) for piece in (0, 1)]
    assert sum(joined, []) == sum(whole[8:], [])


@pytest.mark.parametrize("kind", ["shards", "pipe"])
def test_losses_of_a_training_that_was_stopped(kind: str, tars: Path) -> None:
    """A tokenizer is trained on tars; stopped after a checkpoint in the middle of an epoch, it repeats the losses."""
    config = {
        "task": "tokenizer",
        "output": str(tars / "whole"),
        "steps": 4,
        "batch_size": 4,
        "model": {"class": "VQGAN", **TOKENIZER, "image_size": 16},
        "data": {**settings_of(kind, tars), "workers": 1},
        "log": {"every": 1, "checkpoint_every": 2, "tensorboard": False},
    }
    train(train_config(config))
    shutil.copytree(tars / "whole" / "checkpoint-0000002", tars / "cut" / "checkpoint-0000002")
    train(train_config({**config, "output": str(tars / "cut")}))
    whole, cut = losses(tars / "whole"), losses(tars / "cut")
    assert sorted(cut) == [3, 4] and all(cut[step] == whole[step] for step in cut)


def test_processes_read_their_streams_alone(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(TarImages, "read_ahead", lambda self, rows: read.extend(rows))
    settings = {
        "kind": "webdataset",
        "path": str(tars),
        "image_size": 16,
        "channels": 1,
        "shuffle": "shards",
        "buffer": 1000,
        "streams": 2,
    }
    parts = []
    for rank in (0, 1):
        read.clear()
        images = set(sum(list(batches_of(settings, rank=rank, world=2))[:5], []))
        parts.append(set(read[: 11 + rank]))  # those of the first epoch
        assert images <= parts[-1]
    assert not parts[0] & parts[1]


def test_a_command_that_fails_is_told(tars: Path) -> None:
    path, index = f"pipe:cat {tars}/s-000.tar; exit $(cat {tars}/status)", str(tars / "index")
    (tars / "status").write_text("3")
    with pytest.raises(MgenError, match="ended with status 3"):
        TarImages(path, image_size=16, channels=1, index=index)
    (tars / "status").write_text("0")
    data = TarImages(path, image_size=16, channels=1, index=index)
    assert levels(data, [8, 2, 2, 5]) == [8, 2, 2, 5]
    (tars / "s-000.tar").write_bytes((tars / "s-000.tar").read_bytes()[:3000])
    with pytest.raises(MgenError, match="ended with status 0 after 3000 bytes.*remove its index"):
        TarImages(path, image_size=16, channels=1, index=index).__getitems__([5])


def test_mgen_cache_takes_tars(tars: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tars)
    tiny_tokenizer(image_size=16).save_pretrained("tokenizer")
    options = ["--tokenizer", "tokenizer", "--shard-size", "10", "--device", "cpu"]
    assert main(["cache", "--data", "s-{000..002}.tar", "--out", "cache", *options]) == 0
    cache = TokenCache("cache", full=True)
    assert cache.labels.tolist() == [i % 3 for i in range(23)] and cache.record is not None and cache.record.name == "s"
    piped = ["cache", "--data", "pipe:cat s-{000..002}.tar", "--index", "index", "--out", "piped", *options]
    assert main([*piped, "--workers", "1"]) == 0
    assert torch.equal(cache.__getitems__(range(23))["tokens"], TokenCache("piped").__getitems__(range(23))["tokens"])
    os.utime("s-001.tar", (1, 1))
    capsys.readouterr()
    assert main(["cache", "--data", "s-{000..002}.tar", "--out", "cache", *options]) == 2
    assert "images have changed" in capsys.readouterr().err
    assert main([*piped[:-1], "cpu", "--shuffle", "--overwrite"]) == 2
    assert "streams" in capsys.readouterr().err
    shuffled = write_cache(opened(tars), tiny_tokenizer(image_size=16), tars / "shuffled", shuffle=True, progress=False)
    assert sorted(TokenCache(shuffled).labels.tolist()) == sorted(cache.labels.tolist())


# -- commands --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cut off", "header overwritten", "a size beyond the end", "a link out"])
def test_streams_tell_of_damages_as_files_do(name: str, tars: Path) -> None:
    path = tars / "s-000.tar"
    DAMAGES[name][0](path)
    file, stream = index_file(path), index_tar(Forward(io.BytesIO(path.read_bytes())), "stream", None)
    assert stream.about.problems and file.about.problems and stream.about.unlabeled == file.about.unlabeled
    assert torch.equal(stream.offsets, file.offsets) and torch.equal(stream.labels, file.labels)


@pytest.mark.parametrize("end", [4096 + 100, 4096, 3072 + 10])  # within a header, behind a block, within an image
def test_a_stream_that_is_cut_off(end: int, tars: Path) -> None:
    data = (tars / "s-000.tar").read_bytes()[:end]
    index = index_tar(Forward(io.BytesIO(data)), "stream", None)
    assert index.about.problems == (end != 4096) and bool((index.offsets + index.sizes <= end).all())


def test_a_forked_process_leaves_the_stream_of_its_parent(tars: Path) -> None:
    data = TarImages(f"pipe:cat {tars}/s-000.tar", image_size=16, channels=1, index=str(tars / "index"))
    assert data.items([0]) == [(0, picture(0))] and data._stream is not None
    process, status = data._stream.process, 1
    if not (child := os.fork()):
        try:
            status = data.items([3, 0]) != [(3, picture(3)), (0, picture(0))]
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert data.items([3, 4]) == [(3, picture(3)), (4, picture(4))] and data._stream.process is process


def test_a_command_runs_once_where_every_window_holds_the_same_images(tars: Path) -> None:
    path = f"pipe:echo >> {tars}/runs; cat {tars}/s-000.tar"
    images = sum(batches_of({**settings_of("pipe", tars), "path": path, "buffer": 1000}), [])
    assert len(images) == 96 and all(sorted(images[i : i + 9]) == list(range(9)) for i in range(0, 90, 9))
    assert (tars / "runs").read_text() == "\n\n"  # the first is for the index


def test_what_is_read_ahead_ends_with_the_training(tars: Path) -> None:
    path = f"pipe:test -e {tars}/slow && sleep 77; cat {tars}/s-000.tar"
    data = TarImages(path, image_size=16, channels=1, index=str(tars / "index"))
    (tars / "slow").touch()
    ahead = ReadAhead(data, ShardOrder(data.shard_rows, batch_size=1, seed=0, buffer=9))
    reading = ahead._begin(Window(stream=0, epoch=0, number=0))
    while data._ahead is None:
        time.sleep(0.01)
    ahead.close()
    assert isinstance(reading.exception(5), MgenError)


def test_the_end_of_a_command(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it has started ends, also while another thread reads; one that goes on behind its output is waited for."""
    stream = TarStream("pipe:echo begun; sleep 77 | cat & sleep 77")
    assert stream.file.readline() == b"begun\n"
    reader = threading.Thread(target=stream.file.read, daemon=True)
    reader.start()
    stream.end()
    reader.join(5)
    assert not reader.is_alive()  # no process is left that holds the pipe
    stream.close()
    monkeypatch.setattr(tar_stream, "PATIENCE", 0.01)
    path = f"pipe:cat {tars}/s-000.tar; exec >&-; sleep 0.2"
    assert len(TarImages(path, image_size=16, channels=1, index=str(tars / "index"))) == 9
    monkeypatch.setattr(tar_indexes, "PATIENCE", 0.01)
    with pytest.raises(MgenError, match="goes on for more than 0.01 s"):
        TarImages(path, image_size=16, channels=1, index=str(tars / "other"))


def test_ctrl_c_while_a_command_is_indexed(tars: Path) -> None:
    start = time.monotonic()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        TarImages(f"pipe:head -c 3000 {tars}/s-000.tar; sleep 30", image_size=16, channels=1, index=str(tars / "index"))
    assert time.monotonic() - start < 10


def test_which_texts_name_tars(tars: Path) -> None:
    names = {"a.tar": True, "a-{0..1}.tar": True, "a.tar.gz": True, "a.tar::b": True, "my.targets": False, "x": False}
    assert {name: names_tars(name) for name in names} == names and names_tars(str(tars))
    images = tars / "photos.tar"  # a folder of classes
    (images / "cat").mkdir(parents=True)
    (images / "cat" / "a.PNG").write_bytes(picture(1))
    assert not names_tars(str(images))
    (images / "stray.tar").write_bytes(b"")
    with pytest.raises(MgenError, match=r"holds tars \('stray.tar'\) and folders of images \('cat'\)"):
        names_tars(str(images))


def test_commands_stay_as_they_are(tars: Path) -> None:
    commands = ["pipe:curl http://[fe80::1]/a.tar", "pipe:ls | awk '{print $1, $2}'"]
    assert find_tars("::".join(commands)) == commands
    assert find_tars("pipe:cat {a,b}-{0..1}") == [f"pipe:cat {word}-{i}" for word in "ab" for i in (0, 1)]


def test_passwords_in_commands_are_kept_back(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tars)
    for command in ("cat s-000.tar; : secret", "P=secret cat s-000.tar", "cat s-000.tar # x/secret"):
        data, source = open_images(f"pipe:{command}", tiny_tokenizer(image_size=16), image_size=16, index="index")
        assert "secret" not in source and source.startswith("pipe:") and source.endswith(") at 16 px")
        assert data.record.name == "s"
    assert set_name(["pipe:curl https://x.org/get -H 'Authorization: secret'"]) == "tars"


def test_settings_without_effect() -> None:
    with pytest.raises(MgenError, match="on_error=skip is for images in files"):
        DataConfig(kind="cache", on_error="skip")
    with pytest.raises(MgenError, match="num_classes is 3, but with classes=none"):
        DataConfig(kind="webdataset", classes="none", num_classes=3)
