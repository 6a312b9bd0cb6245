"""What a validation by pydantic found, in one line: the key, the value, what is allowed (see mgen.utils.schema)."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mgen.utils.errors import MgenError, shown, suggestion

Place = tuple[int | str, ...]

_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "dataclass_type": "a mapping",
    "dataclass_exact_type": "a mapping",
    "none_required": "null",
    "string_too_short": "a text that is not empty",
}
_UNKNOWN = ("unexpected_keyword_argument", "unexpected_positional_argument", "extra_forbidden")
_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
_VALUES = ("value_error", "string_too_short", "too_short")  # of values that have the right type
_LIMITS = {
    "greater_than_equal": ("ge", "at least {}"),
    "greater_than": ("gt", "more than {}"),
    "less_than_equal": ("le", "at most {}"),
    "less_than": ("lt", "less than {}"),
}


class Found(NamedTuple):
    """An error and the keys that lead to it. In a union each member has errors of its own: `member` is which, as pydantic calls it,
    and `union` the number of keys that lead there."""

    error: ErrorDetails
    place: Place
    member: Place = ()
    union: int = 0

    @property
    def unknown(self) -> bool:
        return self.error["type"] in _UNKNOWN

    @property
    def depth(self) -> tuple[int, bool]:
        """How far the validation got: keys, and whether the value at the last one has the right type."""
        return len(self.place), self.unknown or self.error["type"] in (*_LIMITS, *_VALUES)


def explained(error: ValidationError, cls: object, where: str) -> MgenError:
    """The first thing that a validation of the schema or function `cls` found; `where` stands in front of the key."""
    found = [_located(e, cls) for e in error.errors(include_url=False)]
    best = _meant([f for f in found if not f.member] or found)
    return MgenError(_sentence(best, [f for f in found if f.place == best.place], cls, where))


def _meant(found: list[Found]) -> Found:
    """The error to tell."""
    first = found[0]
    if (
        first.member
    ):  # of a union: of the members that the value could be, one that knows all its keys, or where most was right
        top = first.place[: first.union]
        found = [f for f in found if f.place[: first.union] == top]
        found = [f for f in found if f.depth > (first.union, False)] or [first]
        strange = {f.member for f in found if f.unknown}
        found = sorted((f for f in found if f.member not in strange), key=lambda f: f.depth, reverse=True) or found
    # An unknown key first: it often is a misspelled one that is missing.
    return next((f for f in found if f.unknown), found[0])


def _sentence(found: Found, same: Iterable[Found], cls: object, where: str) -> str:
    error, place = found.error, found.place
    kind, given = error["type"], error["input"]
    name = f"{where}{'.'.join(map(str, place))}".rstrip(".: ")
    if kind == "unexpected_positional_argument":
        function = where.rstrip(".") or getattr(cls, "__qualname__", "this").removesuffix(".__init__")
        return f"{function} takes arguments by name, got {shown(given)}"
    if found.unknown:
        return f"unknown key '{name}': {suggestion(str(place[-1]), _names(cls, place[:-1]))}"
    if kind in _MISSING:
        if place and isinstance(place[-1], int):
            return f"'{where}{'.'.join(map(str, place[:-1]))}' takes more values: got {shown(given)}"
        return f"missing key '{name}'"
    if kind == "too_long" and isinstance(given, list | tuple):
        return f"'{name}' takes {error['ctx'].get('max_length')} values, got {len(given)}: {shown(given)}"
    if kind == "too_short" and isinstance(given, list | tuple):
        return f"'{name}' is {shown(given)}: at least {error['ctx'].get('min_length')} values are needed"
    if kind == "value_error":  # of a __post_init__, or of a validator
        own = error["ctx"]["error"]
        return f"{name}: {own}" if name else str(own)
    if kind in _LIMITS:
        limit, phrase = _LIMITS[kind]
        bound = error["ctx"][limit]
        return (
            f"'{name}' is {shown(given)}: allowed is {phrase.format(bound if isinstance(bound, int) else f'{bound:g}')}"
        )
    kinds = dict.fromkeys(_kind(f.error) for f in same if f.error["type"] in _KINDS)
    choices = _choices(cls, place)
    if choices and isinstance(given, str):
        return f"'{name}' is {shown(given)}: {suggestion(given, choices)}{''.join(f', or {k}' for k in kinds)}"
    words = " or ".join((*choices, *kinds))
    if not words:
        return f"'{name}' is {shown(given)}: {error['msg'][:1].lower()}{error['msg'][1:]}"
    return f"'{name}' takes {words}, got {shown(given)}"


def _kind(error: ErrorDetails) -> str:
    """What is allowed, of an error of type; in Python a list is no tuple and a mapping no schema."""
    kind, given = error["type"], error["input"]
    if kind == "tuple_type" and isinstance(given, list):
        return "a tuple"
    if kind == "dataclass_exact_type":
        return f"an instance of {error['ctx']['class_name']}"
    return _KINDS[kind]


# -- places and what is allowed there --------------------------------------------------------------------------------------


def _located(error: ErrorDetails, cls: object) -> Found:
    """The keys of an error's location, apart from the names that pydantic gives to the members of a union."""
    place: list[int | str] = []
    members: list[int | str] = []
    union = 0
    hints, loc = [cls], error["loc"]
    if _is_function(cls) and loc:
        loc = (_parameter(cls, loc[0]), *loc[1:])
    for i, part in enumerate(loc):
        below = [h for hint in hints for h in _below(hint, part)]
        if below or (i == len(loc) - 1 and error["type"] in (*_UNKNOWN, *_MISSING)):
            place.append(part)
            hints = below
        else:
            union = union if members else len(place)
            members.append(part)
    return Found(error, tuple(place), tuple(members), union)


def _members(hint: object) -> list[object]:
    """The types that a hint allows, but None."""
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    if get_origin(hint) in (typing.Union, types.UnionType):
        return [m for arg in get_args(hint) for m in _members(arg)]
    return [] if hint is type(None) else [hint]


def _is_function(member: object) -> bool:
    return callable(member) and not isinstance(member, type) and hasattr(member, "__annotations__")


def _fields(hint: object) -> dict[str, object]:
    """Names and hints of a dataclass or function, {} for other types."""
    found: dict[str, object] = {}
    for member in _members(hint):
        if dataclasses.is_dataclass(member):
            found |= {f.name: f.type for f in dataclasses.fields(member)} | _hints(member)
        elif _is_function(member):
            found |= {k: v for k, v in _hints(member).items() if k != "return"}
    return found


def _hints(member: object) -> dict[str, object]:
    try:
        return dict(typing.get_type_hints(member, include_extras=True))
    except NameError:  # names that are imported for type checkers only
        return dict(getattr(member, "__annotations__", {}))


def _below(hint: object, part: int | str) -> list[object]:
    """What the hint says about its entry `part`; empty if it has none of that name."""
    out: list[object] = []
    for member in _members(hint):
        origin, args = get_origin(member), get_args(member)
        if isinstance(part, str) and part in (fields := _fields(member)):
            out.append(fields[part])
        elif isinstance(part, str) and _is_function(member):  # **kwargs
            out += [p.annotation for p in _parameters(member) if p.kind is p.VAR_KEYWORD]
        elif isinstance(part, int) and origin in (tuple, list) and args:
            out.append(args[part] if origin is tuple and Ellipsis not in args and part < len(args) else args[0])
        elif isinstance(part, str) and origin is dict and args:
            out.append(args[1])
    return out


def _parameters(function: object) -> list[inspect.Parameter]:
    return list(inspect.signature(typing.cast(typing.Callable[..., object], function)).parameters.values())


def _parameter(function: object, key: int | str) -> int | str:
    """Name of an argument that was given by position."""
    named = (p.name for i, p in enumerate(_parameters(function)) if key == i or p.kind is p.VAR_POSITIONAL)
    return next(named, key) if isinstance(key, int) else key


def _at(cls: object, place: Place) -> list[object]:
    hints = [cls]
    for part in place:
        hints = [h for hint in hints for h in _below(hint, part)]
    return hints


def _names(cls: object, place: Place) -> list[str]:
    """Valid keys at a place."""
    return [name for hint in _at(cls, place) for name in _fields(hint)]


def _choices(cls: object, place: Place) -> list[str]:
    """Values of the Literals at a place."""
    members = [m for hint in _at(cls, place) for m in _members(hint)]
    return [str(value) for m in members if get_origin(m) is Literal for value in get_args(m)]
