"""A tar that a command writes, read forward. Commands are run only where the user gave them, with `pipe:` in front."""

import contextlib
import subprocess
import tempfile
from typing import IO

from mgen.utils.errors import MgenError, shown
from mgen.utils.tar_paths import PIPE

PIECE = 2**20


class TarStream:
    """The output of the command of `pipe:COMMAND`, started by the shell. MgenError if the shell can't be started."""

    def __init__(self, name: str) -> None:
        self.name, self.place = name, 0
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

    @property
    def file(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def ahead(self, offset: int) -> bool:
        """Whether the bytes from `offset` on are still to come."""
        return not self.closed and offset >= self.place

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the stream, none of which has been read yet; MgenError if it ends before."""
        while self.place < offset:
            self.place += len(self._some(min(PIECE, offset - self.place)))
        data = self._some(size)
        self.place += len(data)
        if len(data) < size:
            raise self._ended()
        return data

    def _some(self, size: int) -> bytes:
        if not (data := self.file.read(size)):
            raise self._ended()
        return data

    def _ended(self) -> MgenError:
        status, said = self.status()
        return MgenError(
            f"{shown(self.name, 200)} ended with status {status} after {self.place} bytes, before the image that its index has{said}: run "
            "it by hand to see why, or remove its index if the shard has changed"
        )

    def status(self) -> tuple[int, str]:
        """Exit status of the command, which has closed its output, and the last line of what it said."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.closed = True
        self.said.seek(max(0, self.said.seek(0, 2) - 2**12))
        lines = self.said.read().decode("utf-8", errors="replace").strip().splitlines()
        return (
            self.process.returncode if self.process.returncode is not None else -1,
            f" ({lines[-1][:200]})" if lines else "",
        )

    def close(self) -> None:
        """End the command, which need not have written all."""
        self.closed = True
        self.file.close()
        self.said.close()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
