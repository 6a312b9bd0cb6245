"""Results of mgen eval, read for a report: checked, so that what follows need not ask."""

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mgen.utils.errors import MgenError
from mgen.utils.files import read_json

Result = dict[str, Any]
FORMAT = 2
KEYS: dict[str, type | tuple[type, ...]] = {
    "title": str,
    "command": str,
    "created": str,
    "metrics": dict,
    "deviations": dict,
    "better": dict,
    "missing": dict,
    "by_class": dict,
    "class_names": list,
    "count": int,
    "images": dict,
    "protocol": dict,
    "extractor": dict,
    "reference": (dict, type(None)),
    "classifier": (dict, type(None)),
    "bootstrap": (dict, type(None)),
    "cost": (dict, type(None)),
    "nearest": (dict, type(None)),
    "note": (str, type(None)),
    "versions": dict,
}
AGAIN = "run mgen eval again"
DATA_URI = re.compile(r"data:image/(png|jpeg|gif|webp);base64,([A-Za-z0-9+/]+={0,2})")


@dataclass(kw_only=True)
class Run:
    """One result on a report: its number there (from 1), the result, its grid as a PNG and the grid's path from the report."""

    number: int
    result: Result
    grid: bytes | None = None
    grid_path: str = "grid.png"

    @property
    def title(self) -> str:
        return self.result["title"] or f"run {self.number}"


def read_result(path: str | Path) -> tuple[Result, Path]:
    """The result that a file or a folder with a result.json holds, checked, and the file.

    Raises:
        MgenError: no such file, not JSON, of an older version, or keys are missing or of another kind.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "result.json"
        if not file.is_file():
            raise MgenError(f"{path} holds no result.json: give a folder that mgen eval wrote (its --out), or the file")
    if not file.is_file():
        raise MgenError(f"no such file: {path}; give a result.json or the folder that mgen eval wrote it to")
    try:
        found = read_json(file)
    except MgenError as error:
        raise MgenError(f"{error}: {AGAIN}") from error
    return check_result(found, str(file)), file


def check_result(result: Any, where: str) -> Result:
    """Return `result`, its text fit for any file, if it is one of this version; else raise an MgenError that says what is wrong."""
    if not isinstance(result, dict) or "metrics" not in result:
        raise MgenError(f"{where} is not a result of mgen eval: give the result.json that it writes")
    if result.get("format") != FORMAT:
        newer = isinstance(result.get("format"), int) and result["format"] > FORMAT
        raise MgenError(
            f"{where} has format {result['format']}, this version reads {FORMAT}: update mgen"
            if newer
            else f"{where} was measured by an older version of mgen, whose numbers lack their protocol: {AGAIN}"
        )
    if missing := [key for key in KEYS if key not in result]:
        raise MgenError(f"{where} lacks {', '.join(missing)}: it was cut or edited; {AGAIN}")
    for key, kind in KEYS.items():
        if not isinstance(result[key], kind) or isinstance(result[key], bool):
            raise MgenError(f"{where}: {key} is {type(result[key]).__name__}; it was edited, {AGAIN}")
    columns = {f"by_class: {name}": column for name, column in result["by_class"].items()}
    for key, numbers in {"metrics": result["metrics"], "deviations": result["deviations"], **columns}.items():
        if not isinstance(numbers, dict) or not all(is_number(x) or x is None for x in numbers.values()):
            raise MgenError(f"{where}: {key} does not hold a number for each name; it was edited, {AGAIN}")
    published = result.get("published") or {"rows": []}
    rows = published.get("rows") if isinstance(published, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise MgenError(f"{where}: published does not hold rows of figures; it was edited, {AGAIN}")
    _check_nearest(result["nearest"], where)
    return _clean(result)


def _clean(value: Any) -> Any:
    """Text without what UTF-8 or XML cannot hold (names of files may be any bytes); keys become text, as in JSON."""
    if isinstance(value, str):
        return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\ufffd", value)
    if isinstance(value, dict):
        return {_clean(str(key)): _clean(part) for key, part in value.items()}
    return [_clean(part) for part in value] if isinstance(value, list | tuple) else value


def _check_nearest(nearest: Result | None, where: str) -> None:
    """Images must be in the file itself: a report never fetches anything."""
    try:
        if not is_number((nearest or {}).get("typical") or 0):
            raise TypeError
        for row in (nearest or {}).get("rows", []):
            for shown in (row, *row["neighbors"]):
                image_size(shown["image"])
                if not is_number(shown["distance"]):
                    raise TypeError
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MgenError(
            f"{where}: nearest does not hold rows of images (data:image/png;base64,…) with distances; {AGAIN}"
        ) from error


def image_size(uri: str) -> tuple[int, int]:
    """Width and height of an image given as a data URI; ValueError if it is none."""
    if not (match := DATA_URI.fullmatch(uri)):
        raise ValueError("not an image as a data URI")
    try:
        with Image.open(io.BytesIO(base64.b64decode(match[2]))) as image:
            return image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
