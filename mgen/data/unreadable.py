"""What happens to an image that can't be read: an error, or the next one takes its place."""

import warnings
from collections.abc import Callable
from typing import Literal, TypeAlias

from torch import Tensor

from mgen.utils.errors import MgenError, one_line

OnError: TypeAlias = Literal["raise", "skip"]
MOST_IN_A_ROW = 100

_seen: set[tuple[str, int]] = set()  # images of this process that were replaced


def load_or_next(
    load: Callable[[int], Tensor], i: int, count: int, *, on_error: OnError, what: str
) -> tuple[int, Tensor]:
    """Image i, or the first one behind it that can be read, and its number. The choice depends on the data alone.

    Args:
        count: of all images. what: the data, for messages.

    Raises:
        MgenError: with "raise" that of the image; with "skip" if a hundred in a row can't be read.
    """
    first: MgenError | None = None
    for step in range(min(count, MOST_IN_A_ROW)):
        number = (i + step) % count
        try:
            return number, load(number)
        except MgenError as error:
            if on_error == "raise":
                raise
            first = first or error
            _count(what, number, error)
    raise MgenError(f"{what}: {min(count, MOST_IN_A_ROW)} images in a row can't be read, the first: {first}")


def _count(what: str, number: int, error: MgenError) -> None:
    """Warn of the first, the tenth, the hundredth … image of this process."""
    _seen.add((what, number))
    if str(len(_seen)).strip("0") == "1":
        total = f"{len(_seen)} images" if len(_seen) > 1 else "an image"
        warnings.warn(one_line(f"{what}: {total} can't be read, the next one takes the place: {error}"), stacklevel=4)
