"""Checks that the processes of a run, which may be on several machines, see the same: settings, data, output folder."""

import hashlib
import json
import secrets
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from mgen import __version__
from mgen.training.config import TrainConfig
from mgen.training.parts import Task
from mgen.utils.changes import Change, changes, plain
from mgen.utils.errors import MgenError, shown
from mgen.utils.files import write_text

PATIENCE = (
    60.0  # seconds that a file of another machine may take to appear: as long as NFS remembers that it wasn't there
)
T = TypeVar("T")


def check_same_settings(accelerator: Accelerator, config: TrainConfig) -> None:
    """Raise MgenError, in all processes, unless all have the same settings and the same version of mgen."""
    seen = _gathered(accelerator, {"mgen": __version__, **plain(asdict(config))})
    for host, other in seen:
        if found := list(changes(seen[0][1], other)):
            raise MgenError(
                f"the processes have other settings: on {seen[0][0]} and on {host} {_differ(found)}; start all with the same command, "
                "configuration file and version of mgen"
            )


def check_same_data(accelerator: Accelerator, task: Task) -> None:
    """Raise MgenError, in all processes, unless all see as many images of the same classes and, of a cache, the same tokens."""
    found: dict[str, int | str | None] = {}
    for name, data in (("training", task.train_data), ("validation", task.val_data)):
        if data is not None:
            classes = hashlib.sha256(json.dumps(list(data.class_names)).encode()).hexdigest()[:12]
            found |= {f"{name} images": len(data), f"classes of the {name} data, sha256": classes}
    seen = _gathered(accelerator, found | {"tokens": task.tokens_fingerprint})
    for host, other in seen:
        if differ := list(changes(seen[0][1], other)):
            raise MgenError(
                f"the processes see other data: on {seen[0][0]} and on {host} {_differ(differ)}; let all see the same folder"
            )


def check_same_output(accelerator: Accelerator, output: Path, patience: float = PATIENCE) -> None:
    """Raise MgenError, in all processes, unless all see in the output folder what the first one writes there."""
    if accelerator.num_processes == 1:
        return
    name = [f".seen-{secrets.token_hex(8)}"]
    broadcast_object_list(name)
    token = output / name[0]
    try:
        if accelerator.is_main_process:
            write_text(token, "written by the first process of a run, for the others to see\n")
        # The first one waits here for the others, who begin to look when it has written.
        accelerator.wait_for_everyone()
        until = time.monotonic() + patience
        while not (there := token.is_file()) and time.monotonic() < until:
            time.sleep(0.5)
        seen = _gathered(accelerator, there)
    finally:
        if accelerator.is_main_process:
            token.unlink(missing_ok=True)
    if blind := sorted({host for host, there in seen if not there}):
        raise MgenError(
            f"{output.absolute()} on {', '.join(blind)} is not the folder of that name on {seen[0][0]}: let all machines write to "
            "the same, on shared storage"
        )


def _differ(found: list[Change]) -> str:
    return ", ".join(f"{key} is {shown(a)} and {shown(b)}" for key, a, b in found[:5])


def _gathered(accelerator: Accelerator, value: T) -> list[tuple[str, T]]:
    """The value of each process, with the name of its machine."""
    mine = [(socket.gethostname(), value)]
    return gather_object(mine) if accelerator.num_processes > 1 else mine
