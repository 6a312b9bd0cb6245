"""Schemas: frozen dataclasses whose values are checked, by pydantic, wherever one is made.

    @schema
    class UViTConfig:
        dim: Size = 768
        dropout: Share = 0.1

`UViTConfig(dim="32")` raises an MgenError, and so does `build(UViTConfig, {"dim": "32"}, "trunk.")`, which names the key. Nothing is
converted: "32", true and 32.0 are not whole numbers. Rules between fields go into `__post_init__`, which raises MgenError.

pydantic and not msgspec: it reports every key and value with its path, knows NaN, infinity and integers of any size, and checks a
dataclass that is made in Python just as one that comes from a file; its import, 70 ms by
`python -X importtime -c "from pydantic import TypeAdapter"`, is lost beside torch's seconds.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Hashable, Mapping
from typing import Annotated, Any, ParamSpec, TypeVar, cast, dataclass_transform, overload

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, validate_call
from pydantic.dataclasses import dataclass as pydantic_dataclass

from mgen.utils.errors import MgenError, shown
from mgen.utils.paths import path_fault
from mgen.utils.plain import check_plain
from mgen.utils.schema_errors import explained

T = TypeVar("T")
P = ParamSpec("P")

# Numbers of settings. All are finite.
Size = Annotated[int, Field(ge=1, le=2**20)]  # widths, lengths, sides
Depth = Annotated[int, Field(ge=0, le=1000)]  # numbers of layers, where none will do
Layers = Annotated[int, Field(ge=1, le=1000)]  # where one at least is needed
Count = Annotated[int, Field(ge=1, le=2**53)]
Natural = Annotated[int, Field(ge=0, le=2**53)]  # 0 and more
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]  # of dropout
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
# `Listed[tuple[Size, ...]]` takes a list too, also in Python. Not for tuples of schemas.
Listed = Annotated[T, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]


def path_text(value: str) -> str:
    """A path with `~` as the home folder and no slash at its end."""
    value = os.path.expanduser(value)
    if not value.strip():
        raise MgenError(f"{shown(value)} is no path")
    if fault := path_fault(value):
        raise MgenError(f"{shown(value)} {fault}")
    return value.rstrip("/") or "/"


PathText = Annotated[str, Field(min_length=1), AfterValidator(path_text)]  # of a file or folder, or the name of a model

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
        made: T = _adapter(cast(Hashable, cls)).validate_json(json.dumps(data, default=dict))
        return made
    except ValidationError as error:
        raise explained(error, cls, where) from error


@functools.cache
def _adapter(cls: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(type, cls))
