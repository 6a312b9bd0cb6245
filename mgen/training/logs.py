"""Logs of a run: metrics.jsonl, experiment trackers, and the settings as config.json."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mgen.training.config import Tracker, TrainConfig
from mgen.training.trackers import IDENTITY, Trackers
from mgen.utils.errors import MgenError
from mgen.utils.files import finite, write_json, write_text
from mgen.utils.logged import log_lines

if TYPE_CHECKING:
    from PIL.Image import Image

TRACKERS = get_args(Tracker)  # folders of some of them


class Logger:
    """Writes lines {"step": …, name: value, …}. A resumed run first drops the lines after its checkpoint.

    Args:
        output: folder. step: at which the run starts or resumes. active: whether this process writes.
        about: the model and the data in numbers and words, the first entry of config.json.

    Raises:
        MgenError: a file cannot be written, or a tracker doesn't start; a new run then leaves no logs behind.
    """

    trackers: Trackers | None = None

    def __init__(
        self, output: Path, config: TrainConfig, *, step: int, active: bool, about: Mapping[str, object] | None = None
    ) -> None:
        self.active = active
        if not active:
            return
        self.new = not (output / "config.json").exists()
        self.path = output / "metrics.jsonl"
        lines = log_lines(self.path.read_bytes()) if self.path.is_file() and step else []
        try:
            write_json(output / "config.json", {"about": dict(about or {}), **dataclasses.asdict(config)})
            write_text(self.path, "".join(f"{text}\n" for text, values in lines if (values["step"] or 0) <= step))
            self.trackers = Trackers(output, config, step=step)
        except MgenError:
            self.discard()
            raise

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self.active or not values:
            return
        try:
            with self.path.open("a") as file:
                line = finite({"step": step, **{k: float(f"{v:.7g}") for k, v in values.items()}})
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise MgenError(f"cannot write {self.path} ({error.strerror}): check permissions and free space") from error
        if self.trackers is not None:
            self.trackers.log(step, values)

    def show(self, name: str, picture: "Image", step: int) -> None:
        """Show a picture in the trackers."""
        if self.trackers is not None:
            self.trackers.show(name, picture, step)

    def discard(self) -> None:
        """Remove the logs of a new run that could not begin."""
        self.close()
        if self.active and self.new:
            self.path.unlink(missing_ok=True)
            (self.path.parent / "config.json").unlink(missing_ok=True)
            (self.path.parent / IDENTITY).unlink(missing_ok=True)
            for folder in TRACKERS:
                shutil.rmtree(self.path.parent / folder, ignore_errors=True)

    def close(self) -> None:
        if self.trackers is not None:
            self.trackers.close()
