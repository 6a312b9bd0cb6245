"""The command line: one file per command. Nothing heavy is imported before a command is known."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "sample": "draw images from a model (the embedded one by default)",
    "edit": "in-painting, out-painting, class editing and style of an image",
    "train": "train a generator, a tokenizer or a classifier",
    "cache": "pass a data set through a tokenizer, once, into a token cache",
    "eval": "measure images or a model: Fréchet distance, Inception Score, report",
    "report": "one page from results: HTML, Markdown and JSON",
    "stats": "reference statistics of any images, for mgen eval",
    "tune": "search a sampling strategy, step by step, for a model",
    "convert": "turn an official checkpoint into mgen's format",
    "bench": "seconds, TFLOPs and where they go",
    "zoo": "list models: inside the package, and published ones with their recipes",
}


class Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the layout of examples and shows defaults."""


def make_parser(command: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of one command: description above, examples below the options."""
    return argparse.ArgumentParser(
        prog=f"mgen {command}", description=description, epilog=f"examples:\n{examples}", formatter_class=Formatter
    )


def add_vision(parser: argparse.ArgumentParser) -> None:
    """The option of commands that tokenize images."""
    parser.add_argument(
        "--vision-weights",
        metavar="FILE",
        help="dinov2_vitl14_reg4_pretrain.pth, the frozen encoder that Hita tokenizers look at images with",
    )


def run(function: object, argv: Sequence[str] | None = None) -> int:
    """Call a command; user errors become one line on stderr and exit status 2, Ctrl-C status 130."""
    import warnings

    from mgen.utils.errors import MgenError

    def one_line(message: Warning | str, *_: object, **__: object) -> None:
        print(f"mgen: warning: {' '.join(str(message).split())}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = one_line
            return function(argv) or 0  # type: ignore[operator]
    except MgenError as error:
        print(f"mgen: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mgen: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `mgen` and `python -m mgen`."""
    from mgen import __version__

    lines = "\n".join(f"  {name:<8} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="mgen",
        description="Masked generative image synthesis: sample, edit, train, evaluate.",
        epilog=f"commands:\n{lines}\n\n`mgen COMMAND --help` shows a command's options and examples.\n\n"
        "examples:\n  mgen sample --out samples\n  mgen eval samples\n  mgen train --config configs/train/fmnist-maskgit.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mgen {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        parser.print_help()
        return 0
    command = parser.parse_args(argv[:1]).command
    return run(importlib.import_module(f"mgen.cli.{command}").command, argv[1:])
