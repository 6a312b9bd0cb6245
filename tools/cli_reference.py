"""Writes docs/cli.md, the reference of every command, from the argument parsers themselves.

    python tools/cli_reference.py

tests/unit/test_docs.py compares the page with the parsers, so run this after changing an option or a help text.
"""

import argparse
import importlib
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from mgen.cli import COMMANDS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """# Command line

This page is generated from the argument parsers; don't edit it. To update it: `python tools/cli_reference.py`.

Every command prints the same with `mgen COMMAND --help`. Results go to stdout, progress and warnings to stderr. A user-facing error is
one line and exit status 2.
"""


class Found(Exception):
    """Carries the parser that a command was about to use."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of one command, caught when the command starts to parse its arguments."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        raise Found(parser)

    module = importlib.import_module(f"mgen.cli.{command}")
    cls = argparse.ArgumentParser
    with mock.patch.object(cls, "parse_args", stop), mock.patch.object(cls, "parse_intermixed_args", stop):
        try:
            module.command([])
        except Found as found:
            return found.args[0]
    raise RuntimeError(f"mgen {command} parses no arguments")


def metavar(action: argparse.Action) -> str:
    """The placeholder of an argument's value, empty for a flag."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def default(action: argparse.Action) -> str:
    """The default as it is typed, empty where there is none to show."""
    value = action.default
    if value is None or value is False or value == [] or value is argparse.SUPPRESS:
        return ""
    return f"`{value}`"


def text(action: argparse.Action) -> str:
    """The help of an argument on one line, safe inside a table."""
    words = (action.help or "") % {**vars(action), "prog": "mgen"} if action.help else ""
    return " ".join(words.split()).replace("|", "\\|")


def usage(command: str, parser: argparse.ArgumentParser) -> str:
    """One line: the command, its positional arguments, its required options."""
    parts = [f"mgen {command}"]
    for action in parser._actions:
        if action.option_strings and action.required:
            parts.append(f"{action.option_strings[-1]} {metavar(action)}")
        elif not action.option_strings:
            optional = action.nargs in ("?", "*")
            name = metavar(action) + (" ..." if action.nargs in ("*", "+") else "")
            parts.append(f"[{name}]" if optional else name)
    return " ".join([*parts, "[options]"])


def tables(parser: argparse.ArgumentParser) -> list[str]:
    """The positional arguments and the options of a parser, as Markdown tables."""
    actions = [a for a in parser._actions if a.help is not argparse.SUPPRESS and a.dest != "help"]
    lines = [f"| `{metavar(a)}` | {text(a)} |" for a in actions if not a.option_strings]
    if lines:
        lines = ["| argument | |", "|---|---|", *lines, ""]
    lines += ["| option | default | |", "|---|---|---|"]
    for action in actions:
        if action.option_strings:
            names = ", ".join(f"`{name} {metavar(action)}".rstrip() + "`" for name in action.option_strings)
            names = names.replace("|", "\\|")  # a bar would end the cell
            lines.append(f"| {names} | {default(action)} | {text(action)} |")
    for group in parser._mutually_exclusive_groups:
        names = ", ".join(f"`{a.option_strings[-1]}`" for a in group._group_actions)
        lines.append(f"\n{'Exactly' if group.required else 'At most'} one of {names}.")
    return lines


def section(command: str) -> str:
    """The page's part about one command."""
    parser = parser_of(command)
    first, _, rest = (parser.description or "").partition("\n")
    lines = [f"## mgen {command}", "", first, "", "```", usage(command, parser), "```", ""]
    if rest.strip():
        lines += ["```", rest.strip("\n"), "```", ""]
    lines += tables(parser)
    if parser.epilog:
        lines += ["", "```", parser.epilog.strip("\n"), "```"]
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    rows = [f"| [`{name}`](#mgen-{name}) | {about} |" for name, about in COMMANDS.items()]
    return "\n".join([HEAD, "| command | |", "|---|---|", *rows, "", *map(section, COMMANDS)])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
