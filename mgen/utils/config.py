"""Configuration files: YAML with `extends:`, dotted overrides, typed dataclasses; unknown keys raise an error."""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

import yaml

from mgen.utils.errors import MgenError, check_keys, suggestion

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
# A mapping parsed from YAML or JSON, or one bound for it. Whoever reads a value checks its type.
Settings: TypeAlias = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number, which is a string in YAML 1.1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_config(path: str | Path) -> Settings:
    """The mapping in a YAML file, merged over the file that `extends: other.yaml` names (relative to it); MgenError if there is none."""
    path = Path(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise MgenError(f"cannot read config {path} ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MgenError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise MgenError(f"{path} holds no settings: expected a YAML mapping such as 'task: generator'")
    base = data.pop("extends", None)
    return merge(read_config(path.parent / base), data) if base else data


def merge(base: Settings, over: Settings) -> Settings:
    """`base` updated with `over`: mappings are merged recursively, other values replaced."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def apply_overrides(data: Settings, overrides: Sequence[str]) -> Settings:
    """Apply overrides such as "key.sub=value" to `data`; values are read as YAML."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise MgenError(f"override {text!r} is not of the form key.sub=value")
        try:
            nested = yaml.load(value, _Loader)
        except yaml.YAMLError as error:
            raise MgenError(f"override {text!r}: the value is not valid YAML") from error
        for part in reversed(key.split(".")):
            nested = {part: nested}
        data = merge(data, nested)
    return data


def build(cls: type[T], data: Settings, where: str = "") -> T:
    """A dataclass from a mapping, converted field by field; MgenError for an unknown or missing key or a value of the wrong type."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    check_keys(data, fields, where)
    values = {key: _convert(hints[key], value, f"{where}{key}") for key, value in data.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise MgenError(f"missing key '{where}{name}'")
    make: Callable[..., T] = cls
    return make(**values)


def _convert(hint: object, value: object, where: str) -> object:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or (origin is dict and isinstance(value, dict)):
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        *others, last = (arg for arg in args if arg is not type(None))
        for arg in others:
            with suppress(MgenError):
                return _convert(arg, value, where)
        return _convert(last, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return build(typing.cast(type, hint), value, f"{where}.")
    if origin is Literal:
        if value in args:
            return value
        raise MgenError(f"'{where}' is {value!r}: {suggestion(str(value), map(str, args))}")
    if origin is tuple and isinstance(value, list | tuple):
        item = args[0]
        if args[-1] is not Ellipsis and len(args) != len(value):
            raise MgenError(f"'{where}' takes {len(args)} values, got {len(value)}")
        return tuple(_convert(item, v, where) for v in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise MgenError(f"'{where}' takes {name if origin is None else hint}, got {value!r}")
