"""Schemas: frozen dataclasses whose values are checked, by pydantic, wherever one is made.

    @schema
    class UViTConfig:
        dim: Size = 768
        dropout: Share = 0.1

`UViTConfig(dim="32")` raises an MgenError, and so does `build(UViTConfig, {"dim": "32"}, "trunk.")`, which names the key. Nothing is
converted: "32", true and 32.0 are not whole numbers. Rules between fields go into `__post_init__`, which raises MgenError.

pydantic and not msgspec: it reports every key and value with its path, knows NaN, infinity and integers of any size, and checks a
dataclass that is made in Python just as one that comes from a file; its 70 ms of import are lost beside torch's seconds.
"""

import dataclasses
import functools
import json
import os
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Annotated, Any, ParamSpec, TypeVar, cast, dataclass_transform, get_args, get_origin, overload

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, validate_call
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ErrorDetails

from mgen.utils.errors import MgenError, shown, suggestion
from mgen.utils.plain import check_plain

T = TypeVar("T")
P = ParamSpec("P")

# Numbers of settings. All are finite.
Size = Annotated[int, Field(ge=1, le=2**20)]  # widths, lengths, sides
Depth = Annotated[int, Field(ge=0, le=10_000)]  # numbers of layers
Count = Annotated[int, Field(ge=1, le=2**53)]
Natural = Annotated[int, Field(ge=0, le=2**53)]  # 0 and more
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]  # of dropout
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


def _path(value: str) -> str:
    """A path with `~` as the home folder and no slash at its end."""
    value = os.path.expanduser(value)
    if not value.strip() or "\0" in value:
        raise MgenError(f"{shown(value)} is no path")
    longest = max(len(os.fsencode(part)) for part in value.split("/"))
    if longest > 255 or len(os.fsencode(os.path.abspath(value))) > 4095:  # of Linux
        raise MgenError(f"{shown(value)} is too long: a name has 255 bytes at most, a path 4095")
    return value.rstrip("/") or "/"


PathText = Annotated[str, Field(min_length=1), AfterValidator(_path)]  # of a file or folder, or the name of a model

# protected_namespaces: pydantic keeps the names model_… for itself, unless told otherwise.
_CONFIG = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=()
)


@overload
def schema(cls: type[T]) -> type[T]: ...
@overload
def schema(*, frozen: bool = True, extra: bool = False) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, Field))
def schema(cls: type[T] | None = None, *, frozen: bool = True, extra: bool = False) -> Any:
    """Decorator: a dataclass with keyword arguments only, checked when it is made; MgenError for anything wrong.

    Args:
        frozen: no field can be assigned later. extra: keys without a field are passed over, for files that others write.
    """

    def decorate(cls: type[T]) -> type[T]:
        config = ConfigDict(**{**_CONFIG, "extra": "ignore"}) if extra else _CONFIG
        made = pydantic_dataclass(frozen=frozen, kw_only=True, config=config)(cls)
        check = made.__init__

        @functools.wraps(check)
        def init(self: object, *args: object, **kwargs: object) -> None:
            try:
                check(self, *args, **kwargs)
            except ValidationError as error:
                raise explained(error, made, f"{made.__name__}.") from error

        made.__init__ = init  # type: ignore[method-assign,assignment]
        return cast("type[T]", made)

    return decorate if cls is None else decorate(cls)


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: the arguments of a function are checked against its annotations; MgenError for the first that is wrong."""
    validating = validate_call(config=_CONFIG)(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return validating(*args, **kwargs)
        except ValidationError as error:
            raise explained(error, function, "") from error

    return call


def build(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """A schema, or any annotated type, from the values of a file; MgenError, with `where` in front of the key, for anything wrong."""
    if not isinstance(data, Mapping):
        raise MgenError(f"{where.rstrip('.: ') or 'this'} is {shown(data)}: expected a mapping")
    check_plain(data, where)
    try:
        # As JSON, so that lists can become tuples and mappings schemas, and nothing else is converted.
        made: T = _adapter(cls).validate_json(json.dumps(data))
        return made
    except ValidationError as error:
        raise explained(error, cls, where) from error


@functools.cache
def _adapter(cls: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(type, cls))


# -- error texts -----------------------------------------------------------------------------------------------------------

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
    "none_required": "null",
    "string_too_short": "a text that is not empty",
}
_UNKNOWN = ("unexpected_keyword_argument", "unexpected_positional_argument", "extra_forbidden")
_LIMITS = {
    "greater_than_equal": ("ge", "at least {}"),
    "greater_than": ("gt", "more than {}"),
    "less_than_equal": ("le", "at most {}"),
    "less_than": ("lt", "less than {}"),
}


def explained(error: ValidationError, cls: object, where: str) -> MgenError:
    """The first thing that a validation found, in one line."""
    # An unknown key first: it often is a misspelled one that is missing.
    found = sorted(error.errors(include_url=False), key=lambda e: e["type"] not in _UNKNOWN)
    top = _place(found[0]["loc"], cls)
    # One entry for each member of a union; one that got further than the others tells more.
    same = [e for e in found if _place(e["loc"], cls)[: len(top)] == top]
    deepest = max(same, key=lambda e: len(_place(e["loc"], cls)))
    return MgenError(_sentence(deepest, same, cls, where))


def _sentence(error: ErrorDetails, same: Iterable[ErrorDetails], cls: object, where: str) -> str:
    kind, given = error["type"], error["input"]
    place = _place(error["loc"], cls)
    name = f"{where}{'.'.join(map(str, place))}".rstrip(".")
    if kind in _UNKNOWN:
        return f"unknown key '{name}': {suggestion(str(place[-1]), _names(cls, place[:-1]))}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        if place and isinstance(place[-1], int):
            return f"'{where}{'.'.join(map(str, place[:-1]))}' takes more values: got {shown(given)}"
        return f"missing key '{name}'"
    if kind == "too_long" and isinstance(given, list | tuple):
        return f"'{name}' takes {error['ctx'].get('max_length')} values, got {len(given)}: {shown(given)}"
    if isinstance(own := error.get("ctx", {}).get("error"), MgenError):  # of a __post_init__ or a validator
        return f"{name.rstrip(': ')}: {own}" if name else str(own)
    if kind == "literal_error":
        allowed = [str(v).strip("'") for v in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return f"'{name}' is {shown(given)}: {suggestion(str(given), allowed)}"
    if kind in _LIMITS:
        limit, phrase = _LIMITS[kind]
        return f"'{name}' is {shown(given)}: allowed is {phrase.format(error['ctx'][limit])}"
    words = list(dict.fromkeys(_KINDS[e["type"]] for e in same if e["type"] in _KINDS))
    if not words:
        return f"'{name}' is {shown(given)}: {error['msg'][:1].lower()}{error['msg'][1:]}"
    return f"'{name}' takes {' or '.join(words)}, got {shown(given)}"


def _place(loc: tuple[int | str, ...], cls: object) -> tuple[int | str, ...]:
    """The keys of a location, without the names that pydantic gives to the members of a union."""
    place: list[int | str] = []
    hints = [cls]
    for part in loc:
        below = [h for hint in hints for h in _below(hint, part)]
        if below:
            place.append(part)
            hints = below
        elif part == loc[-1] and any(_fields(hint) for hint in hints) and not _is_member(part, hints):
            place.append(part)  # an unknown key
    return tuple(place)


def _is_member(part: int | str, hints: list[object]) -> bool:
    """Whether `part` is the name of a member of a union among `hints`."""
    names = {getattr(m, "__name__", "") for hint in hints for m in _members(hint)}
    return isinstance(part, str) and (part in names or "[" in part)


def _members(hint: object) -> list[object]:
    """The types that a hint allows, but None."""
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    if get_origin(hint) in (typing.Union, types.UnionType):
        return [m for arg in get_args(hint) for m in _members(arg)]
    return [] if hint is type(None) else [hint]


def _fields(hint: object) -> dict[str, object]:
    """Names and hints of a dataclass or function, {} for other types."""
    found: dict[str, object] = {}
    for member in _members(hint):
        if dataclasses.is_dataclass(member):
            found |= {f.name: f.type for f in dataclasses.fields(member)} | {
                k: v for k, v in typing.get_type_hints(member, include_extras=True).items()
            }
        elif callable(member) and not isinstance(member, type) and hasattr(member, "__annotations__"):
            found |= {k: v for k, v in typing.get_type_hints(member, include_extras=True).items() if k != "return"}
    return found


def _below(hint: object, part: int | str) -> list[object]:
    """What the hint says about its entry `part`; empty if it has none of that name."""
    out: list[object] = []
    for member in _members(hint):
        origin, args = get_origin(member), get_args(member)
        if isinstance(part, str) and part in (fields := _fields(member)):
            out.append(fields[part])
        elif isinstance(part, int) and origin in (tuple, list) and args:
            out.append(args[part] if origin is tuple and Ellipsis not in args and part < len(args) else args[0])
        elif isinstance(part, str) and origin is dict and args:
            out.append(args[1])
    return out


def _names(cls: object, place: tuple[int | str, ...]) -> list[str]:
    """Valid keys at a place."""
    hints = [cls]
    for part in place:
        hints = [h for hint in hints for h in _below(hint, part)]
    return [name for hint in hints for name in _fields(hint)]
