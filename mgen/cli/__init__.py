"""The command line: one file per command. Nothing heavy is imported before a command is known."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

COMMANDS = {
    "sample": "sample images from a model (an embedded one by default)",
    "edit": "in-painting, out-painting, class editing and style of an image",
    "train": "train a generator, a tokenizer or a classifier",
    "cache": "tokenize a data set once, into a token cache",
    "eval": "measure images or a model: Fréchet distance, Inception Score, report",
    "report": "put results on one page: HTML, Markdown and JSON",
    "stats": "compute reference statistics of images, for mgen eval",
    "tune": "search a sampling strategy for a model",
    "convert": "convert an official checkpoint to mgen's format",
    "bench": "measure seconds and TFLOPs per image, and where they go",
    "zoo": "list embedded models, and published ones with their recipes",
}


class Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keep the layout of examples and show defaults."""


def make_parser(command: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of one command: description above, examples below the options."""
    return argparse.ArgumentParser(
        prog=f"mgen {command}", description=description, epilog=f"examples:\n{examples}", formatter_class=Formatter
    )


def add_vision(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that tokenize images."""
    parser.add_argument(
        "--vision-weights",
        metavar="FILE",
        help="dinov2_vitl14_reg4_pretrain.pth, the frozen vision encoder of Hita tokenizers",
    )


def run(function: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Call a command. User-facing errors become one line on stderr and exit status 2; Ctrl-C gives status 130."""
    import warnings

    from mgen.utils.errors import MgenError

    def one_line(message: Warning | str, *_: object, **__: object) -> None:
        print(f"mgen: warning: {' '.join(str(message).split())}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = one_line
            return function(argv) or 0
    except MgenError as error:
        print(f"mgen: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mgen: interrupted; rerun the same command to resume", file=sys.stderr)
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
