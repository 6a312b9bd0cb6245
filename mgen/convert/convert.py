"""The conversion of an official file, strict on every key."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mgen.convert.format import Format
from mgen.convert.formats import FORMATS
from mgen.generators.presets import complete, model_name, override
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, check_choice, first_line, shown
from mgen.utils.limits import check_memory
from mgen.utils.modeling import Model, check_keys
from mgen.utils.weights import Checkpoint, Weights

MOST_SIDE = 1024  # tokens along a side of the grid


@dataclass(kw_only=True)
class Conversion:
    """A converted model and what became of every official name."""

    model: Model
    config: Settings
    mapped: dict[str, str]
    ignored: dict[str, str]
    notes: list[str]

    def report(self) -> str:
        """Lines for a person: what was mapped, what was ignored and why; many tensors ignored for one reason share a line."""
        count = sum(p.numel() for p in self.model.parameters())
        lines = [f"{type(self.model).__name__}: {len(self.mapped)} tensors mapped, {count:,} parameters, none missing"]
        lines += [f"  note: {note}" for note in self.notes]
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.ignored.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            told = names if len(names) <= 8 else [f"{len(names)} tensors from {names[0]} to {names[-1]}"]
            lines += [f"  ignored {name}: {reason}" for name in told]
        return "\n".join(lines)

    def names(self) -> str:
        """Every official name and ours, one pair a line, then those ignored."""
        pairs = [f"{official} -> {ours}" for official, ours in self.mapped.items()]
        return "\n".join(pairs + [f"{official} ignored" for official in self.ignored])


def convert(format_name: str, path: str | Path, *, raw: bool = False, **settings: object) -> Conversion:
    """Our model with the weights of an official file.

    Args:
        format_name: a key of FORMATS. path: the official file.
        raw: take the weights without EMA from a file that holds both.
        settings: what shapes cannot tell and that differs from the published values: of a generator sections of its configuration,
            such as trunk={"heads": 12}, or side=24 for the token grid; of a tokenizer constructor arguments.

    Raises:
        MgenError: unreadable file, or any name or shape that is left over, missing or different.
    """
    import mgen

    layout = FORMATS[check_choice("format", format_name, FORMATS)]
    if raw and not layout.ema:
        raise MgenError(f"format {format_name!r} has one set of weights in a file: leave --raw out")
    cls = getattr(mgen, layout.model)
    check_keys(settings, cls.config_keys() | ({"side"} if layout.trunk else set()) | set(layout.extra), "")
    file = Checkpoint(layout.locate(Path(path)))
    weights = file.weights(averaged=bool(layout.ema) and not raw, keys=layout.keys, ema=layout.ema)
    path, official = file.path, weights.state
    if raw and not weights.both:
        held = "EMA weights alone" if weights.averaged else "one set of weights"
        raise MgenError(f"{path} holds {held}: leave --raw out")
    if layout.buffers and weights.averaged and weights.both:
        other = file.weights(keys=layout.keys).state
        official = {**{name: other[name] for name in layout.buffers if name in other}, **official}
    size = 4 * sum(value.numel() for value in official.values())
    check_memory(size, f"the weights in {path} in fp32", "use a machine with more memory")
    try:
        found = override(layout.config(official), layout.beside(path) if layout.beside else {})
    except (MgenError, *_NONSENSE) as error:
        raise _of_another_format(error, path, format_name) from error
    settings = layout.prepare(settings, found) if layout.prepare else settings
    config = _configured(found, settings, is_generator=layout.trunk is not None)
    try:
        takes_config = "config" in inspect.signature(layout.rename).parameters
        renamed = layout.rename(official, config=config) if takes_config else layout.rename(official)
    except (MgenError, *_NONSENSE) as error:
        raise _of_another_format(error, path, format_name) from error
    try:
        model = cls.from_config(config) if layout.trunk else cls(**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MgenError(f"{path} does not fit {layout.model}: {error}") from error
    _load_exactly(model, renamed.state, path)
    notes = _where_found(weights, layout)
    if layout.trunk:
        name = model_name(config)
        notes.append(f"model: {name} (mgen zoo)" if name else "model: none of configs/models has these sizes")
    return Conversion(
        model=model.eval(),
        config=config,
        mapped=renamed.names,
        ignored=renamed.ignored,
        notes=notes + renamed.notes + layout.notes(config),
    )


# What reading sizes from names and shapes of another system can raise.
_NONSENSE = (LookupError, ValueError, TypeError, RuntimeError, ArithmeticError)


def _of_another_format(error: Exception, path: Path, format_name: str) -> MgenError:
    """What is wrong with a file whose names or shapes do not serve."""
    if isinstance(error, MgenError):
        return error
    if isinstance(error, KeyError):
        return MgenError(f"{path} is not of format {format_name!r}: it lacks {shown(error.args[0]).strip(chr(39))}")
    return MgenError(f"{path} is not of format {format_name!r}: its names or shapes are those of another system")


def _configured(found: Settings, settings: Settings, *, is_generator: bool) -> Settings:
    """What was read from the shapes with the settings of the user, checked before anything is made of it."""
    if not is_generator:
        return {**found, **settings}
    try:
        config = override(found, _with_side(settings, found))
        complete(config)
    except MgenError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise MgenError(
            f"settings {shown(settings, 200)} do not fit: give sections of a model's configuration, such as trunk.heads=12 "
            f"({first_line(error, 100)})"
        ) from error
    return config


def _where_found(weights: Weights, layout: Format) -> list[str]:
    """Notes on where the weights were found, and on what the file holds besides."""
    notes = [f"weights under {' → '.join(map(repr, weights.under))}"] if weights.under else []
    if weights.both and layout.ema:
        notes.append("EMA weights taken; --raw takes the others" if weights.averaged else "weights without EMA taken")
    elif weights.both:
        notes.append("the file holds EMA weights too, which the official scripts do not take")
    elif weights.averaged:
        notes.append("these are EMA weights; the file holds no others")
    elif layout.ema and weights.under:
        notes.append(f"no EMA weights ({layout.ema!r}) in the file")
    return notes + weights.notes


def _with_side(settings: Settings, found: Settings) -> Settings:
    """Settings in which `side`, of a square token grid, stands as sections of the configuration."""
    rest = {key: value for key, value in settings.items() if key != "side"}
    if "side" not in settings:
        return rest
    side, tokens = settings["side"], rest.get("tokens", {})
    gridless = "grid" not in found.get("tokens", {})
    if gridless or type(side) is not int or not 1 <= side <= MOST_SIDE or not isinstance(tokens, Mapping):
        raise MgenError(
            f"side is {shown(side)}: a whole number from 1 to {MOST_SIDE} is needed, of a model with one token grid"
        )
    place = {"grid": [side, side], "length": side * side + found["tokens"].get("global_tokens", 0)}
    return {**rest, "tokens": {**tokens, **place}}


def _load_exactly(model: Model, state: dict[str, Tensor], path: str | Path) -> None:
    own = model.state_dict()
    shapes = {k: (tuple(state[k].shape), tuple(own[k].shape)) for k in own.keys() & state.keys()}
    found = {
        "missing": own.keys() - state.keys(),
        "not expected": state.keys() - own.keys(),
        "of another shape": {f"{k} {given} for {right}" for k, (given, right) in shapes.items() if given != right},
    }
    problems = [f"{len(names)} {what}, e.g. {min(names)[:200]}" for what, names in found.items() if names]
    if problems:
        raise MgenError(f"{path} does not hold exactly the weights of {type(model).__name__}: {'; '.join(problems)}")
    floats = {}
    for name, value in state.items():
        if own[name].is_floating_point() and not value.is_floating_point():
            raise MgenError(f"{path}: {name} holds whole numbers ({value.dtype}): quantized weights are not read")
        floats[name] = value.float()
        if not torch.isfinite(floats[name]).all():
            what = "NaN or infinity; the file is damaged" if not torch.isfinite(value).all() else "numbers beyond fp32"
            raise MgenError(f"{path}: {name} holds {what}")
    model.load_state_dict(floats)
