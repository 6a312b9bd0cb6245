"""Every option of every command, as the parsers list them, with the odd values of its type; each raises an error that names it.

Rows come from the parsers, so a new option is covered the day it is added.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mgen.cli import COMMANDS
from mgen.cli.parser import path
from tests.system.boundaries.harness import EVAL, Refused
from tools.cli_reference import parser_of

MODEL = ["--model", "@pipeline", "--device", "cpu"]
REFERENCES = ["--reference-search", "@statistics", "--reference-test", "@flat"]
# Arguments with which a command would do its work.
USUAL = {
    "sample": [*MODEL, "--num-images", "1"],
    "edit": ["@images/bag/0.png", *MODEL, "--box", "0,0,8,8", "--class", "1", "--num-images", "1"],
    "init": ["--data", "@images", "--out", "made", "--no-timing"],
    "demo": [*MODEL],
    "train": ["--config", "@config"],
    "cache": ["--data", "@images", "--tokenizer", "@pipeline", "--out", "made", "--device", "cpu"],
    "eval": EVAL,
    "report": ["@result"],
    "stats": ["@images", "--protocol", "fmnist-cnn", "--out", "made.safetensors", "--device", "cpu"],
    "tune": [*MODEL, "--trials", "2", "--num-images", "4", "--test-images", "4", *REFERENCES],
    "convert": ["pipeline", "@pipeline/transformer", "--tokenizer", "@pipeline/tokenizer", "--out", "made"],
    "bench": [*MODEL, "--repeats", "1"],
    "zoo": [],
}
EMPTY = {"empty": "", "blank": " \t", "null": "a\0b"}
NO_NUMBER = {"x": "x", "superscript": "²", "arabic": "٣", "fullwidth": "１", "nan": "nan", "inf": "-inf", "two": "1 2"}
ODD: dict[str, dict[str, str]] = {
    "int": {
        **EMPTY,
        **NO_NUMBER,
        "half": "1.5",
        "hexadecimal": "0x10",
        "10**30": str(10**30),
        "5000 digits": "9" * 5000,
    },
    "float": {**EMPTY, **NO_NUMBER, "1e400": "1e400", "400 digits": "9" * 400, "comma": "1,5"},
    "path": {**EMPTY, "long name": "a" * 300, "long path": "a/" * 2100, "home of nobody": "~nobody-1/x"},
    "text": EMPTY,
}


def kind(action: argparse.Action) -> str:
    """Which odd values an argument is tried with."""
    name = getattr(action.type, "__qualname__", "")
    if action.type is int or name.startswith("whole"):
        return "int"
    if action.type is float or name.startswith("number"):
        return "float"
    return "path" if action.type is path else "text"


def named(action: argparse.Action) -> str:
    """The argument as messages call it."""
    return "/".join(action.option_strings) or str(action.metavar or action.dest)


def limits(action: argparse.Action) -> tuple[float, float] | None:
    """The range of a `whole` or a `number`."""
    cells = (
        dict(zip(action.type.__code__.co_freevars, action.type.__closure__ or ()))
        if hasattr(action.type, "__code__")
        else {}
    )
    return (cells["low"].cell_contents, cells["high"].cell_contents) if {"low", "high"} <= cells.keys() else None


def arguments(command: str) -> list[argparse.Action]:
    return [action for action in parser_of(command)._actions if action.nargs != 0]


def placed(command: str, action: argparse.Action, value: str) -> list[str]:
    """The usual arguments of a command, with `value` for one of them."""
    usual = list(USUAL[command])
    if action.option_strings:
        return [command, *usual, f"{action.option_strings[0]}={value}"]
    number = [a.dest for a in arguments(command) if not a.option_strings].index(action.dest)
    given = next((i for i, word in enumerate(usual) if word.startswith("--")), len(usual))
    return [command, *usual[: min(number, given)], value, *usual[min(number + 1, given) :]]


def rows() -> Iterator[Any]:
    for command in COMMANDS:
        for action in arguments(command):
            for name, value in ODD[kind(action)].items():
                yield pytest.param(
                    placed(command, action, value), named(action), id=f"{command} {named(action)} {name}"
                )
            if action.option_strings:
                yield pytest.param(placed(command, action, "--"), named(action), id=f"{command} {named(action)} dashes")
            if action.choices is not None:
                yield pytest.param(
                    placed(command, action, "nobody"), named(action), id=f"{command} {named(action)} unknown"
                )
            if (found := limits(action)) is not None:
                for value in (found[0] - 1, found[1] + 1):
                    if abs(value) < 2**70:
                        argv = placed(command, action, f"{value:g}" if kind(action) == "float" else str(value))
                        yield pytest.param(argv, named(action), id=f"{command} {named(action)} {value}")


@pytest.mark.parametrize(("argv", "name"), rows())
def test_odd_values_are_refused_as_they_are_read(refused: Refused, argv: list[str], name: str) -> None:
    refused(argv, f"argument {name}: ")


# -- files and folders ------------------------------------------------------------------------------------------------------

# What commands read: "file", "folder", or "either"; (command, argument) -> more arguments that are needed for it to have an effect.
READS: dict[tuple[str, str], list[str]] = {
    ("sample", "--model"): [],
    ("sample", "--recipe"): [],
    ("sample", "--lora"): [],
    ("edit", "image"): [],
    ("edit", "--lora"): [],
    ("edit", "--mask"): ["-box"],
    ("edit", "--style"): ["-box"],
    ("init", "--data"): [],
    ("init", "--val"): [],
    ("init", "--tokenizer"): [],
    ("demo", "--model"): [],
    ("train", "--config"): [],
    ("train", "--project"): ["-config"],
    ("train", "--data"): [],
    ("cache", "--data"): [],
    ("cache", "--tokenizer"): [],
    ("cache", "--verify"): [],
    ("eval", "path"): [],
    ("eval", "--reference"): [],
    ("eval", "--extractor"): ["-protocol"],
    ("eval", "--classifier"): [],
    ("eval", "--nearest"): [],
    ("eval", "--reconstruction"): [],
    ("eval", "--recipe"): [],
    ("report", "RESULT"): [],
    ("report", "--against"): [],
    ("stats", "path"): [],
    ("stats", "--extractor"): ["-protocol"],
    ("tune", "--model"): [],
    ("tune", "--start"): [],
    ("tune", "--space"): [],
    ("tune", "--extractor"): [],
    ("tune", "--reference-search"): [],
    ("tune", "--reference-test"): [],
    ("convert", "file"): [],
    ("convert", "--tokenizer"): [],
    ("convert", "--recipe"): [],
    ("convert", "--class-names"): [],
    ("bench", "--model"): [],
    ("bench", "--config"): ["-model"],
    ("bench", "--tokenizer"): ["-model"],
    ("bench", "--sweep"): [],
    ("bench", "--recipe"): [],
}
NO_FILES = (
    "nowhere",
    "nowhere.yaml",
    "pipe",
    "pipe.safetensors",
    "/dev/zero",
    "loop",
    "broken",
    "empty",
    "text.yaml/below",
    "bytes",
    "bytes.npz",
)


@pytest.fixture
def odd_files(here: Path) -> Path:
    """A pipe, links that lead nowhere, an empty folder, bytes of no format."""
    for name in ("pipe", "pipe.safetensors"):
        os.mkfifo(name)
    os.symlink("loop", "loop")
    os.symlink("nobody", "broken")
    os.mkdir("empty")
    (here / "text.yaml").write_text("a: 1\n")
    for name in ("bytes", "bytes.npz"):
        (here / name).write_bytes(bytes(range(256)) * 4)
    return here


def without(argv: list[str], *options: str) -> list[str]:
    """Arguments without some options and their values."""
    out = list(argv)
    for option in options:
        place = out.index(f"-{option}")
        del out[place : place + 2]
    return out


def action_of(command: str, name: str) -> argparse.Action:
    return next(a for a in arguments(command) if name in a.option_strings or name in (a.dest, a.metavar))


@pytest.mark.parametrize("value", NO_FILES)
@pytest.mark.parametrize(("command", "name"), READS)
def test_what_is_no_file_is_refused_by_its_name(
    refused: Refused, odd_files: Path, command: str, name: str, value: str
) -> None:
    argv = without(placed(command, action_of(command, name), value), *READS[command, name])
    line = refused(argv)
    assert value in line or name in line, line


# What commands write, and the end of its name; (command, option) -> arguments without which nothing would be written.
WRITES: dict[tuple[str, str], str] = {
    ("sample", "--out"): "",
    ("sample", "--npz"): ".npz",
    ("sample", "--animation"): ".gif",
    ("edit", "--out"): "",
    ("init", "--out"): "",
    ("train", "output"): "",
    ("train", "--out"): "",
    ("cache", "--out"): "",
    ("eval", "--out"): "",
    ("eval", "--save-statistics"): ".safetensors",
    ("report", "--out"): ".html",
    ("stats", "--out"): ".safetensors",
    ("tune", "--out"): "",
    ("convert", "--out"): "",
    ("bench", "--json"): ".json",
}
NO_PLACES = (
    "text.yaml/below",
    "text.yaml/two/below",
    "pipe/below",
    "loop/below",
    "/proc/nobody/below",
    "/dev/null/below",
)


@pytest.mark.parametrize("value", NO_PLACES)
@pytest.mark.parametrize(("command", "name"), WRITES)
def test_what_cannot_be_written_is_refused_before_the_work(
    refused: Refused, odd_files: Path, command: str, name: str, value: str
) -> None:
    value += WRITES[command, name]
    argv = (
        ["train", *USUAL["train"], f"output={value}"]
        if (command, name) == ("train", "output")
        else placed(command, action_of(command, name), value)
    )
    line = refused(argv)
    assert value.split("/")[0] in line or "/proc" in line or "/dev" in line or name in line, line


@pytest.mark.parametrize(("command", "name"), [place for place, end in WRITES.items() if not end])
def test_a_file_in_the_place_of_a_folder_is_kept(refused: Refused, odd_files: Path, command: str, name: str) -> None:
    for value in ("text.yaml", "pipe", "device"):
        if value == "device":
            os.symlink("/dev/null", "device")
        argv = (
            ["train", *USUAL["train"], f"output={value}"]
            if (command, name) == ("train", "output")
            else placed(command, action_of(command, name), value)
        )
        assert value in refused(argv)


@pytest.mark.parametrize(("command", "name"), [place for place, end in WRITES.items() if end])
def test_a_folder_in_the_place_of_a_file_is_kept(refused: Refused, odd_files: Path, command: str, name: str) -> None:
    value = f"folder{WRITES[command, name]}"
    os.mkdir(value)
    assert value in refused(placed(command, action_of(command, name), f"./{value}"))
    os.rmdir(value)
    os.mkfifo(value)
    assert value in refused(placed(command, action_of(command, name), f"./{value}"))


# -- names and numbers -------------------------------------------------------------------------------------------------------

DEVICES = (
    "nobody",
    "CPU",
    "cpu:7",
    "cpu:-1",
    "cuda:99",
    "cuda:x",
    "cuda:-1",
    "meta",
    "mps",
    "xla",
    "vulkan",
    "0",
    "cuda:1:2",
)
WITH_DEVICE = [
    command for command in COMMANDS if "--device" in {n for a in arguments(command) for n in a.option_strings}
]


@pytest.mark.parametrize("value", DEVICES)
@pytest.mark.parametrize("command", WITH_DEVICE)
def test_devices_that_cannot_compute(refused: Refused, command: str, value: str) -> None:
    refused([command, *without(USUAL[command], "-device"), "--device", value], "device")


# Options that take any text.
FREE = {("report", "--title")}
NAMES = [
    (command, action.option_strings[0])
    for command in COMMANDS
    for action in arguments(command)
    if action.option_strings and kind(action) == "text" and (command, action.option_strings[0]) not in FREE
]


@pytest.mark.parametrize(("command", "name"), NAMES)
@pytest.mark.parametrize("value", ["nobody", "²", "1e400", "x" * 5000])
def test_unknown_names(refused: Refused, command: str, name: str, value: str) -> None:
    line = refused(placed(command, action_of(command, name), value))
    assert name in line or value[:20] in line, line


# Numbers that are all right where others are not.
TAKEN = {("edit", "--dilate", 0), ("edit", "--feather", 0), ("eval", "--bootstrap", 0), ("stats", "--features", 0)}
TAKEN |= {
    ("stats", "--num-images", 2**62),
    ("tune", "--max-passes-per-image", 2**62),
    ("edit", "--dilate", 2**62),
}  # the most that there are
TAKEN |= {("cache", "--workers", 0)}  # this process reads
TAKEN |= {(command, "--batch-size", 2**62) for command in COMMANDS}  # no batch is larger than the number of images
NUMBERS = [
    (command, action.option_strings[0])
    for command in COMMANDS
    for action in arguments(command)
    if action.option_strings and kind(action) in ("int", "float")
]


def limited() -> Iterator[Any]:
    for command, name in NUMBERS:
        if name.endswith("seed") or name == "--guidance":  # any
            continue
        for value in (-1, 0, 2**62) if name != "--temperature" else (-1,):
            if (command, name, value) not in TAKEN:
                yield pytest.param(command, name, value, id=f"{command} {name} {value}")


@pytest.mark.parametrize(("command", "name", "value"), limited())
def test_numbers_out_of_range(refused: Refused, command: str, name: str, value: int) -> None:
    """By the name of the option or of the setting, or by an estimate of what it takes."""
    line = refused(placed(command, action_of(command, name), str(value)))
    words = (name, *name.strip("-").split("-"), "GB", "years", f"{value:,}")
    assert any(word in line for word in words), line
