"""Axes: what a search over policies may change, each a name and the values it may take, as overrides of sampler settings.

A space is a YAML file, shipped in configs/spaces or a user's own, with a list of axes:

    axes:
      - name: steps
        range: {key: steps, low: 0.125x, high: 2x, log: true}    # numbers between two
        cost: true                                               # a larger value costs more
      - name: reuse.cached
        choices: [{reuse.cached: 1}, {reuse.cached: 2}]          # overrides, one of them at a time
        needs: [cached_steps]                                    # of the generator
      - name: reuse.head_share
        range: {key: reuse.head_share, low: 0.25, high: 1}
        when: {reuse.cached: [1, 2]}                             # elsewhere it would change nothing

Keys are dotted as those of `--set`. A key replaces what was there, so that a mapping is a whole one; a dotted key changes a part of it, and
where guidance or a temperature is a number, `guidance.end` makes the curve {kind: constant} of that number. A number with an x behind it
is a multiple (of a curve's larger end): in a range of the start's value, in choices of the value that axes before have set (`of` names
another setting that it is of).
`reuse.full_first` may be a share of the steps.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mgen.generators import Capabilities
from mgen.samplers import ParallelSampler
from mgen.samplers.condition import Condition
from mgen.samplers.order import OrderSettings
from mgen.samplers.remask import Remask
from mgen.samplers.reuse import Reuse
from mgen.samplers.token_cache import TokenCache
from mgen.samplers.values import Curve
from mgen.utils.config import MOST_KEYS, Settings, read_config
from mgen.utils.errors import MgenError, shown, suggestion
from mgen.utils.folders import shipped
from mgen.utils.modeling import constructor_keys
from mgen.utils.schema import Text, build, schema

DEFAULT = "default"  # the space that is searched unless another is given
CURVES = ("guidance", "temperature", "confidence_temperature")  # a part of a number makes a curve of it
MULTIPLE = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)x")
ABLE = (*(f.name for f in dataclasses.fields(Capabilities)), "one_by_one", "null_class")
ABLE = tuple(name for name in ABLE if name != "order")

# Settings with parts of their own, and what these are; of `head` they depend on the model.
PARTS: dict[str, Any] = {"order": OrderSettings, "remask": Remask, "reuse": Reuse, **dict.fromkeys(CURVES, Curve)}
PARTS |= {"reuse.condition": Condition, "reuse.tokens": TokenCache, **{f"{name}.times": Curve for name in CURVES}}

Number = int | float | Annotated[str, Field(pattern=f"^({MULTIPLE.pattern})$")]
Override = Annotated[dict[Text, Any], Field(min_length=1)]


@schema
class Range:
    """Numbers from `low` to `high` for the setting `key`; whole ones if both ends are.

    Attributes:
        log: equal factors are equally far apart, not equal differences.
    """

    key: Text
    low: Number
    high: Number
    log: bool = False


@schema
class Axis:
    """One thing that a search changes.

    Attributes:
        name: as reports call it; `--axes head` means all whose name is head or begins with "head.".
        choices, range: the values, one of the two. That of the start is one more.
        needs: capabilities of the generator (mgen.generators.Capabilities), or null_class, or "not " and one of them.
        when: setting → the values of it (of a mapping, its name) under which this axis has an effect.
        cost: larger values of the range cost more, so that candidates over the budget can be moved onto it.
        of: the setting that multiples in choices are of, unless it is the one that they are for.
        default: what multiples are of where the settings name no number.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,60}$")]
    choices: Annotated[tuple[Override, ...], Field(max_length=1000)] = ()
    range: Range | None = None
    needs: tuple[Text, ...] = ()
    when: dict[Text, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    cost: bool = False
    of: Text | None = None
    default: float | int | None = None

    def __post_init__(self) -> None:
        where = f"axis {self.name}"
        if bool(self.choices) == (self.range is not None):
            raise MgenError(f"{where}: give choices, a list of overrides, or a range")
        if self.cost and self.range is None:
            raise MgenError(f"{where}: cost is for a range")
        for name in self.needs:
            if (word := name.removeprefix("not ")) not in ABLE:
                raise MgenError(f"{where}: needs names {shown(word)}: {suggestion(word, ABLE)}")
        keys = [key for choice in self.choices for key in choice] + ([self.range.key] if self.range else [])
        for key in (*keys, *self.when):
            parts = key.split(".")
            if not all(part.strip() for part in parts) or len(parts) > MOST_KEYS:
                raise MgenError(f"{where}: {shown(key)} is no setting: write a name, or names with dots between them")
        for key in self.when:
            check_setting(key, f"{where}: when")


@schema
class SpaceFile:
    """The file of a space."""

    axes: Annotated[tuple[Axis, ...], Field(min_length=1, max_length=1000)]

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        for name in names:
            if names.count(name) > 1:
                raise MgenError(f"axis {name} is listed twice: leave one out, or name it otherwise")


def read_space(name: str = DEFAULT, only: Sequence[str] | None = None) -> tuple[Axis, ...]:
    """The axes of a shipped space or of a file.

    Args:
        only: names of axes, or what stands before the dot in them; None: all.

    Raises:
        MgenError: no such file, something wrong in it, or a name in `only` that is no axis.
    """
    path = shipped("spaces").get(name, Path(name))
    axes = build(SpaceFile, read_config(path), f"{path}: ").axes
    if only is None:
        return axes
    known = list(dict.fromkeys(part for axis in axes for part in (axis.name.partition(".")[0], axis.name)))
    for word in only:
        if word not in known:
            raise MgenError(f"--axes: no axis {shown(word)}: {suggestion(word, known)}")
    if not only:
        raise MgenError(f"--axes names no axis: there are {', '.join(known)}")
    return tuple(axis for axis in axes if axis.name in only or axis.name.partition(".")[0] in only)


def lacking(axis: Axis, able: Capabilities, *, null_class: bool) -> str:
    """Which of an axis's needs a generator does not meet, "" if it meets all."""
    has = {name: null_class if name == "null_class" else bool(getattr(able, name)) for name in ABLE}
    for need in axis.needs:
        word = need.removeprefix("not ")
        if has[word] == (word != need):
            return f"needs {need}"
    return ""


def check_setting(key: str, where: str) -> None:
    """Raise MgenError unless a sampler has a setting with this dotted key; below `head`, of which the model decides, any will do."""
    above, names = "", constructor_keys(ParallelSampler)
    for part in key.split("."):
        if not names:
            raise MgenError(f"{where} names {shown(key)}, but {above} has no parts: give {above} and its values")
        if part not in names:
            raise MgenError(f"{where} names {shown(key)}: a sampler has no such setting; {suggestion(part, names)}")
        above = f"{above}.{part}".lstrip(".")
        if above == "head":
            return
        if above == "first_stage":  # a sampler itself
            above = ""
        else:
            names = {field.name for field in dataclasses.fields(PARTS[above])} if above in PARTS else set()


# -- settings ----------------------------------------------------------------------------------------------------------------


def value_at(settings: object, key: str) -> Any:
    """The value at a dotted key, of a list or below a number None."""
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def applies(axis: Axis, settings: Settings) -> bool:
    """Whether the settings are such that the axis has an effect."""
    for key, allowed in axis.when.items():
        value = value_at(settings, key)
        if (value["name"] if isinstance(value, Mapping) and "name" in value else value) not in allowed:
            return False
    return True


def replaced(settings: Settings, changes: Settings) -> Settings:
    """Settings with a value at each dotted key of `changes`, which replaces what was there."""
    out = dict(settings)
    for key, value in changes.items():
        out = _replaced(out, key.split("."), value, key)
    return out


def _replaced(settings: Any, parts: Sequence[str], value: object, key: str) -> Settings:
    above = key.rsplit("." + ".".join(parts), 1)[0] if len(parts) < len(key.split(".")) else ""
    if settings is None:
        settings = {}
    elif above in CURVES and _is_number(settings):
        settings = {"kind": "constant", "end": settings}
    elif not isinstance(settings, Mapping):
        raise MgenError(f"{above} is {shown(settings)}, in which {key} can't be set")
    first, *rest = parts
    return {**settings, first: _replaced(settings.get(first), rest, value, key) if rest else value}


def base_value(start: Settings, key: str, default: float | None) -> float | int | None:
    """The number that multiples at `key` are of: the start's, of a curve or list its largest; None if there is none."""
    parts, value = key.split("."), value_at(start, key)
    if value is None and parts[-1] in ("start", "end"):  # of a curve that is a number yet
        value = value_at(start, ".".join(parts[:-1]))
    if isinstance(value, Mapping):
        value = [value[name] for name in ("start", "end") if _is_number(value.get(name))]
    if isinstance(value, list | tuple):
        numbers = [x for x in value if _is_number(x)]
        value = max(numbers) if numbers else None
    return value if _is_number(value) else default


def resolved(value: object, base: float | int | None, where: str) -> Any:
    """A value in which multiples, such as 0.5x, are numbers; whole ones, at least 1, of a whole base."""
    if isinstance(value, Mapping):
        return {name: resolved(inner, base, where) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [resolved(inner, base, where) for inner in value]
    if not isinstance(value, str) or not (match := MULTIPLE.fullmatch(value)):
        return value
    if base is None:
        raise MgenError(
            f"{where}: {value} is a multiple of the start's value, which names none: give the axis a default"
        )
    number = float(match[1]) * base
    return max(1, round(number)) if isinstance(base, int) else number


def between(low: float, high: float, place: float, *, log: bool) -> float | int:
    """The number at a place in 0 … 1 between two; whole if both are, else with four digits."""
    number = low * (high / low) ** place if log else low + (high - low) * place
    return round(number) if isinstance(low, int) and isinstance(high, int) else float(f"{number:.4g}")


def place_of(low: float, high: float, number: float, *, log: bool) -> float:
    """The place in 0 … 1 of a number, the nearest end if it lies outside."""
    if low == high:
        return 0.0
    if log:
        number = max(number, low)
        return min(1.0, max(0.0, math.log(number / low) / math.log(high / low)))
    return min(1.0, max(0.0, (number - low) / (high - low)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
