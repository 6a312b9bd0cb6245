"""Settings files: YAML with `extends:`, and overrides such as key.sub=value. What the values may be, schemas say (mgen.utils.schema)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from mgen.utils.errors import MgenError, shown
from mgen.utils.files import read_text
from mgen.utils.plain import check_plain

# A mapping parsed from YAML or JSON, or one bound for it.
Settings: TypeAlias = dict[str, Any]

MOST_BYTES = 2**20  # of a settings file
MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number, which is a string in YAML 1.1, and dates as text; without merge keys."""


# Dates would be no plain values, and merge keys (`<<`) can copy a list of keys any number of times.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":timestamp", ":merge"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_config(path: str | Path) -> Settings:
    """The mapping in a YAML file, merged over the file that `extends: other.yaml` names (relative to it).

    Raises:
        MgenError: there is no such file, it is larger than 1 MiB, no YAML, no mapping of plain values, or extends itself.
    """
    return _read(Path(path), ())


def _read(path: Path, above: tuple[Path, ...]) -> Settings:
    if path.resolve() in above:
        raise MgenError(f"{path} extends itself, through {' and '.join(p.name for p in above)}: remove an `extends`")
    data = parse_yaml(read_text(path, most=MOST_BYTES), str(path))
    if not isinstance(data, dict):
        raise MgenError(f"{path} holds no settings: expected a YAML mapping such as 'task: generator'")
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str) or not base or "\0" in base:
        raise MgenError(f"{path}: extends is {shown(base)}: expected the name of a YAML file")
    return merge(_read(path.parent / base, (*above, path.resolve())), data)


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text stands for; MgenError that names `where` if it is not valid or holds more than plain values."""
    try:
        data = yaml.load(text, _Loader)
    except RecursionError as error:
        raise MgenError(f"{where} is nested too deeply") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:  # constructors fail in their own ways
        raise MgenError(f"{where} is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    check_plain(data, f"{where}: ", most=MOST_VALUES)
    return data


def merge(base: Settings, over: Settings) -> Settings:
    """`base` updated with `over`: mappings are merged recursively, other values replaced."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def _at(data: object, parts: Sequence[str]) -> object:
    """The value at a dotted key, None if there is none."""
    for part in parts:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def apply_overrides(data: Settings, overrides: Sequence[str]) -> Settings:
    """Apply overrides such as "key.sub=value" to `data`; values are read as YAML."""
    given: set[str] = set()
    for text in overrides:
        key, equals, value = text.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise MgenError(f"override {shown(text)} is not of the form key.sub=value")
        if key in given:
            raise MgenError(f"override {shown(key)} is given twice: leave one out")
        given.add(key)
        if not value.strip():
            raise MgenError(f"override {shown(text)} has no value: leave it out, or write {key}=null for none")
        nested = parse_yaml(value, f"override {key}")
        if nested == {} and _at(data, parts):
            raise MgenError(f"override {shown(text)} changes nothing, since mappings are merged: name a key in it")
        for part in reversed(parts):
            nested = {part: nested}
        data = merge(data, nested)
    check_plain(data, most=MOST_VALUES)
    return data
