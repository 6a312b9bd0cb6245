"""Values of options: what is no value of its kind is told as it is read, in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mgen.cli import COMMANDS, main
from mgen.cli.parser import Parser, make_parser, number, path, text, whole
from mgen.utils.errors import MgenError
from tools.cli_reference import parser_of

EMPTY = ("", " ", "\t\n", "\u3000")
NO_NUMBERS = (
    "x",
    "1 2",
    "²",
    "٣",
    "１",
    "0x10",
    "1_000",
    "--1",
    "+",
    "1,5",
    "None",
    "true",
    "\x001",
    "1\n2",
    "½",
    "1/2",
)


@pytest.fixture
def parser() -> Parser:
    made = make_parser("try", "A parser.", "  none")
    option = made.add_argument
    option("place", nargs="?")
    option("--text")
    option("--plain-int", type=int)
    option("--plain-float", type=float)
    option("--size", type=whole(1, 10))
    option("--share", type=number(0, 1))
    option("--out", type=path)
    option("--set", action="append")
    option("--kind", choices=("a", "b"))
    made.add_mutually_exclusive_group().add_argument("--box")
    made.add_argument_group("others").add_argument("--count", type=int)
    return made


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--text", (*EMPTY, "a\0b")),
        ("--box", (*EMPTY, "a\0b")),
        ("--set", (*EMPTY, "a\0b")),
        ("--kind", (*EMPTY, "c", "A")),
        ("--out", (*EMPTY, "a\0b", "a" * 256, "é" * 128, "x/" * 2100, "~/" + "a" * 300)),
        ("--plain-int", (*EMPTY, *NO_NUMBERS, "1.5", "1e3", "nan", "inf", "1" * 31, str(10**30), str(2**63))),
        ("--count", (*EMPTY, *NO_NUMBERS, "1.5", str(10**30))),
        (
            "--plain-float",
            (*EMPTY, *NO_NUMBERS, "nan", "-nan", "inf", "-Infinity", "1e400", "1" * 400, "1e", "e1", "."),
        ),
        ("--size", (*EMPTY, *NO_NUMBERS, "0", "-1", "11", "5.0")),
        ("--share", (*EMPTY, *NO_NUMBERS, "-0.1", "1.0001", "1e-", "2")),
    ],
)
def test_values_that_are_refused(parser: Parser, option: str, values: tuple[str, ...]) -> None:
    for value in values:
        with pytest.raises(MgenError, match=f"^argument {option}: [^\n]{{10,300}}$"):
            parser.parse_args([f"{option}={value}"])


def test_values_that_are_taken(parser: Parser) -> None:
    args = parser.parse_args(
        [
            "--plain-int=-3",
            "--plain-float=-1e-3",
            "--size",
            "+7",
            "--share",
            ".5",
            "--out",
            "~/é",
            "--set",
            "a=",
            "x",
        ]
    )
    assert (args.plain_int, args.plain_float, args.size, args.share) == (-3, -0.001, 7, 0.5)
    assert args.out == str(Path.home() / "é") and args.set == ["a="] and args.place == "x"
    assert parser.parse_args([]).place is None


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--sise", "1"], "did you mean --size"),
        (["--text"], "expected one argument"),
        (["a", "b"], "unrecognized arguments: b"),
        ([""], "empty"),
        (["--tex", "a"], "did you mean --text"),
    ],
)
def test_unknown_and_missing_ones(parser: Parser, argv: list[str], words: str) -> None:
    with pytest.raises(MgenError, match=f"{words}.*see mgen try --help"):
        parser.parse_args(argv)


@pytest.mark.parametrize("read", [whole(1, 5), number(1, 5)])
def test_limits_are_told(read: Callable[[str], float]) -> None:
    import argparse

    for value, words in (("0", "it is 0.*at least 1"), ("6", "it is 6.*at most 5")):
        with pytest.raises(argparse.ArgumentTypeError, match=words):
            read(value)
    assert read("1") == 1 and read("5") == 5 and text("a b") == "a b"


@pytest.mark.parametrize(
    "argv", [["nobody"], [""], ["--nothing"], ["-x"], ["samle"], ["x" * 10**6], ["\udcff\x1b[31m"], ["²"]]
)
def test_the_top_level_tells_in_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("mgen: error: ") and err.count("\n") == 1 and err.strip().isprintable()
    assert len(err) < 500
    assert argv != ["samle"] or "did you mean 'sample'" in err


def test_the_top_level_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    for argv in (["--help"], ["--version"], ["sample", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 0 and capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_checked_type_and_help(command: str) -> None:
    parser = parser_of(command)
    assert isinstance(parser, Parser)
    for action in parser._actions:
        if action.nargs != 0 and action.option_strings:
            assert action.type in (None, int, float) or callable(action.type), action
