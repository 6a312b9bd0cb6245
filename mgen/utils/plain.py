"""Plain values: what JSON can hold, in bounds, so that nothing behind has to expect more."""

import math
from collections.abc import Mapping

from mgen.utils.errors import MgenError, shown

MOST_DEPTH = 60
MOST_VALUES = 2_000_000
LARGEST = 2**63


def check_plain(data: object, where: str = "", *, most: int = MOST_VALUES) -> None:
    """Raise MgenError, with `where` in front of the key, for values that no setting can have.

    Allowed are mappings with text keys, lists, text, true, false, null, finite numbers and integers of 64 bits; 60 levels deep and
    `most` values at most. Values that stand in several places (aliases in YAML) count every time.
    """
    count = 0
    stack: list[tuple[object, tuple[object, ...]]] = [(data, ())]
    while stack:
        value, place = stack.pop()
        count += 1
        if count > most:
            raise MgenError(f"{where.rstrip('.: ') or 'the settings'} holds more than {most:,} values: make it smaller")
        if len(place) > MOST_DEPTH:
            raise MgenError(f"{where.rstrip('.: ') or 'the settings'} is nested more than {MOST_DEPTH} levels deep")
        if value is None or isinstance(value, bool):
            continue
        if isinstance(value, str):
            if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise MgenError(f"{_name(where, place)} is {shown(value)}: half a character, which is no text in UTF-8")
            continue
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise MgenError(f"key {shown(key)} in {_name(where, place)} is no text: write it in quotes")
                stack.append((inner, (*place, key)))
        elif isinstance(value, list | tuple):
            stack += [(inner, (*place, i)) for i, inner in enumerate(value)]
        elif isinstance(value, int):
            if abs(value) >= LARGEST:
                raise MgenError(f"{_name(where, place)} is {shown(value)}: a number of at most 64 bits is needed")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise MgenError(f"{_name(where, place)} is {value}: a finite number is needed")
        else:
            raise MgenError(
                f"{_name(where, place)} is a {type(value).__name__}: settings are numbers, texts, lists and mappings"
            )


def _name(where: str, place: tuple[object, ...]) -> str:
    name = f"{where}{'.'.join(map(str, place))}".rstrip(".: ")
    return f"'{name}'" if name else "the top level"
