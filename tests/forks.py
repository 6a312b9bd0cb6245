"""Processes for tests of what a new process does, forked from one that has imported some libraries before.

    with Forks("torch") as forks:
        done = forks.run("import mgen; …", cwd=folder, env={"HF_HOME": "…"})

The process itself, its environment and everything but those imports are new each time, so code that looks at the environment when it
is imported sees the one that is given here.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).resolve().parents[1]
SERVES = """
import importlib, json, os, sys, traceback
for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    job = json.loads(line)
    if (child := os.fork()) == 0:
        os.environ.clear()
        os.environ.update(job["env"])
        os.chdir(job["cwd"])
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        status = 1
        try:
            exec(job["code"], {"__name__": "__main__"})
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Done(NamedTuple):
    """How a process ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


class Forks:
    """A process that has imported `modules` and forks; a context manager."""

    def __init__(self, *modules: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SERVES, *modules]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, code: str, *, cwd: Path, env: dict[str, str] | None = None) -> Done:
        """Run Python code; `env`: its whole environment, that of this process by default."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            files = {name: str(Path(folder) / name) for name in ("out", "err")}
            job = {"code": code, "cwd": str(cwd), "env": dict(os.environ) if env is None else env, **files}
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            status = int(self.process.stdout.readline())
            return Done(status, *(Path(file).read_text() for file in files.values()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.communicate()
