"""Experiment trackers beside metrics.jsonl: those of accelerate, by name. A resumed run continues the run that they have of it.

A tracker that fails while the run goes on is given up, with a word on stderr: it never stops a training.
"""

import importlib.util
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np
from tqdm import tqdm

from mgen.training.config import LogConfig, TrainConfig
from mgen.utils.changes import plain
from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.files import write_json
from mgen.utils.reading import read_mapping
from mgen.utils.tar_paths import PIPE, public_name

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker
    from PIL.Image import Image

PACKAGES = {"comet_ml": "comet-ml"}  # of trackers whose package is not called like them
IDENTITY = "trackers.json"  # in the output folder: by what trackers know the run
PATIENCE = 3.0  # seconds to wait, such as for a server that does not answer


def tracker_names(config: LogConfig) -> tuple[str, ...]:
    """The trackers of a run. Without `trackers` it is TensorBoard, if it is installed and `tensorboard` is not false.

    Raises:
        MgenError: one that is asked for is not installed.
    """
    if config.trackers is None:
        return ("tensorboard",) if config.tensorboard and _installed("tensorboard") else ()
    for name in config.trackers:
        if not _installed(name):
            raise MgenError(
                f"log.trackers names {name}, which is not installed: pip install {PACKAGES.get(name, name)}, or leave it out"
            )
    return config.trackers


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


class Trackers:
    """The trackers of a run.

    Args:
        output: folder of the run. step: at which it starts or resumes.

    Raises:
        MgenError: a tracker is not installed, or doesn't start.
    """

    def __init__(self, output: Path, config: TrainConfig, *, step: int) -> None:
        self.running: dict[str, GeneralTracker] = {}
        names = tracker_names(config.log)
        identity = _identity(output, new=not step) if set(names) - {"tensorboard"} else ""
        for name in names:
            try:
                self.running[name] = _start(name, output, config, step=step, identity=identity)
            except Exception as error:  # of any package
                self.close()
                raise MgenError(
                    f"log.trackers: {name} does not start ({first_line(error, 200)}): mend that, or leave it out of log.trackers"
                ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a step."""
        self._each(lambda name, tracker: tracker.log(dict(values), step=step))

    def show(self, title: str, picture: "Image", step: int) -> None:
        """A picture, to the trackers that take pictures."""

        def show(name: str, tracker: "GeneralTracker") -> None:
            if name == "tensorboard":
                tracker.log_images({title: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
            elif name == "trackio":  # accelerate has no such method for it
                trackio: Any = sys.modules[name]
                if hasattr(trackio, "Image"):
                    tracker.log({title: trackio.Image(np.asarray(picture))}, step=step)
            elif hasattr(tracker, "log_images"):
                tracker.log_images({title: [picture]}, step=step)

        self._each(show)

    def close(self) -> None:
        """Let the trackers finish what they write."""
        self._each(lambda name, tracker: tracker.finish())
        self.running = {}

    def _each(self, call: "Callable[[str, GeneralTracker], None]") -> None:
        """Call this for every tracker, and give up those that fail."""
        for name, tracker in list(self.running.items()):
            try:
                call(name, tracker)
            except Exception as error:  # of any package
                del self.running[name]
                text = f"the tracker {name} failed ({first_line(error, 200)}): the run goes on without it, metrics.jsonl has all values"
                tqdm.write(text, file=sys.stderr)


def _start(name: str, output: Path, config: TrainConfig, *, step: int, identity: str) -> "GeneralTracker":
    """A tracker that takes values from step `step` on."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    project, settings = config.log.project, _flat(plain(asdict(config)))
    if name == "tensorboard":  # which has no projects: its folder is the run
        _wait_for_a_later_name(output / name)
        tracker = kind("tensorboard", output, purge_step=step + 1 if step else None)
    elif name == "wandb":
        mode = os.environ.get("WANDB_MODE") or ("online" if _wandb_answers() else "offline")
        if mode == "offline":
            tqdm.write(f"wandb is offline: wandb sync {output}/wandb/offline-run-* uploads the run", file=sys.stderr)
        tracker = kind(
            project,
            id=identity,
            name=output.name,
            dir=str(output),
            mode=mode,
            resume="allow" if mode == "online" else None,
            config=settings,
        )
    elif name == "trackio":
        tracker = kind(project, name=f"{output.name}-{identity}", resume="allow", config=settings)
    else:
        where = (output / name,) if kind.requires_logging_directory else ()
        tracker = kind(project, *where)
    started: GeneralTracker = tracker
    started.start()
    if name not in ("tensorboard", "wandb", "trackio"):  # those have them already, or config.json beside them
        started.store_init_configuration(settings)
    return started


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait until a new event file gets a name that sorts behind those in the folder, at most `PATIENCE` seconds.

    TensorBoard reads the files of a run by their names, which have the second, host and process that began them. Of two
    files of one second the wrong one may come first, and what a resumed run repeats then counts twice.
    """
    seconds = [file.name.split(".")[3] for file in folder.glob("events.out.tfevents.*")]
    latest = max((int(second) for second in seconds if second.isdecimal()), default=0)
    wait = latest + 1 - time.time()
    if 0 < wait <= PATIENCE:  # a file that is further ahead was made by another clock
        time.sleep(wait)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted keys; lists as text, as most trackers take plain values alone. Commands stay here: they may hold passwords."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, str) and value.startswith(PIPE):
            found[f"{prefix}{key}"] = public_name(value)
        elif isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = (
                value if value is None or isinstance(value, bool | int | float | str) else str(value)
            )
    return found


def _identity(output: Path, *, new: bool) -> str:
    """By what trackers know the run of this folder; a run that starts anew gets another one."""
    file = output / IDENTITY
    if not new and file.is_file():
        found = read_mapping(file).get("id")
        if isinstance(found, str) and found.isalnum():
            return found
    made = secrets.token_hex(4)
    write_json(file, {"id": made})
    return made


def _wandb_answers() -> bool:
    """Whether there is a key for wandb's server, and the server can be reached; one behind a proxy is taken to be."""
    address = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    try:
        server = urlsplit(address)
        host, port = server.hostname or "", server.port or (80 if server.scheme == "http" else 443)
    except ValueError as error:
        raise MgenError(f"WANDB_BASE_URL is {shown(address)}: expected an address such as https://HOST:8080") from error
    try:
        known = bool(os.environ.get("WANDB_API_KEY")) or netrc().authenticators(host) is not None
    except (OSError, NetrcParseError):
        known = False
    if not known:
        return False
    if server.scheme in getproxies() and not proxy_bypass(host):
        return True
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True
