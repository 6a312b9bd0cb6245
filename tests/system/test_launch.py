"""The processes of a run: how long they wait for each other."""

import os
import time
from pathlib import Path

import pytest

from mgen.training.launch import meet
from tests.processes import fork


def waits(dies: int) -> None:
    rank, _, _, wait = meet("cpu")
    if rank == dies:
        time.sleep(1)
        os._exit(1)
    wait()


@pytest.mark.parametrize("dies", [0, 1, 2])
def test_the_last_barrier_waits_for_days_but_not_for_the_dead(dies: int, tmp_path: Path) -> None:
    """In the process with the number `dies`; with 2 nobody does."""
    codes, said = fork(waits, dies, log=tmp_path / "log", patience=100)
    assert codes == ([0, 0] if dies == 2 else [1, 1])
    assert said.count("another process of this run has ended") == (dies < 2)
