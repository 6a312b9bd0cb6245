"""The command line: one file per command. Nothing heavy is imported before a command is known."""

import argparse
import contextlib
import difflib
import errno
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from mgen.utils.memory import keep_freed_memory

COMMANDS = {
    "sample": "sample images from a model (an embedded one by default)",
    "edit": "in-painting, out-painting, class editing and style of an image",
    "init": "write the settings of a project that trains on a folder of images",
    "demo": "a page in the browser: sample, edit and compare, step by step",
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


# Errors without a file name that are the machine's, not mgen's: full disks and pipes, too many open files, no working folder.
MACHINE = {getattr(errno, name) for name in "ENOSPC EDQUOT EFBIG EIO EROFS EMFILE ENFILE ENOMEM ENOENT".split()}


def run(function: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Call a command; returns its exit status.

    2: bad input or a bad environment, told in one line. 130 and 143: stopped by Ctrl-C or SIGTERM, which is handled like Ctrl-C. 141:
    nobody reads the output any more. 70: an error inside mgen, whose trace is written to a file.
    """
    import warnings

    from mgen.utils.compiling import is_compiler_error
    from mgen.utils.errors import MgenError, Terminated, first_line, one_line

    def warn(message: Warning | str, *_: object, **__: object) -> None:
        print(f"mgen: warning: {one_line(str(message))}", file=sys.stderr)

    def fail(text: str) -> int:
        print(f"mgen: error: {one_line(text)}", file=sys.stderr)
        return 2

    with _sigterm_as_interrupt():
        try:
            with warnings.catch_warnings():
                warnings.showwarning = warn
                # Pillow warns at half of our limit (mgen.data.image_files).
                warnings.filterwarnings("ignore", "Image size .* exceeds limit")
                try:
                    return function(argv) or 0
                finally:  # also after --help, which exits
                    if sys.stdout is not None:
                        sys.stdout.flush()
        except MgenError as error:
            return fail(str(error))
        except KeyboardInterrupt as interrupt:
            print(f"mgen: {str(interrupt) or 'interrupted'}", file=sys.stderr)
            return 143 if isinstance(interrupt, Terminated) else 130
        except BrokenPipeError:
            _drop_output()
            return 141
        except MemoryError as error:
            return fail(f"out of memory ({first_line(error)}): {LESS}")
        except OSError as error:  # of the environment: permissions, full disks, names that a file system refuses
            if error.filename is not None:
                return fail(f"{error.filename}: {error.strerror}")
            if error.errno in MACHINE:
                _drop_output()
                return fail(f"{error.strerror}: check free space, open files and the working folder")
            return _report(error)
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):  # of torch
                return fail(f"out of memory ({first_line(error)}): {LESS}")
            if is_compiler_error(error):
                return fail(f"torch.compile failed ({first_line(error, 300)}): leave compile off")
            return _report(error)


LESS = "ask for less at once, such as a smaller batch size"


def _drop_output() -> None:
    """Send what is still to be printed nowhere, so that the interpreter does not fail on it at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise `Terminated`, a KeyboardInterrupt."""
    from mgen.utils.errors import Terminated

    def stop(number: int, frame: object) -> None:
        raise Terminated("terminated")

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None if it was not set in Python


@contextlib.contextmanager
def resumable(how: str) -> Iterator[None]:
    """Let the message of Ctrl-C and SIGTERM say how to go on: "interrupted: HOW"."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(f"{str(interrupt) or 'interrupted'}: {how}") from interrupt


def _report(error: Exception) -> int:
    """Write the trace of an unforeseen error to a file, and say so; returns the exit status."""
    import tempfile
    import traceback

    from mgen.utils.errors import first_line, one_line

    trace = "".join(traceback.format_exception(error))
    place = "the trace could not be written"
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile(
            "w", prefix="mgen-error-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(trace)
        place = f"the trace is in {file.name}"
    said = one_line(f"{type(error).__name__}: {first_line(error)}")
    print(f"mgen: internal error: {said}; {place}; please report", file=sys.stderr)
    return 70


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `mgen` and `python -m mgen`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding shows "?" for what it lacks
            stream.reconfigure(errors="replace")
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        keep_freed_memory()
        return run(lambda rest: importlib.import_module(f"mgen.cli.{argv[0]}").command(rest), argv[1:])
    return run(lambda argv: top_level(argv or ()), argv)


def top_level(argv: Sequence[str]) -> int:
    """`mgen` without a command: its help or version; MgenError for a command that there is not."""
    from mgen import __version__
    from mgen.cli.parser import Parser
    from mgen.utils.errors import MgenError, shown

    if argv and not argv[0].startswith("-"):
        near = difflib.get_close_matches(argv[0][:60], COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise MgenError(f"no command {shown(argv[0])}: {hint}Commands: {', '.join(COMMANDS)}")
    lines = "\n".join(f"  {name:<8} {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="mgen",
        description="Masked generative image synthesis: sample, edit, train, evaluate.",
        epilog=f"commands:\n{lines}\n\n`mgen COMMAND --help` shows a command's options and examples.\n\n"
        "examples:\n  mgen sample --out samples\n  mgen eval samples\n  mgen train --config configs/train/fmnist-maskgit.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mgen {__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=", ".join(COMMANDS))
    parser.parse_args(argv[:1])
    parser.print_help()
    return 0
