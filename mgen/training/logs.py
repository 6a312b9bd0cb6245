"""Logs of a run: metrics.jsonl, TensorBoard if it is installed, and the settings as config.json."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgen.training.config import TrainConfig
from mgen.utils.errors import MgenError
from mgen.utils.files import finite, write_json, write_text

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.utils.tensorboard import SummaryWriter


class Logger:
    """Writes lines {"step": …, name: value, …}. A resumed run first drops the lines after its checkpoint.

    Args:
        output: folder. step: at which the run starts or resumes. active: whether this process writes.
        about: the model and the data in numbers and words, the first entry of config.json.
    """

    board: "SummaryWriter | None" = None  # if TensorBoard is installed

    def __init__(
        self, output: Path, config: TrainConfig, *, step: int, active: bool, about: Mapping[str, object] | None = None
    ) -> None:
        self.active = active
        if not active:
            return
        self.new = not (output / "config.json").exists()
        self.path = output / "metrics.jsonl"
        write_json(output / "config.json", {"about": dict(about or {}), **dataclasses.asdict(config)})
        lines = self.path.read_text().splitlines() if self.path.is_file() and step else []
        write_text(self.path, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))
        if config.log.tensorboard:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(output / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self.active or not values:
            return
        try:
            with self.path.open("a") as file:
                line = finite({"step": step, **{k: float(f"{v:.7g}") for k, v in values.items()}})
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise MgenError(f"cannot write {self.path} ({error.strerror}): check permissions and free space") from error
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def show(self, name: str, picture: "Image", step: int) -> None:
        """Add a picture to TensorBoard."""
        if self.active and self.board is not None:
            self.board.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def discard(self) -> None:
        """Remove the logs of a new run that could not begin."""
        self.close()
        if self.active and self.new:
            self.path.unlink(missing_ok=True)
            (self.path.parent / "config.json").unlink(missing_ok=True)
            shutil.rmtree(self.path.parent / "tensorboard", ignore_errors=True)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by a crash
