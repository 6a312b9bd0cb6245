"""The harness notices what it is there for: a test that could not fail would prove nothing."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from mgen.cli import main
from mgen.utils.errors import MgenError
from tests.system.boundaries.harness import NAMES, Copied, Parts, Raises, Refused


def test_accepted_input_a_traceback_and_leftovers_fail(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    refused(["sample", "--steps", "x"], "--steps", "no whole number")
    with pytest.raises(AssertionError, match="is not in"):
        refused(["sample", "--steps", "x"], "something else")
    with pytest.raises(AssertionError, match="not refused: status 0"):
        refused(["zoo", "--models", "mar*"])

    def broken(argv: object) -> NoReturn:
        raise KeyError("bug")

    def leaves(argv: object) -> NoReturn:
        (here / ".left").write_text("")
        raise MgenError("refused in words, but late")

    def twice(argv: object) -> NoReturn:
        import warnings

        warnings.warn("something", stacklevel=2)
        raise MgenError("refused in more than one line")

    for command, says in ((broken, "status 70"), (leaves, "left behind"), (twice, "not one line")):
        monkeypatch.setattr("mgen.cli.zoo.command", command)
        with pytest.raises(AssertionError, match=says):
            refused(["zoo"])


def _hungry() -> NoReturn:
    taken = b"x" * (9 * 2**27)
    raise MgenError(f"refused after {len(taken)} bytes were taken")


def _busy() -> NoReturn:
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    raise MgenError("refused after a long time")


def _unclear() -> NoReturn:
    raise TypeError("'NoneType' object is not subscriptable")


def _colored() -> NoReturn:
    raise ValueError("refused, in \x1b[31mred letters")


@pytest.mark.parametrize(
    ("function", "says"),
    [(_hungry, "took 1"), (_busy, "computed for"), (_unclear, "not subscriptable"), (_colored, "characters")],
)
def test_memory_time_and_unclear_words_fail(raises: Raises, function: Callable[[], object], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        raises(function, seconds=0.1 if function is _busy else 5)


def test_the_parts_are_what_commands_accept(parts: Parts, copied: Copied, here: Path) -> None:
    """Else rows about their damaged copies would be refused for another reason."""
    start = time.process_time()
    assert all(parts[name].exists() for name in NAMES)
    assert time.process_time() - start < 10
    assert copied("cache") == here / "cache" and len(list((here / "cache").iterdir())) == 3
    model, cpu = str(copied("pipeline")), ["--device", "cpu"]
    assert main(["sample", "--model", model, "--num-images", "6", "--out", str(copied("run")), *cpu]) == 0
    measured = [
        "--reference",
        str(copied("statistics")),
        "--protocol",
        "fmnist-cnn",
        "--bootstrap",
        "2",
        "--out",
        "measured",
        *cpu,
    ]
    assert main(["eval", str(copied("images")), *measured]) == 0
    assert main(["train", "--config", str(copied("config"))]) == 0
    assert main(["train", "--config", str(copied("cached")), "output=cached"]) == 0
