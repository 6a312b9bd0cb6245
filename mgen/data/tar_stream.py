"""A tar that a command writes, read forward. Commands are run only where the user gave them, with `pipe:` in front."""

import contextlib
import os
import signal
import subprocess
import tempfile
import weakref
from typing import IO

from mgen.utils.errors import MgenError, shown
from mgen.utils.tar_paths import PIPE

PATIENCE = 5.0  # seconds in which a command is to end that has closed its output, or is told to end


class TarStream:
    """The output of the command of `pipe:COMMAND`, started by the shell. MgenError if the shell can't be started.

    It belongs to the process that started it, and the command ends with it at the latest. Forked processes, such as loader workers, share
    the pipe, out of which each byte comes once: there `close` leaves the command alone.
    """

    def __init__(self, name: str) -> None:
        self.name, self.owner = name, os.getpid()
        self.said = tempfile.TemporaryFile()  # a pipe that nobody empties would stop the command
        try:
            # A session of its own: a Ctrl-C is for the run, which ends the command itself.
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", name.removeprefix(PIPE)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self.said,
                start_new_session=True,
            )
        except OSError as error:
            raise MgenError(f"cannot start {shown(name, 200)} ({error.strerror})") from error
        self.closed = False
        self.end = weakref.finalize(self, _end, self.process, self.owner)  # ends the command; any thread may call it

    @property
    def file(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def status(self, patience: float) -> tuple[int | None, str]:
        """Exit status of the command, which has closed its output, and the last line of what it said.

        The status is None if the command goes on for `patience` seconds.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.closed = True
        self.said.seek(max(0, self.said.seek(0, 2) - 2**12))
        lines = self.said.read().decode("utf-8", errors="replace").strip().splitlines()
        return self.process.returncode, f" ({lines[-1][:200]})" if lines else ""

    def close(self) -> None:
        """End the command, which need not have written all."""
        self.closed = True
        self.end()
        self.file.close()
        self.said.close()


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    """End a command with all that it has started; only the process that started it may."""
    if os.getpid() != owner or process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):  # of the group: the shell alone would leave its commands
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
            return
