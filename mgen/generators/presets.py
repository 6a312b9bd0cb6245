"""Published systems as files: `model_config("mar-b")` and `list_models("mar*")` read configs/models."""

import functools
from collections.abc import Mapping
from fnmatch import filter as fnfilter
from pathlib import Path

from mgen.generators.build import EMBEDDER_OF, configure
from mgen.heads.head import HEADS
from mgen.utils.changes import changes, plain
from mgen.utils.config import Settings, merge, read_config
from mgen.utils.errors import MgenError, check_choice, shown
from mgen.utils.folders import first_comment, shipped

# Levels that vectors get where a head of quantized channels is put in the place of one of vectors: TokenBridge's.
LEVELS = {"vocab_size": 64, "levels": {"form": "published", "low": -5.0, "high": 5.0, "span": 3.0}}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models in configs/models that match a shell pattern, such as "mar*", sorted; MgenError for no text."""
    if not isinstance(pattern, str):
        raise MgenError(f"pattern is {shown(pattern)}: expected text, such as 'mar*'; leave it out for all models")
    return fnfilter(list(shipped("models")), pattern)


def model_config(name: str | Path, **overrides: object) -> Settings:
    """The nested configuration of a model by its name, or of a YAML file, with sections overridden.

    A section that names another `type` replaces the old one instead of being laid over it. Where a head for other tokens is asked
    for and no tokens are given, vectors become quantized ones and the other way round.

    Raises:
        MgenError: an unknown name; the message has the nearest.
    """
    if not isinstance(name, str | Path):
        raise MgenError(f"model is {shown(name)}: expected the name of a model, a YAML file or a mapping")
    if str(name).endswith((".yaml", ".yml")):
        return override(read_config(str(name)), overrides)
    check_choice("model", str(name), list_models())
    return override(read_config(shipped("models")[str(name)]), overrides)


def model_description(name: str) -> str:
    """The comment at the head of a model's file: the system, its size and where it comes from."""
    return first_comment(shipped("models")[name])


def override(config: Settings, overrides: Settings) -> Settings:
    """A configuration with sections overridden, see `model_config`."""
    out = dict(config)
    for key, value in overrides.items():
        old = out.get(key)
        if not isinstance(value, Mapping) or not isinstance(old, Mapping):
            out[key] = value
        elif key in ("first", "second"):
            out[key] = override(dict(old), dict(value))
        elif "type" in value and value["type"] != old.get("type"):
            out[key] = dict(value)
        else:
            out[key] = merge(dict(old), dict(value))
    tokens = out.get("tokens")
    if "head" in overrides and "tokens" not in overrides and isinstance(tokens, Mapping) and "kind" in tokens:
        out["tokens"] = _tokens_for(dict(tokens), out["head"])
        if out["tokens"]["kind"] != tokens["kind"] and "embedder" not in overrides:
            out["embedder"] = {"type": EMBEDDER_OF[out["tokens"]["kind"]]}
    return out


def named_config(settings: str | Settings, where: str = "model") -> Settings:
    """The configuration that a `model:` section means: a name, a mapping with `name` and overrides, or everything written out."""
    if isinstance(settings, str):
        return model_config(settings)
    if not isinstance(settings, Mapping):
        raise MgenError(f"{where} is {shown(settings)}: expected a name of a model, or a mapping")
    overrides = {key: value for key, value in settings.items() if key != "name"}
    return model_config(settings["name"], **overrides) if "name" in settings else overrides


def model_name(config: Settings) -> str | None:
    """The name of the published model with this configuration, None if there is none; dropout and scale aside.

    Of several that differ in dropout or scale alone, the one that has most of them in common.
    """
    whole = complete(config)
    fits = [name for name, found in _published().items() if _sizes(found) == _sizes(whole)]
    return min(fits, key=lambda name: len(list(changes(plain(_published()[name]), plain(whole)))), default=None)


@functools.cache
def _published() -> dict[str, Settings]:
    return {name: complete(model_config(name)) for name in list_models()}


def complete(config: Settings) -> Settings:
    """The configuration, which may be one that was saved, with every default written out; nothing is built."""
    return configure({key: value for key, value in config.items() if not key.startswith("_")}).settings


def _sizes(settings: object) -> object:
    """What tells sizes apart: all settings but dropout and the scale of latents."""
    if isinstance(settings, Mapping):
        kept = {k: v for k, v in settings.items() if not k.endswith("dropout") and k != "scale" and v is not None}
        return {k: _sizes(v) for k, v in kept.items()}
    return [_sizes(v) for v in settings] if isinstance(settings, list | tuple) else settings


def _tokens_for(tokens: Settings, head: object) -> Settings:
    kinds = HEADS.get(head["type"]).token_kinds if isinstance(head, Mapping) and "type" in head else (tokens["kind"],)
    if tokens["kind"] == "vector" and kinds == ("multi-index",):
        return {**tokens, "kind": "multi-index", **LEVELS}
    if tokens["kind"] == "multi-index" and "vector" in kinds:
        return {k: v for k, v in tokens.items() if k not in LEVELS} | {"kind": "vector"}
    return dict(tokens)
