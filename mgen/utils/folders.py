"""Where the parts of the package are on disk, in a checkout or an installed wheel.

`tokenizers/`, `samplers/` and `configs/` are top-level folders of the repository but belong to the package: a wheel has them as
`mgen/tokenizers`, `mgen/samplers` and `mgen/configs`, a checkout next to the folder `mgen`.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def part(name: str) -> Path:
    """Folder of "tokenizers", "samplers" or "configs": inside the package in a wheel, next to it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def shipped(kind: str) -> dict[str, Path]:
    """The files of configs/models, recipes, sweeps or train by name, sorted."""
    return {file.stem: file for file in sorted((part("configs") / kind).glob("*.yaml"), key=lambda file: file.stem)}


def first_comment(file: Path) -> str:
    """What the comment in the first line of a file says, "" without one."""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def embedded(name: str = "") -> Path:
    """Folder of the embedded models, or of the one called `name`."""
    return PACKAGE / "zoo" / "embedded" / name
