"""Results of mgen eval, read for a report and checked, so that the rest of the code can rely on them."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TypeGuard, cast

from PIL import Image

from mgen.evaluation.result import FORMAT, NearestImages, Result
from mgen.utils.errors import MgenError
from mgen.utils.files import read_json

_KINDS: Sequence[tuple[type | UnionType, str]] = (
    (str, "title command created"),
    (dict, "metrics deviations better missing by_class"),
    (list, "class_names"),
    (int, "count"),
    (dict, "images protocol extractor"),
    (dict | None, "reference classifier bootstrap cost nearest"),
    (str | None, "note"),
    (dict, "versions"),
)
KEYS = {key: kind for kind, keys in _KINDS for key in keys.split()}
AGAIN = "run mgen eval again"
DATA_URI = re.compile(r"data:image/(png|jpeg|gif|webp);base64,([A-Za-z0-9+/]+={0,2})")


@dataclass(kw_only=True)
class ReportRun:
    """One result in a report: its number (from 1), the result, its grid as an image file, and the grid's path from the report."""

    number: int
    result: Result
    grid: bytes | None = None
    grid_path: str = "grid.png"

    @property
    def title(self) -> str:
        return self.result["title"] or f"run {self.number}"


def read_result(path: str | Path) -> tuple[Result, Path]:
    """The checked result of a file, or of a folder with a result.json, and the path of the file.

    Raises:
        MgenError: the file is missing or not JSON, has another format, or keys are missing or of the wrong type.
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


def check_result(result: object, where: str) -> Result:
    """Return `result` with its text cleaned if it has the current format; else raise an MgenError that says what is wrong."""
    if not isinstance(result, dict) or "metrics" not in result:
        raise MgenError(f"{where} is not a result of mgen eval: give the result.json that it writes")
    if result.get("format") != FORMAT:
        newer = isinstance(result.get("format"), int) and result["format"] > FORMAT
        raise MgenError(
            f"{where} has format {result['format']}, but this version reads {FORMAT}: update mgen"
            if newer
            else f"{where} was measured by an older version of mgen, whose numbers lack their protocol: {AGAIN}"
        )
    if missing := [key for key in KEYS if key not in result]:
        raise MgenError(f"{where} lacks {', '.join(missing)}: it was truncated or edited; {AGAIN}")
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
        raise MgenError(f"{where}: published does not hold rows of metrics; it was edited, {AGAIN}")
    _check_nearest(result["nearest"], where)
    return cast(Result, _clean(result))


def _clean(value: object) -> object:
    """Replace characters that UTF-8 or XML cannot hold (file names may be any bytes); keys become text, as in JSON."""
    if isinstance(value, str):
        return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\ufffd", value)
    if isinstance(value, dict):
        return {_clean(str(key)): _clean(part) for key, part in value.items()}
    return [_clean(part) for part in value] if isinstance(value, list | tuple) else value


def _check_nearest(nearest: NearestImages | None, where: str) -> None:
    """Images must be in the file itself, because a report loads nothing from elsewhere."""
    if nearest is None:
        return
    try:
        shown = [image for row in nearest.get("rows", []) for image in (row, *row["neighbors"])]
        for image in shown:
            image_size(image["image"])
        if not all(map(is_number, [nearest.get("typical") or 0, *(image["distance"] for image in shown)])):
            raise TypeError
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MgenError(
            f"{where}: nearest does not hold rows of images (data:image/png;base64,…) with distances; {AGAIN}"
        ) from error


def image_size(uri: str) -> tuple[int, int]:
    """Width and height of an image given as a data URI; ValueError if it is not one."""
    if not (match := DATA_URI.fullmatch(uri)):
        raise ValueError("not an image as a data URI")
    try:
        with Image.open(io.BytesIO(base64.b64decode(match[2]))) as image:
            return image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether this is a number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
