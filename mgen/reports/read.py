"""Results of mgen eval, read for a report and checked, so that the rest of the code can rely on them."""

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, cast

from PIL import Image

from mgen.evaluation.result import FORMAT, Result
from mgen.evaluation.result_file import Nearest, ResultFile
from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.files import finite
from mgen.utils.reading import check_file, read_json
from mgen.utils.schema import build

AGAIN = "run mgen eval again"
PICTURES = ("PNG", "JPEG", "GIF", "WEBP")  # formats of a browser; for others Pillow may start another program
MOST_GRID = 2**28  # bytes of a grid.png
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
    try:
        found = read_json(check_file(file))
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
    try:
        data = cast(dict[str, object], _clean(finite(result)))
        _check_nearest(build(ResultFile, data).nearest)
    except MgenError as error:
        raise MgenError(f"{where}: {error}; it was truncated or edited, {AGAIN}") from error
    return cast(Result, data)


def cleaned(text: str) -> str:
    """The text without characters that UTF-8 or XML cannot hold; file names may be any bytes."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def _clean(value: object) -> object:
    """A value with cleaned text; keys become text, as in JSON."""
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, dict):
        return {_clean(str(key)): _clean(part) for key, part in value.items()}
    return [_clean(part) for part in value] if isinstance(value, list | tuple) else value


def _check_nearest(nearest: Nearest | None) -> None:
    """Images must be in the file itself, because a report loads nothing from elsewhere."""
    for image in [image for row in (nearest.rows if nearest else ()) for image in (row, *row.neighbors)]:
        try:
            image_size(image.image)
        except ValueError as error:
            raise MgenError(
                f"nearest does not hold rows of images (data:image/png;base64,…) with distances: {shown(image.image)}"
            ) from error


def image_size(uri: str) -> tuple[int, int]:
    """Width and height of an image given as a data URI; ValueError if it is not one."""
    if not (match := DATA_URI.fullmatch(uri)):
        raise ValueError("not an image as a data URI")
    try:
        with Image.open(io.BytesIO(base64.b64decode(match[2])), formats=PICTURES) as image:
            return image.size
    except Exception as error:  # decoders of damaged images fail in many ways
        raise ValueError(first_line(error)) from error


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether this is a number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
