"""Where the parts of this package lie on disk, in a checkout and in an installed wheel alike.

`tokenizers/`, `samplers/` and `configs/` stand at the top level of the repository but belong to the package: a wheel
carries them as `mgen/tokenizers`, `mgen/samplers` and `mgen/configs`, a checkout has them beside the folder `mgen`.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def part(name: str) -> Path:
    """Folder of the part `name` ("tokenizers", "samplers" or "configs"): inside the package if there, else beside it."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def embedded(name: str = "") -> Path:
    """Folder of the weights shipped inside the package, or of the one called `name`."""
    return PACKAGE / "zoo" / "embedded" / name
