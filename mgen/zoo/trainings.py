"""The logs of the shipped models' trainings, for comparison with one's own: metrics.jsonl and training.json, a few kilobytes each."""

from pathlib import Path

from mgen.utils.errors import MgenError, suggestion
from mgen.utils.folders import embedded
from mgen.utils.reading import check_path

LOG = "metrics.jsonl"


def shipped_trainings() -> dict[str, Path]:
    """Name → folder of each: fmnist-maskgit, fmnist-mar, their tokenizers, the classifiers."""
    found = [*embedded().glob(f"*/{LOG}"), *embedded().glob(f"*/training/*/{LOG}")]
    return {file.parent.name: file.parent for file in sorted(found, key=lambda file: file.parent.name)}


def is_training(name: str | Path) -> bool:
    """Whether this is a folder of a training, or the name of a shipped one."""
    path = Path(name)
    return (path / LOG).is_file() or path.name == LOG or (not path.exists() and str(name) in shipped_trainings())


def find_training(name: str | Path, option: str = "") -> Path:
    """The folder of a training: a path, or the name of a shipped one; MgenError, beginning with `option`, if there is none."""
    path, shipped = check_path(name, option or "training"), shipped_trainings()
    said = f"{option} {name}".strip()
    if path.name == LOG and path.is_file():
        return path.parent
    if (path / LOG).is_file():
        return path
    if str(name) in shipped:
        return shipped[str(name)]
    if path.exists():
        raise MgenError(f"{said} is no folder of a training: expected one with {LOG}, which mgen train writes")
    raise MgenError(
        f"{said}: no such folder, and no shipped training has that name. {suggestion(str(name)[:60], shipped)}"
    )
