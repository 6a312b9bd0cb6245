"""stages.json of a project: which stages are finished, with which settings and inputs, so that a change since is noticed."""

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mgen.utils.changes import Change, changes, plain
from mgen.utils.files import write_json
from mgen.utils.reading import read_json
from mgen.utils.schema import NonNegative, build, schema

FILE = "stages.json"


@schema(frozen=False)
class Record:
    """What a stage was begun with, and how it ended.

    Args:
        settings: of the stage. inputs: name → digest of what it reads. finished: when, None: not yet. seconds: that it took in all.
        said: its result in a line.
    """

    settings: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    finished: str | None = None
    seconds: NonNegative = 0.0
    said: str = ""


@schema
class _File:
    stages: dict[str, Record] = field(default_factory=dict)
    estimates: dict[str, NonNegative] = field(default_factory=dict)  # seconds, by mgen init


@dataclass
class Records:
    """The records of a project's folder, by stage, and the estimated seconds of the stages."""

    folder: Path
    stages: dict[str, Record]
    estimates: dict[str, float]
    active: bool = True  # whether this process writes them

    @classmethod
    def read(cls, folder: Path, *, active: bool = True) -> "Records":
        """The records of a folder, none if there is no file; MgenError if it is damaged."""
        file = folder / FILE
        found = build(_File, read_json(file), f"{file}: ") if file.is_file() else _File()
        return cls(folder, dict(found.stages), dict(found.estimates), active)

    def write(self) -> None:
        if not self.active:
            return
        stages = {name: asdict(record) for name, record in self.stages.items()}
        write_json(self.folder / FILE, {"stages": stages, "estimates": self.estimates})

    def begin(self, stage: str, settings: Any, inputs: dict[str, str]) -> None:
        before = self.stages.get(stage)
        seconds = before.seconds if before is not None else 0.0
        self.stages[stage] = Record(settings=inside(plain(settings), self.folder), inputs=inputs, seconds=seconds)
        self.write()

    def add_time(self, stage: str, seconds: float) -> None:
        self.stages[stage].seconds += seconds
        self.write()

    def complete(self, stage: str, said: str) -> None:
        self.stages[stage].finished = datetime.now(UTC).isoformat(timespec="seconds")
        self.stages[stage].said = said
        self.write()

    def forget(self, stage: str) -> None:
        if self.stages.pop(stage, None) is not None:
            self.write()

    def changed(self, stage: str, settings: Any, inputs: dict[str, str]) -> tuple[list[Change], list[str]]:
        """Settings and names of inputs that differ from those that the stage was begun with."""
        record = self.stages[stage]
        names = [
            name for name in dict.fromkeys((*record.inputs, *inputs)) if record.inputs.get(name) != inputs.get(name)
        ]
        old, new = (inside(some, self.folder) for some in (record.settings, plain(settings)))
        return list(changes(old, new)), names


def inside(value: Any, folder: Path) -> Any:
    """Plain settings with paths in `folder` relative to it, so that a project can be moved."""
    if isinstance(value, dict):
        return {key: inside(one, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [inside(one, folder) for one in value]
    root = f"{folder}/"
    return value.removeprefix(root) if isinstance(value, str) and value.startswith(root) else value
