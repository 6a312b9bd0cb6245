"""`mgen` as a process: signals, pipes that close, full disks, terminals of other encodings, errors inside mgen."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mgen.cli import COMMANDS, main

WAITS = """
import sys, time
import mgen.cli.zoo
from mgen.cli import main

def command(argv):
    print("started", flush=True)
    time.sleep(60)

mgen.cli.zoo.command = command
sys.exit(main(["zoo"]))
"""


def mgen(*argv: str, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, **settings.pop("env", {})}
    return subprocess.run([sys.executable, "-m", "mgen", *argv], capture_output=True, env=env, timeout=300, **settings)


@pytest.mark.parametrize(
    ("number", "status", "says"),
    [(signal.SIGINT, 130, "mgen: interrupted\n"), (signal.SIGTERM, 143, "mgen: terminated\n")],
)
def test_signals_end_a_command_in_one_line(number: int, status: int, says: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, says)


@pytest.mark.parametrize("argv", [["zoo"], ["--help"], ["sample", "--help"]])
def test_nobody_reads_the_output(argv: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run([sys.executable, "-m", "mgen", *argv], stdout=writes, stderr=subprocess.PIPE, timeout=300)
    os.close(writes)
    # argparse passes over it when it prints a help text.
    assert done.returncode in ((0, 141) if "--help" in argv else (141,)) and not done.stderr


def test_the_output_is_on_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "mgen", "zoo"], stdout=full, stderr=subprocess.PIPE, timeout=300)
    assert done.returncode == 2 and done.stderr.startswith(b"mgen: error: No space left on device")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_terminals_of_other_encodings(encoding: str, tmp_path: Path) -> None:
    env = {"PYTHONIOENCODING": encoding}
    for argv in (["zoo"], ["eval", "--help"], ["zoo", "mar-l-imagenet256"]):
        done = mgen(*argv, env=env, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, b""), argv
    done = mgen("zoo", "🙂é", env=env, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(b"mgen: error: ") and done.stderr.count(b"\n") == 1
    assert mgen("zoo", env={"PYTHONUTF8": "0", "LC_ALL": "C"}, cwd=tmp_path).returncode == 0


def test_bytes_that_are_no_text_in_names(tmp_path: Path) -> None:
    done = mgen("sample", "--model", os.fsdecode(b"\xff\xfe"), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(b"mgen: error: ") and not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (KeyError("bug"), 70, "internal error: KeyError: 'bug'; the trace is in "),
        (RuntimeError("two\nlines \x1b[31m"), 70, "internal error: RuntimeError: two; the trace is in "),
        (OSError("odd"), 70, "internal error"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            2,
            "out of memory",
        ),
        (MemoryError(), 2, "out of memory"),
        (PermissionError(13, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (OSError(28, "No space left on device"), 2, "No space left"),
        (FileNotFoundError(2, "No such file or directory"), 2, "working folder"),  # os.getcwd
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_command_raises(
    error: BaseException,
    status: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def command(argv: object) -> None:
        raise error

    monkeypatch.setattr("mgen.cli._drop_output", lambda: None)  # pytest needs its output
    monkeypatch.setattr("mgen.cli.zoo.command", command)
    with monkeypatch.context() as patch:  # pytest needs it too
        patch.setattr("tempfile.tempdir", str(tmp_path))
        assert main(["zoo"]) == status
    err = capfd.readouterr().err
    assert says in err and err.startswith("mgen: ") and err.count("\n") == 1 and err.strip().isprintable()
    traces = list(tmp_path.iterdir())
    assert len(traces) == (status == 70)
    for file in traces:
        assert str(file) in err and "Traceback" in file.read_text()


def test_an_error_inside_mgen_where_no_file_can_be_written(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def command(argv: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr("mgen.cli.zoo.command", command)
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
        assert main(["zoo"]) == 70
    assert "KeyError: 'bug'; the trace could not be written" in capfd.readouterr().err


@pytest.mark.parametrize("columns", ["1", "40", "1000"])
def test_help_fits_any_terminal(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0 and "usage:" in capsys.readouterr().out
