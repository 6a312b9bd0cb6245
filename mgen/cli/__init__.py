"""The command line: one file per command. Nothing heavy is imported before a command is known."""

import argparse
import contextlib
import difflib
import importlib
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

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


def run(function: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Call a command; returns its exit status.

    2: bad input or a bad environment, told in one line. 130 and 143: stopped by Ctrl-C or SIGTERM, which is handled like Ctrl-C. 70: an
    error inside mgen, whose trace is written to a file.
    """
    import warnings

    from mgen.utils.errors import MgenError, first_line

    def one_line(message: Warning | str, *_: object, **__: object) -> None:
        print(f"mgen: warning: {' '.join(str(message).split())}", file=sys.stderr)

    def fail(text: str) -> int:
        print(f"mgen: error: {' '.join(text.split())}", file=sys.stderr)
        return 2

    with _sigterm_as_interrupt() as terminated:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = one_line
                return function(argv) or 0
        except MgenError as error:
            return fail(str(error))
        except KeyboardInterrupt as interrupt:
            print(f"mgen: {interrupt or 'interrupted'}", file=sys.stderr)
            return 143 if terminated else 130
        except BrokenPipeError:
            return 141
        except MemoryError as error:
            return fail(f"out of memory ({first_line(error)}): ask for less at once, such as a smaller batch size")
        except OSError as error:  # of the environment: permissions, full disks, names that a file system refuses
            if error.filename is None:
                return _report(error)
            return fail(f"{error.filename}: {error.strerror}")
        except Exception as error:
            return _report(error)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[list[int]]:
    """Let SIGTERM raise KeyboardInterrupt; yields a list that then holds the signal's number."""
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt("terminated")

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def resumable(how: str) -> Iterator[None]:
    """Let the message of Ctrl-C and SIGTERM say how to go on: "interrupted: HOW"."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"{interrupt or 'interrupted'}: {how}") from interrupt


def _report(error: Exception) -> int:
    """Write the trace of an unforeseen error to a file, and say so; returns the exit status."""
    import tempfile
    import traceback

    from mgen.utils.errors import first_line

    trace = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile("w", prefix="mgen-error-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write(trace)
    print(
        f"mgen: internal error: {type(error).__name__}: {first_line(error)}; the trace is in {file.name}; please report",
        file=sys.stderr,
    )
    return 70


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `mgen` and `python -m mgen`."""
    from mgen import __version__

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding shows "?" for what it lacks
            stream.reconfigure(errors="replace")
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
    if argv[0] not in COMMANDS and not argv[0].startswith("-"):
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        print(f"mgen: error: no command {argv[0][:60]!r}: {hint}Commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = parser.parse_args(argv[:1]).command
    return run(importlib.import_module(f"mgen.cli.{command}").command, argv[1:])
