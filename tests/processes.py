"""Several processes that train or sample together, as `accelerate launch` starts them.

`launch` starts the launcher itself. `together` starts the same processes without it, forked from one that has imported the heavy
libraries before: seconds less for each, so tests of what the processes compute use it, and tests of the launcher the other.
"""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mgen.cli import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mgen.cli.train", "mgen.training.loop", "mgen.pipelines.runs", "tests.helpers"])
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
OF_LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launch_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in OF_LAUNCHER} | {"OMP_NUM_THREADS": "1"}


def launch(arguments: list[str], *argv: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch ARGUMENTS -m mgen.train ARGV`."""
    command = [*LAUNCH, *arguments, "-m", "mgen.train", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=launch_environment(), timeout=300)


def together(*argv: str, log: Path) -> str:
    """What two processes of `mgen ARGV` write, which `log` holds; AssertionError unless both end well."""
    codes, said = fork(_command, list(argv), log=log)
    assert codes == [0, 0], said[-2000:]
    return said


def fork(target: Callable[..., None], *args: Any, log: Path, patience: float = 300) -> tuple[list[int | None], str]:
    """Exit codes of two processes that call `target(*args)`, a function of a module, and all that they write."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        places = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    log.write_text("")
    runs = []
    for rank in ("0", "1"):
        environment = {**launch_environment(), **places, "RANK": rank, "LOCAL_RANK": rank}
        runs.append(CONTEXT.Process(target=_begin, args=(environment, str(log), target, args)))
        runs[-1].start()
    for run in runs:
        run.join(patience)
        run.kill()
        run.join()
    return [run.exitcode for run in runs], log.read_text()


def _begin(environment: dict[str, str], log: str, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    target(*args)


def _command(argv: list[str]) -> None:
    sys.exit(main(argv))
