"""Everything that is written has the permissions that the user's umask gives, as any program's files, and not those of temporary files."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import mgen
from mgen.cli import main
from mgen.utils.files import atomic_folder, atomic_path, write_json
from tests.system.boundaries.harness import Parts

DEVICE = ["--device", "cpu"]
MODEL = ["--model", "@pipeline", *DEVICE]
REFERENCES = ["--reference-search", "@statistics", "--reference-test", "@flat"]
IMAGES = ["--num-images", "2"]
COMMANDS = {
    "sample": ["sample", *MODEL, *IMAGES, "--out", "o", "--npz", "o/all.npz", "--animation", "reveal.gif"],
    "sample npz": ["sample", *MODEL, *IMAGES, "--out", "o", "--format", "npz"],
    "edit": [
        "edit",
        "@images/bag/0.png",
        *MODEL,
        "--box",
        "0,0,8,8",
        "--class",
        "1",
        "--num-images",
        "1",
        "--out",
        "o",
    ],
    "train": ["train", "--config", "@config", "output=o"],
    "cache": ["cache", "--data", "@images", "--tokenizer", "@pipeline", "--out", "o", *DEVICE],
    "eval": [
        "eval",
        "@pipeline",
        "--reference",
        "@statistics",
        "--protocol",
        "fmnist-cnn",
        "--num-images",
        "4",
        *DEVICE,
    ]
    + ["--out", "o", "--keep-features", "--save-statistics", "o/mine.safetensors"],
    "report": ["report", "@result", "--out", "o/all.html"],
    "stats": ["stats", "@images", "--protocol", "fmnist-cnn", "--out", "o/made.safetensors", *DEVICE],
    "stats npz": ["stats", "@images", "--protocol", "fmnist-cnn", "--out", "o/made.npz", *DEVICE],
    "tune": ["tune", *MODEL, "--trials", "2", "--num-images", "4", "--test-images", "4", *REFERENCES, "--out", "o"],
    "convert": ["convert", "pipeline", "@pipeline/transformer", "--tokenizer", "@pipeline/tokenizer", "--out", "o"],
    "bench": ["bench", *MODEL, "--repeats", "1", "--json", "o/bench.json"],
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(params=[0o022, 0o027], ids=["022", "027"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def check_modes(folder: Path, umask: int) -> None:
    """Every file and folder in `folder`, which isn't empty."""
    there = [folder, *folder.rglob("*")]
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in there if not path.is_symlink()}
    wrong = {str(p): oct(m) for p, m in modes.items() if m != (0o777 if p.is_dir() else 0o666) & ~umask}
    assert len(there) > 1 and not wrong, wrong


@pytest.mark.parametrize("name", COMMANDS)
def test_files_of_commands(
    name: str, umask: int, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([parts.fill(word) for word in COMMANDS[name]]) == 0
    check_modes(tmp_path / "o", umask)


def test_files_of_the_library(umask: int, parts: Parts, tmp_path: Path) -> None:
    pipe = mgen.load(parts.fill("@pipeline"))
    pipe.save_pretrained(tmp_path / "o" / "pipe")
    pipe.transformer.save_pretrained(tmp_path / "o" / "net")
    pipe.tokenizer.save_pretrained(tmp_path / "o" / "tokenizer", max_shard_size="1KB")
    pipe.sampler.save_pretrained(tmp_path / "o" / "sampler")
    write_json(tmp_path / "o" / "deep" / "er" / "file.json", {})
    with atomic_folder(tmp_path / "o" / "folder") as folder:
        (folder / "below").mkdir(mode=0o700)
        (folder / "below" / "file").touch(mode=0o600)
    with atomic_path(tmp_path / "o" / "file") as file:
        file.touch(mode=0o600)
    check_modes(tmp_path / "o", umask)


def test_an_existing_folder_keeps_its_permissions(parts: Parts, tmp_path: Path) -> None:
    """Only what is new gets the usual ones."""
    (tmp_path / "mine").mkdir(mode=0o700)
    mgen.load(parts.fill("@pipeline")).save_pretrained(tmp_path / "mine")
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o700
