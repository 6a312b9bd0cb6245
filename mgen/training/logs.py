"""Logs of a run: metrics.jsonl always, TensorBoard when it is installed, the settings as config.json."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from mgen.training.config import TrainConfig
from mgen.utils.errors import MgenError
from mgen.utils.files import write_json, write_text


class Logger:
    """Writes lines {"step": …, name: value, …}; on resume, lines after the checkpoint are dropped first."""

    def __init__(self, output: Path, config: TrainConfig, *, step: int, active: bool) -> None:
        self.active = active
        self.board: Any = None
        if not active:
            return
        self.path = output / "metrics.jsonl"
        write_json(output / "config.json", dataclasses.asdict(config))
        lines = self.path.read_text().splitlines() if self.path.is_file() and step else []
        write_text(self.path, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))
        if config.log.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self.board = SummaryWriter(str(output / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self.active or not values:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **{k: _short(v) for k, v in values.items()}}) + "\n")
        except OSError as error:
            raise MgenError(f"cannot write {self.path} ({error.strerror}): check permissions and free space") from error
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by a crash
