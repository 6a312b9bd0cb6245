"""Settings files: YAML with `extends:`, and overrides such as key.sub=value. What the values may be, schemas say (mgen.utils.schema)."""

import os
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from mgen.utils.errors import MgenError, shown, suggestion
from mgen.utils.folders import part
from mgen.utils.plain import MOST_DEPTH, check_plain
from mgen.utils.reading import read_text

# A mapping parsed from YAML or JSON, or one bound for it.
Settings: TypeAlias = dict[str, Any]

MOST_BYTES = 2**16  # of a settings file; a parser in Python needs up to a second for them
MOST_VALUES = 100_000
MOST_FILES = 20  # that extend one another
MOST_KEYS = 20  # in key.sub.sub…


class _Loader(yaml.SafeLoader):
    """YAML of plain values, read as YAML 1.2 does where 1.1 surprises.

    1e-4 is a number; 010 is ten, 1:30 and dates are texts; a key stands once; there are no merge keys (`<<`), which can copy a list
    of keys any number of times, and no tags that make other objects.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ValueError(
                        f"key {shown(key.value)} stands twice in a mapping, line {key.start_mark.line + 1}"
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def fetch_flow_collection_start(self, token_class: type[yaml.Token]) -> None:
        """Levels in brackets; the scanner's time grows with their square."""
        if self.flow_level > MOST_DEPTH:
            raise RecursionError
        super().fetch_flow_collection_start(token_class)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys would be put in here."""

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node).replace("_", "")
        if len(text) > 40:
            raise ValueError(f"a number of {len(text)} digits, line {node.start_mark.line + 1}")
        return int(text, 16) if "x" in text else int(text)


_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")
_NUMBERS = {
    "int": re.compile(r"[-+]?([0-9][0-9_]*|0x[0-9a-fA-F]+)$"),
    "float": re.compile(
        r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
}
_PREFIX = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag in (f"{_PREFIX}null", f"{_PREFIX}bool")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"{_PREFIX}{_kind}", _pattern, list("-+0123456789."))
_Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in (None, *(_PREFIX + t for t in _TAGS))
}
_Loader.add_constructor(f"{_PREFIX}int", _Loader.construct_whole)


def read_config(path: str | Path) -> Settings:
    """The mapping in a YAML file, merged over the one that `extends:` names: a file (relative to it), or a name of configs/train.

    Raises:
        MgenError: there is no such file, it is larger than 64 KiB, no YAML, no mapping of plain values, or extends itself
            or more than 20 others.
    """
    return _read(Path(path), ())


def _read(path: Path, above: tuple[str, ...]) -> Settings:
    text = read_text(path, most=MOST_BYTES)
    real = os.path.realpath(path)
    if real in above:
        raise MgenError(
            f"{path} extends itself, through {' and '.join(map(os.path.basename, above))}: remove an `extends`"
        )
    if len(above) >= MOST_FILES:
        raise MgenError(
            f"{path} is the last of {len(above) + 1} files that extend one another: {MOST_FILES} are allowed"
        )
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise MgenError(f"{path} holds no settings: expected a YAML mapping such as 'task: generator'")
    if "extends" not in data:
        return data
    base = data.pop("extends")
    if not isinstance(base, str) or not base.strip() or "\0" in base:
        raise MgenError(f"{path}: extends is {shown(base)}: expected the name of a YAML file")
    return merge(_read(_extended(path, base), (*above, real)), data)


def _extended(path: Path, base: str) -> Path:
    """The file that `extends: base` means: one beside `path`, or the shipped training configuration of this name."""
    beside, folder = path.parent / base, part("configs") / "train"
    if os.path.isfile(beside) or "/" in base or len(base) > 100:
        return beside
    shipped = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if base in shipped:
        return shipped[base]
    if os.path.lexists(beside):  # a folder, a pipe, a broken link
        return beside
    if beside.suffix not in (".yaml", ".yml"):
        raise MgenError(
            f"{path}: extends is {shown(base)}, neither a file beside it nor a shipped one: {suggestion(base, shipped)}"
        )
    if beside.stem in shipped:
        raise MgenError(f"{path}: extends is {shown(base)}: no such file; the shipped one is `extends: {beside.stem}`")
    return beside


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text stands for; MgenError that names `where` if it is not valid or holds more than plain values."""
    try:
        data = yaml.load(text, _Loader)
    except RecursionError:
        raise MgenError(
            f"{where} is nested too deeply, more than {MOST_DEPTH} levels deep"
        ) from None  # its trace is long
    # Constructors fail in their own ways, for `!!bool x` with a KeyError.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
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
    for key in parts:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def apply_overrides(data: Settings, overrides: Sequence[str]) -> Settings:
    """Apply overrides such as "key.sub=value" to `data`; values are read as YAML."""
    given: set[str] = set()
    for text in overrides:
        key, equals, value = text.partition("=")
        parts = key.split(".")
        if not equals or not all(name.strip() for name in parts):
            raise MgenError(f"override {shown(text)} is not of the form key.sub=value")
        if len(parts) > MOST_KEYS:
            raise MgenError(f"override {shown(text)} names a key {len(parts)} levels deep: {MOST_KEYS} are allowed")
        if key in given:
            raise MgenError(f"override {shown(key)} is given twice: leave one out")
        given.add(key)
        if not value.strip():
            raise MgenError(f"override {shown(text)} has no value: leave it out, or write {key}=null for none")
        nested = parse_yaml(value, f"override {shown(key)}")
        if nested == {} and _at(data, parts):
            raise MgenError(f"override {shown(text)} changes nothing, since mappings are merged: name a key in it")
        for name in reversed(parts):
            nested = {name: nested}
        data = merge(data, nested)
    check_plain(data, most=MOST_VALUES)
    return data
