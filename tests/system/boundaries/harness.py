"""What every row of the boundary tables is held to, and the tiny folders that the rows use or damage.

    TABLE = [row("steps 10**12", ["sample", "--model", "@pipeline", "--steps", "1000000000000"], "--steps", "at most")]

    @pytest.mark.parametrize(("argv", "words"), TABLE)
    def test_sizes(refused: Refused, argv: list[str], words: list[str]) -> None:
        refused(argv, *words)

A test runs in an empty folder of its own. In `argv`, `@pipeline`, `@images`, `@flat`, `@cache`, `@run`, `@statistics`, `@idx`,
`@config`, `@cached`, `@result` stand for shared folders and files (see `Parts`), which tests only read; `copied("run")` gives one
to damage, in the test's folder. For the Python API there is `raises(function, *words)`. See conftest.py for the fixtures.
"""

import logging
import os
import re
import resource
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import pytest
import yaml
from PIL import Image

from mgen.cli import main
from tests.helpers import tiny_config, tiny_pipeline, tiny_tokens, write_idx

MOST_MEMORY = 2**30  # bytes that refusing may add
MOST_SECONDS = 5.0  # of CPU time: a second beyond imports, and four for the imports
HANG_SECONDS = 30  # after which a row is stopped


class Refused(Protocol):
    def __call__(self, argv: Sequence[str], *words: str, seconds: float = MOST_SECONDS) -> str: ...


class Raises(Protocol):
    def __call__(self, function: Callable[[], object], *words: str, seconds: float = MOST_SECONDS) -> str: ...


Copied = Callable[[str], Path]


def row(name: str, argv: object, *words: str) -> Any:
    """A row of a table of (argv or callable, words); `name` is its id."""
    return pytest.param(argv, words, id=name)


# -- what is checked -------------------------------------------------------------------------------------------------------


def check_refused(
    argv: Sequence[str], words: Sequence[str], capture: pytest.CaptureFixture[str], seconds: float
) -> str:
    """Run `mgen argv`: exit status 2, one line "mgen: error: …" with all `words`, nothing new in the working folder. Returns the line."""
    capture.readouterr()
    with _bounded(seconds), _logs_captured():
        try:
            status: object = main(argv)
        except SystemExit as stop:  # argparse, on the top level
            status = stop.code
    out, err = capture.readouterr()
    said = f"status {status}, stderr: {err[-2000:]!r}, stdout: {out[-200:]!r}"
    assert status == 2, f"not refused: {said}"
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mgen: error: "), f"not one line of error: {said}"
    _check_text(lines[0], words)
    return lines[0]


def check_raises(function: Callable[[], object], words: Sequence[str], seconds: float) -> str:
    """Call `function`: MgenError, ValueError or TypeError whose one line of text has all `words`. Returns the text."""
    with _bounded(seconds), pytest.raises((ValueError, TypeError)) as caught:  # an MgenError is a ValueError
        function()
    assert "\n" not in str(caught.value).strip(), f"more than one line: {caught.value}"
    _check_text(str(caught.value), words)
    return str(caught.value)


@contextmanager
def _logs_captured() -> Iterator[None]:
    """Handlers of libraries' logs, which keep the stderr of the time when they were made, write to the one of this test."""
    handlers = [h for h in logging.getLogger("diffusers").handlers if isinstance(h, logging.StreamHandler)]
    usual = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, usual, strict=True):
            handler.setStream(stream or sys.__stderr__)


def _check_text(text: str, words: Sequence[str]) -> None:
    assert 12 < len(text) < 2000, f"{len(text)} characters: {text[:300]!r}"
    assert not re.search("Traceback|internal error|object has no attribute|not subscriptable", text), text
    assert text.isprintable(), f"characters that a terminal would obey or hide: {text!r}"
    for word in words:
        assert word.lower() in text.lower(), f"{word!r} is not in {text!r}"


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Fail if the body changes the working folder, adds 1 GB of memory, computes for longer than `seconds`, or hangs."""

    def hangs(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"still running after {HANG_SECONDS} s")

    before, resident, cpu = snapshot(Path.cwd()), _reset_peak(), time.process_time()
    usual = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    used, added = time.process_time() - cpu, _peak() - resident
    assert used < seconds, f"computed for {used:.1f} s"
    assert added < MOST_MEMORY, f"took {added / 2**20:.0f} MiB"
    after = snapshot(Path.cwd())
    changed = [str(p) for p in sorted(before.keys() | after.keys()) if before.get(p) != after.get(p)]
    assert not changed, f"left behind or changed: {changed[:8]}"


def snapshot(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Kind, size and time of change of everything below a folder, hidden files included; of folders their mode alone."""
    found: dict[Path, tuple[int, ...]] = {}
    for path in folder.rglob("*"):
        about = path.lstat()
        regular = stat.S_ISREG(about.st_mode)
        found[path] = (about.st_mode, about.st_size, about.st_mtime_ns) if regular else (about.st_mode,)
    return found


def _reset_peak() -> int:
    """Let the system count the peak of memory anew, where it can; returns the bytes in use."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return _peak()


def _peak() -> int:
    """The most memory in use since `_reset_peak`, or since the start."""
    try:
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# -- what rows use -----------------------------------------------------------------------------------------------------------


class Parts:
    """Tiny folders and files of every kind, made when first asked for; tests read them, and damage copies.

    pipeline    a saved pipeline: VQGAN and U-ViT, three classes, gray images of 32 pixels, ids of 64, 8 x 8 tokens
    images      a folder of three class folders with four PNGs each; flat: the same without class folders
    idx         the four IDX files of a small Fashion-MNIST, three classes
    cache       a token cache of `images` by `pipeline`, two shards
    run         a run folder of `mgen sample`: six PNGs with run.json and grid.png
    statistics  a reference of `images` for mgen eval, with features of single images
    result      a folder of mgen eval: `images` against `statistics`
    config      a YAML that trains a generator on `images` for two steps, into the folder `trained`; cached: the same on `cache`
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> Path:
        path = self.folder / FILES.get(name, name)
        if not path.exists():
            getattr(self, f"_{name}")(path)
        return path

    def fill(self, text: str) -> str:
        """`text` with paths in the place of @names."""
        return re.sub(rf"@({'|'.join(NAMES)})\b", lambda found: str(self[found[1]]), text)

    def copy(self, name: str, folder: Path) -> Path:
        """A copy in `folder`, to be changed."""
        source = self[name]
        to = folder / source.name
        return Path(shutil.copytree(source, to) if source.is_dir() else shutil.copy(source, to))

    def _pipeline(self, path: Path) -> None:
        tiny_pipeline(steps=2).save_pretrained(path)

    def _images(self, path: Path) -> None:
        rng = np.random.default_rng(0)
        for name in ("bag", "coat", "dress"):
            (path / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(path / name / f"{i}.png")

    def _flat(self, path: Path) -> None:
        path.mkdir()
        for number, file in enumerate(sorted(self["images"].rglob("*.png"))):
            shutil.copy(file, path / f"{number}.png")

    def _idx(self, path: Path) -> None:
        write_idx(path, count=24)

    def _cache(self, path: Path) -> None:
        made = ["cache", "--data", str(self["images"]), "--tokenizer", str(self["pipeline"]), "--shard-size", "8"]
        assert main([*made, "--device", "cpu", "--out", str(path)]) == 0

    def _run(self, path: Path) -> None:
        made = ["sample", "--model", str(self["pipeline"]), "--num-images", "6", "--device", "cpu"]
        assert main([*made, "--out", str(path)]) == 0

    def _statistics(self, path: Path) -> None:
        made = ["stats", str(self["images"]), "--protocol", "fmnist-cnn", "--features", "6", "--device", "cpu"]
        assert main([*made, "--out", str(path)]) == 0

    def _result(self, path: Path) -> None:
        made = ["eval", str(self["images"]), "--reference", str(self["statistics"]), "--protocol", "fmnist-cnn"]
        assert main([*made, "--bootstrap", "0", "--device", "cpu", "--out", str(path)]) == 0

    def _config(self, path: Path) -> None:
        self._training(path, {"kind": "folder", "path": str(self["images"]), "image_size": 32, "channels": 1})

    def _cached(self, path: Path) -> None:
        self._training(path, {"kind": "cache", "path": str(self["cache"])})

    def _training(self, path: Path, data: dict[str, Any]) -> None:
        settings = {
            "task": "generator",
            "output": "trained",
            "steps": 2,
            "batch_size": 4,
            "model": tiny_config("uvit", tokens=tiny_tokens(side=8, vocab_size=64)),
            "data": data,
            "objective": {"tokenizer": str(self["pipeline"])},
            "log": {"every": 1, "tensorboard": False},
        }
        path.write_text(yaml.safe_dump(settings))


FILES = {"statistics": "statistics.safetensors", "config": "config.yaml", "cached": "cached.yaml"}
NAMES = ("pipeline", "images", "flat", "idx", "cache", "run", "statistics", "config", "cached", "result")
# Arguments of a small evaluation of the pipeline.
EVAL = ["@pipeline", "--reference", "@statistics", "--protocol", "fmnist-cnn", "--num-images", "4", "--device", "cpu"]


def fifo(path: Path) -> Path:
    """A named pipe that nobody writes to: opening it for reading would wait forever."""
    os.mkfifo(path)
    return path
