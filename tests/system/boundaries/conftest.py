"""Fixtures of the boundary tables; harness.py explains them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.system.boundaries.harness import (
    MOST_SECONDS,
    Copied,
    Parts,
    Raises,
    Refused,
    check_raises,
    check_refused,
)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test, empty at first."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(parts: Parts, capsys: pytest.CaptureFixture[str]) -> Refused:
    def check(argv: Sequence[str], *words: str, seconds: float = MOST_SECONDS) -> str:
        return check_refused([parts.fill(str(word)) for word in argv], words, capsys, seconds)

    return check


@pytest.fixture
def raises() -> Raises:
    def check(function: Callable[[], object], *words: str, seconds: float = MOST_SECONDS) -> str:
        return check_raises(function, words, seconds)

    return check


@pytest.fixture
def copied(parts: Parts, here: Path) -> Copied:
    return lambda name: parts.copy(name, here)
