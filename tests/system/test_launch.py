"""The processes of a run: how long they wait for each other."""

import socket
import subprocess
import sys

import pytest

from tests.system.test_training import launch_environment

WAITS = """
import os, sys, time
from mgen.training.launch import meet
rank, world, device, wait = meet("cpu")
if rank == int(sys.argv[1]):
    time.sleep(1)
    os._exit(1)
wait()
"""


@pytest.mark.parametrize("dies", [0, 1, 2])
def test_the_last_barrier_waits_for_days_but_not_for_the_dead(dies: int) -> None:
    """In the process with the number `dies`; with 2 nobody does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    places = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    runs = []
    for rank in ("0", "1"):
        environment = {**launch_environment(), **places, "RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, "-c", WAITS, str(dies)]
        runs.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    said = [run.communicate(timeout=100)[1] for run in runs]
    assert [run.returncode for run in runs] == ([0, 0] if dies == 2 else [1, 1])
    assert dies == 2 or "another process of this run has ended" in said[1 - dies]
