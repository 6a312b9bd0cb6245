"""The parser of a command: values are checked as they are read, and an error is one line."""

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mgen.utils.errors import MgenError, shown
from mgen.utils.paths import path_fault
from mgen.utils.tar_paths import PIPE

N = TypeVar("N", int, float)
MOST_FOLDERS = 200  # that a path goes down


def text(value: str) -> str:
    """The type of options without another: any text that is not empty and holds no null character."""
    if not value.strip():
        raise argparse.ArgumentTypeError("the value is empty: leave the option out, or give a value")
    if "\0" in value:
        raise argparse.ArgumentTypeError("the value holds a null character")
    return value


def path(value: str) -> str:
    """A file, a folder, or the name of a model; `~` becomes the home folder."""
    value = os.path.expanduser(text(value))
    if value.startswith("~") and not os.path.lexists(value):
        raise argparse.ArgumentTypeError(f"{shown(value)} names the home folder of no user: for a file, write ./~…")
    if fault := path_fault(value):
        raise argparse.ArgumentTypeError(f"{shown(value)} {fault}")
    if len(Path(os.path.abspath(value)).parts) > MOST_FOLDERS:
        raise argparse.ArgumentTypeError(f"{shown(value)} is more than {MOST_FOLDERS} folders deep")
    return value


def data_path(value: str) -> str:
    """The same for data, which may also come from a command: `pipe:…` stands as it is."""
    return text(value) if value.startswith(PIPE) else path(value)


def whole(low: int = -(2**63), high: int = 2**63 - 1) -> Callable[[str], int]:
    """The type of whole numbers from `low` to `high`."""

    def read(value: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,30}", value):
            raise argparse.ArgumentTypeError(f"{shown(value)} is no whole number")
        return _within(int(value), low, high)

    return read


def number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """The type of finite numbers from `low` to `high`."""

    def read(value: str) -> float:
        if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", value) or math.isinf(float(value)):
            raise argparse.ArgumentTypeError(f"{shown(value)} is no finite number")
        return _within(float(value), low, high)

    return read


def scaled(value: str) -> tuple[str, float]:
    """The type of PATH[:SCALE]; the scale is 1 unless given."""
    front, colon, behind = value.rpartition(":")
    if not front or not colon or not re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?|[+-]?(nan|inf)", behind):
        return path(value), 1.0
    return path(front), number(0, 1000)(behind)


def _within(value: N, low: N, high: N) -> N:
    if not low <= value <= high:
        limits = f"at least {low}" if value < low else f"at most {high}"
        raise argparse.ArgumentTypeError(f"it is {value}, allowed is {limits}")
    return value


class Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keep the layout of examples and show defaults."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose options are checked (see the types above) and whose errors are MgenErrors."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # The types of options without one, and of those that say int or float, also in groups.
        for kind, reader in ((None, text), (int, whole()), (float, number())):
            self.register("type", kind, reader)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for given in sys.argv[1:] if args is None else args:
            option = self._option_string_actions.get(given.removesuffix("=--")) if given.endswith("=--") else None
            if option is not None:  # argparse would take it for an empty list
                self.error(f"argument {'/'.join(option.option_strings)}: '--' is no value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"unrecognized arguments: (--[a-z-]+)", message):
            names = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            near = difflib.get_close_matches(unknown[1], names, n=1, cutoff=0.6)
            message += f": did you mean {near[0]}?" if near else ""
        raise MgenError(f"{message} (see {self.prog} --help)")


def make_parser(command: str, description: str, examples: str) -> Parser:
    """The parser of one command: description above, examples below the options."""
    return Parser(
        prog=f"mgen {command}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=Formatter,
        allow_abbrev=False,
    )


def add_vision(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that tokenize images."""
    parser.add_argument(
        "--vision-weights",
        metavar="FILE",
        type=path,
        help="dinov2_vitl14_reg4_pretrain.pth, the frozen vision encoder of Hita tokenizers",
    )
