"""Plain values: what JSON can hold, in bounds, so that nothing behind has to expect more."""

import math
from collections.abc import Iterable, Mapping

from mgen.utils.errors import MgenError, shown

MOST_DEPTH = 60
MOST_VALUES = 2_000_000
LARGEST = 2**63

Place = tuple[object, ...]  # keys and numbers of entries, from the top


def check_plain(data: object, where: str = "", *, most: int = MOST_VALUES) -> None:
    """Raise MgenError, with `where` in front of the key, for values that no setting can have.

    Allowed are mappings with text keys, lists, text, true, false, null, finite numbers and integers of 64 bits; 60 levels deep and
    `most` values at most. Values that stand in several places (aliases in YAML) count every time.
    """
    whole = where.rstrip(".: ") or "the settings"
    count = 1

    def visit(value: object, place: Place, *key: object) -> None:
        nonlocal count
        if isinstance(value, Mapping | list | tuple):
            place += key
            count += len(value)
            if count > most:
                raise MgenError(f"{whole} holds more than {most:,} values: make it smaller")
            if len(place) >= MOST_DEPTH:
                raise MgenError(f"{whole} is nested more than {MOST_DEPTH} levels deep")
            entries: Iterable[tuple[object, object]] = enumerate(value)
            if isinstance(value, Mapping):
                entries = value.items()
                for name in value:
                    if not isinstance(name, str):
                        raise MgenError(f"key {shown(name)} in {_name(where, place)} is no text: write it in quotes")
                    if fault := _fault(name):
                        raise MgenError(f"a key in {_name(where, place)} {fault}")
            for name, inner in entries:
                visit(inner, place, name)
        elif fault := _fault(value):
            raise MgenError(f"{_name(where, (*place, *key))} {fault}")

    visit(data, ())


def _fault(value: object) -> str:
    """What is wrong with a value that holds no others; empty if nothing is."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, str):
        if "\0" in value:
            return f"is {shown(value)}: leave out the null character"
        return (
            ""
            if value.isascii() or _is_text(value)
            else f"is {shown(value)}: half a character, which is no text in UTF-8"
        )
    if isinstance(value, int):
        return "" if abs(value) < LARGEST else f"is {shown(value)}: a number of at most 64 bits is needed"
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"is {value}: a finite number is needed"
    return f"is a {type(value).__name__}: settings are numbers, texts, lists and mappings"


def _is_text(value: str) -> bool:
    """Whether UTF-8 can write a text: JSON and YAML can spell halves of surrogate pairs, such as "\\ud800"."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(where: str, place: Place) -> str:
    key = ".".join(map(str, place))
    if where.endswith(": ") and key:  # the name of a file or an option, which stands outside of the quotes
        return f"{where}'{key}'"
    name = f"{where}{key}".rstrip(".: ")
    return "the top level" if not name else name if "'" in name else f"'{name}'"
