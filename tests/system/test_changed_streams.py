"""Tars that commands write: one that has changed since its index was made, one that does not end, and what streams can't do."""

from pathlib import Path
from typing import Any

import pytest

from mgen.cli import main
from mgen.data import TarImages
from mgen.training.config import DataConfig
from mgen.utils.errors import MgenError
from tests.helpers import tiny_tokenizer
from tests.system.test_webdataset import Members, batches_of, levels, no_header, picture, samples, write_tar


def labels_in_front(numbers: range) -> Members:
    return [m for n in numbers for m in ((f"{n:03d}.cls", str(n % 3).encode()), (f"{n:03d}.png", picture(n)))]


def piped(folder: Path, **settings: Any) -> TarImages:
    path, index = f"pipe:cat {folder}/a.tar", str(folder / "index")
    return TarImages(path, image_size=16, channels=1, index=index, **settings)


def with_label(members: Members, key: str, label: bytes) -> Members:
    return [(name, label if name == f"{key}.cls" else data) for name, data in members]


PLAIN, FRONT = samples(range(6)), labels_in_front(range(6))
CHANGES: dict[str, tuple[Members, Members, str]] = {
    "a label behind its image": (
        PLAIN,
        with_label(PLAIN, "./all/002", b"9"),
        "'./all/002' has label 9, in the index 2",
    ),
    "a label in front": (FRONT, with_label(FRONT, "002", b"0"), "'002' has label 0, in the index 2"),
    "the last label": (PLAIN, with_label(PLAIN, "./all/005", b"0"), "'./all/005' has label 0, in the index 2"),
    "the first label": (PLAIN, with_label(PLAIN, "./all/000", b"1"), "'./all/000' has label 1, in the index 0"),
    "a label that is none": (PLAIN, with_label(PLAIN, "./all/002", b"cat"), "has lost its label|label none"),
    "no label": (PLAIN, [m for m in PLAIN if m[0] != "./all/002.cls"], "label none, in the index 2"),
    "no last label": (PLAIN, PLAIN[:-1], "'./all/005' has lost its label|ended with status 0"),
    "another order": (PLAIN, PLAIN[2:] + PLAIN[:2], "image 0 is './all/001', in the index './all/000'"),
    "another size": (PLAIN, [(n, d + b"x" * (n == "./all/003.png")) for n, d in PLAIN], "'./all/003' has .* bytes at"),
    "an image fewer": (PLAIN, PLAIN[:-2], "ends before the last image of the index"),
    "an image more": (PLAIN, [*PLAIN, *samples(range(7, 8))], "'./all/007' has come behind the 6 images"),
    "something larger in between": (
        PLAIN,
        [*PLAIN[:4], ("__about__.txt", bytes(5000)), *PLAIN[4:]],
        "bytes at .* in the index",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_stream_that_has_changed(tmp_path: Path, name: str) -> None:
    before, after, words = CHANGES[name]
    write_tar(tmp_path / "a.tar", before)
    assert levels(piped(tmp_path), range(6)) == list(range(6))
    write_tar(tmp_path / "a.tar", after)
    (index,) = (tmp_path / "index").iterdir()
    for read in (lambda data: data.__getitems__(range(6)), lambda data: data.read_ahead(range(6))):
        with pytest.raises(MgenError, match=f"({words}).*{index}"):
            read(piped(tmp_path))
    index.unlink()
    if "label" not in name or "no" not in name:
        assert len(piped(tmp_path)) == sum(n.endswith("png") for n, _ in after)


def test_other_pixels_of_the_same_size_are_read_as_they_are(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", PLAIN)
    piped(tmp_path)
    write_tar(
        tmp_path / "a.tar",
        [("./all/003.png", picture(77)) if name == "./all/003.png" else (name, data) for name, data in PLAIN],
    )
    assert levels(piped(tmp_path), range(6)) == [0, 1, 2, 77, 4, 5]


@pytest.mark.filterwarnings("ignore:.*left out")
def test_samples_that_were_left_out_are_passed(tmp_path: Path) -> None:
    """Images without label, a label without image, and what is behind a damaged header."""
    write_tar(tmp_path / "a.tar", [*PLAIN[:2], ("x.png", picture(9)), ("y.cls", b"1"), *PLAIN[2:]])
    for _ in range(2):
        data = piped(tmp_path, on_error="skip")
        assert levels(data, [4, 0, 5, 1]) == [4, 0, 5, 1] and data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    (next((tmp_path / "index").iterdir())).unlink()
    write_tar(tmp_path / "a.tar", PLAIN)
    no_header(tmp_path / "a.tar")
    data = piped(tmp_path, on_error="skip")
    assert levels(data, range(2)) == [0, 1] == data.labels.tolist()


def test_a_training_is_told(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", PLAIN)
    data = {
        "kind": "webdataset",
        "path": f"pipe:cat {tmp_path}/a.tar",
        "index": str(tmp_path / "index"),
        "image_size": 16,
    }
    data |= {"channels": 1, "shuffle": "shards", "buffer": 12}
    assert len(list(batches_of(data, workers=1))) == 24
    write_tar(tmp_path / "a.tar", with_label(PLAIN, "./all/002", b"1"))
    with pytest.raises(MgenError, match="has changed since its index was made"):
        list(batches_of(data, workers=1))


def test_a_command_that_does_not_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", PLAIN)
    index = str(tmp_path / "index")
    for command in ("cat /dev/zero", f"cat {tmp_path}/a.tar /dev/zero", f"cat {tmp_path}/a.tar; yes"):
        with pytest.raises(MgenError, match="more than 64 MiB behind the end of its tar"):
            TarImages(f"pipe:{command}", image_size=16, channels=1, index=index)
    assert not (tmp_path / "index").exists() or not list((tmp_path / "index").iterdir())
    padded = f"pipe:cat {tmp_path}/a.tar; head -c 30000000 /dev/zero"
    data = TarImages(padded, image_size=16, channels=1, index=index)
    assert levels(data, range(6)) == list(range(6))


def test_what_streams_can_not_do_is_said_before_a_command_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_tokenizer(image_size=16).save_pretrained(tmp_path / "tokenizer")
    write_tar(tmp_path / "a.tar", PLAIN)
    path, index = f"pipe:touch {tmp_path}/ran; cat {tmp_path}/a.tar", str(tmp_path / "index")
    argv = [
        "cache",
        "--data",
        path,
        "--index",
        index,
        "--tokenizer",
        str(tmp_path / "tokenizer"),
        "--out",
        str(tmp_path / "c"),
    ]
    assert main([*argv, "--shuffle", "--device", "cpu"]) == 2
    assert "--shuffle" in capsys.readouterr().err
    with pytest.raises(MgenError, match=r"read from front to back: set shuffle=shards"):
        DataConfig(kind="webdataset", path=path, index=index)
    assert not (tmp_path / "ran").exists()
    assert main([*argv, "--device", "cpu"]) == 0 and (tmp_path / "ran").exists()
