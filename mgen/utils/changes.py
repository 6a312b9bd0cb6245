"""Settings and configurations as plain values, and how two of them differ."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mgen.utils.errors import MgenError, shown

Change = tuple[str, object, object]  # key, old and new value


def plain(settings: object) -> Any:
    """Settings as JSON would give them back: tuples become lists; keys that start with "_" are left out of a mapping."""
    if isinstance(settings, Mapping):
        settings = {key: value for key, value in settings.items() if not key.startswith("_")}
    return json.loads(json.dumps(settings, default=list))


def changes(old: object, new: object, key: str = "") -> Iterator[Change]:
    """What differs between two plain values, by key."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            yield from changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new


def differs(where: object, what: str, found: list[Change], option: str = "--out") -> MgenError:
    """The error of a folder that holds something of other settings: all that differ, by name, with both values."""
    return MgenError(
        f"{where} holds {what} of other settings: {told(found, 12)}; choose another {option}, or replace it with --overwrite"
    )


def told(found: list[Change], most: int = 5) -> str:
    """Changes as text, the first few of them."""
    text = ", ".join(
        f"{key[:60]} was {_value(key, old)}, now it is {_value(key, new)}" for key, old, new in found[:most]
    )
    return text if len(found) <= most else f"{text} and {len(found) - most} more"


def _value(key: str, value: object) -> str:
    """A value as text; a hash by its first digits."""
    return f"{value[:8]}…" if key.endswith("sha256") and isinstance(value, str) else shown(value)
