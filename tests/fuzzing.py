"""What the fuzzing draws: odd values, damaged settings and texts, and the readers that must answer them with an MgenError or a value.

tests/unit/test_fuzz.py draws a fixed set of some seconds, tools/fuzz.py draws for as long as one likes.
"""

import copy
import dataclasses
import functools
import importlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

from mgen.generators.build import configure
from mgen.samplers import ParallelSampler
from mgen.training.config import train_config
from mgen.utils.config import apply_overrides, merge, parse_yaml
from mgen.utils.errors import MgenError
from mgen.utils.reading import parse_json
from mgen.utils.schema import build
from tests.helpers import TRUNKS, tiny_cascade_config, tiny_config, tiny_net, tiny_tokens

Reader = Callable[[Any], object]

# -- values ----------------------------------------------------------------------------------------------------------------

NUMBERS = (0, -1, 1, 2, 3, 7, 255, 2**31, 2**53, 2**63, 10**30, -(10**30), 0.5, 1.5, -0.0, 1e-320, 1e308, -1e308, 32.0)
NUMBERS += (float("nan"), float("inf"), -float("inf"))
TEXTS = (
    "",
    " ",
    "a",
    "²",
    "٣",
    "1",
    "nan",
    "confidence",
    "cosine",
    "mgen",
    "../x",
    "/dev/zero",
    "a\0b",
    "\ud800",
    "é" * 300,
    "x" * 10_000,
)
TEXTS += (
    "{kind: power}",
    "*a",
    "&a [*a]",
    "!!int x",
    "<<",
    "\x1b[31m",
    "a\nb",
    "None",
    "null",
    "true",
    "_class_name",
    "kind",
    "type",
)


KEYS = st.text(max_size=2)


def odd() -> st.SearchStrategy[Any]:
    """A value that may stand in a file or be given in Python, most of them wrong wherever they stand."""
    plain = st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(NUMBERS),
        st.integers(-(10**6), 10**6),
        st.floats(),
        st.sampled_from(TEXTS),
        st.text(max_size=8),
    )
    return st.one_of(
        plain,
        st.lists(plain, max_size=4),
        st.dictionaries(st.sampled_from(TEXTS), plain, max_size=3),
        st.recursive(
            plain,
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
            max_leaves=6,
        ),
        st.integers(61, 70).map(nested),
    )


def nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value in `value`, but the top."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*above, key)
        yield from places(inner, (*above, key))


@st.composite
def damaged(draw: st.DrawFn, valid: Any) -> Any:
    """`valid` with one to three values replaced, removed, added, or put somewhere else."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(value))
        if not found or draw(st.integers(0, 30)) == 0:
            return draw(odd())
        *above, last = draw(st.sampled_from(found))
        parent = value
        for key in above:
            parent = parent[key]
        match draw(st.sampled_from(("replace", "replace", "remove", "add", "wrap", "copy"))):
            case "replace":
                parent[last] = draw(odd())
            case "remove":
                del parent[last]
            case "wrap":
                parent[last] = [parent[last]]
            case "copy":
                parent[last] = copy.deepcopy(draw(st.sampled_from([value, parent, parent[last]])))
            case "add" if isinstance(parent, dict):
                parent[draw(st.sampled_from(TEXTS) | st.sampled_from([str(p[-1]) for p in found]))] = draw(odd())
            case _:
                parent.insert(0, draw(odd()))
    return value


# -- settings --------------------------------------------------------------------------------------------------------------

SAMPLERS: tuple[dict[str, Any], ...] = (
    {},
    {"steps": 5, "order": "random", "schedule": "arccos", "guidance": 2.0, "temperature": [1.0, 1.0, 0.9, 0.8, 0.7]},
    {
        "order": {"name": "confidence", "redraw": True},
        "guidance": {"kind": "power", "start": 1.0, "end": 3.0, "power": 2.0},
    },
    {"reuse": {"cached": 1, "full_first": 2}, "counts": "mar", "start": 1, "head": {"top_k": 10, "top_p": 0.9}},
    {
        "steps": 6,
        "schedule": [0.9, 0.7, 0.5, 0.3, 0.1, 0.0],
        "head": {"chain": "ddim", "steps": 10},
        "order": list(range(16)),
    },
)
TRAINING: dict[str, Any] = {
    "task": "generator",
    "output": "out",
    "steps": 6,
    "batch_size": 12,
    "model": tiny_config("uvit", tokens=tiny_tokens(side=8, vocab_size=64)),
    "data": {"kind": "fmnist", "path": "idx", "shift": 1},
    "objective": {"tokenizer": "tokenizer", "sampler": {"steps": 2}, "mask": {"low": 0.5}},
    "optim": {"lr": 3e-3, "betas": [0.9, 0.95], "schedule": "cosine", "warmup": 1, "clip": 1.0},
    "ema": {"decay": 0.9},
    "log": {"every": 1, "checkpoint_every": 3, "tensorboard": False},
}
LOADED = {"optim.lr": 0.1, "data.path": "x", "steps": 3}
# Kind of settings → examples, and what reads them.
SETTINGS: dict[str, tuple[tuple[Any, ...], Reader]] = {
    "model": (tuple(tiny_config(trunk) for trunk in TRUNKS), configure),
    "cascade": (tuple(tiny_cascade_config(kind) for kind in ("vector", "index")), configure),
    "sampler": (SAMPLERS, lambda value: ParallelSampler.from_settings(value, "sampler")),
    "training": ((TRAINING,), lambda value: train_config(value) if isinstance(value, dict) else build(dict, value)),
}
# Files that are read by a schema: where it is.
SCHEMAS = (
    "mgen.tokens.TokenSpec",
    "mgen.evaluation.feature_files.FeatureRecord",
    "mgen.evaluation.recipe.RecipeEvaluation",
    "mgen.evaluation.statistics_file.About",
    "mgen.training.checkpoints.State",
    "mgen.tune.axes.SpaceFile",
    "mgen.tune.trials.Timing",
    "mgen.tune.trials.Trial",
    "mgen.tune.tuning.Trial",
    "mgen.pipelines.run_file.RunFile",
    "mgen.pipelines.saved.PipelineIndex",
    "mgen.zoo.Facts",
    "mgen.zoo.recipes.Recipe",
    "mgen.zoo.recipes.Strategy",
    "mgen.data.cache_format.CacheIndex",
    "mgen.data.cache_format.Mark",
    "mgen.utils.weight_files.ShardIndex",
    "mgen.bench.sweep.SweepFile",
    "mgen.bench.sweep.SweepResult",
)


def found(name: str) -> Any:
    module, _, cls = name.rpartition(".")
    return getattr(importlib.import_module(module), cls)


def of_schema(cls: Any) -> st.SearchStrategy[Any]:
    """Mappings with some of a schema's keys, and values of all kinds."""
    names = [field.name for field in dataclasses.fields(cls)]
    likely = odd() | st.sampled_from([1, 1.0, "a", [1.0, 2.0], ["a"], {}, "a" * 64, True, None, {"a": 1.0}])
    keys = st.sampled_from(names) | st.sampled_from(TEXTS)
    whole = st.fixed_dictionaries({name: likely for name in names})
    return whole | st.dictionaries(keys, likely, max_size=len(names)) | odd()


# -- texts -----------------------------------------------------------------------------------------------------------------

PIECES = (
    "[",
    "]",
    "{",
    "}",
    ":",
    ": ",
    ",",
    "- ",
    "\n",
    " ",
    "? ",
    "&a ",
    "*a",
    "!!int ",
    "!!map ",
    "|",
    ">",
    "'",
    '"',
    "#",
    "%",
    "@",
    "---",
)
PIECES += (
    "<<",
    "a",
    "1",
    "1e5",
    ".nan",
    "~",
    "0x",
    "\\ud800",
    "\t",
    "\0",
    "é",
    "٣",
    "1:30",
    "2020-13-45",
    "null",
    "NaN",
    "true",
    "\ufeff",
)


def text(write: Callable[[Any], str]) -> st.SearchStrategy[str]:
    """Texts of a format: pieces of it, and what `write` makes of settings with some characters replaced."""
    written = st.sampled_from([TRAINING, *SAMPLERS]).flatmap(damaged).map(write)

    @st.composite
    def cut(draw: st.DrawFn) -> str:
        whole = draw(written)
        at = draw(st.integers(0, len(whole)))
        return (
            whole[:at]
            + "".join(draw(st.lists(st.sampled_from(PIECES), max_size=3)))
            + whole[at + draw(st.integers(0, 3)) :]
        )

    return st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | cut()


def as_yaml(value: Any) -> str:
    return yaml.dump(value, allow_unicode=True, default_flow_style=None)


def as_json(value: Any) -> str:
    return json.dumps(value, skipkeys=True)


TEXTS_OF: dict[str, tuple[st.SearchStrategy[Any], Reader]] = {
    "yaml": (text(as_yaml), lambda value: parse_yaml(value, "x")),
    "json": (text(as_json), lambda value: parse_json(value, "x")),
    "overrides": (
        st.lists(
            st.tuples(st.sampled_from([*LOADED, "a.b", "", ".", "a..b", "optim"]), text(as_yaml)).map("=".join),
            max_size=3,
        ),
        lambda value: apply_overrides(TRAINING, value),
    ),
    "yaml of training": (text(as_yaml), lambda value: train_config(merge(TRAINING, mapping(parse_yaml(value, "x"))))),
}


def mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MgenError(f"no mapping: {type(value).__name__}")
    return value


# -- plans -----------------------------------------------------------------------------------------------------------------

VALUES = st.floats(0.1, 3.0) | st.builds(
    lambda kind, start, end: {"kind": kind, "start": start, "end": end},
    st.sampled_from(["linear", "cosine"]),
    st.floats(0.1, 3),
    st.floats(0.1, 3),
)


@st.composite
def samplers(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of samplers, most of which are allowed."""
    steps = draw(st.integers(1, 20))
    settings: dict[str, Any] = {
        "steps": steps,
        "order": draw(
            st.sampled_from(["confidence", "random", "raster", "halton", "halton-rolled", "checkerboard", "remasking"])
        ),
        "schedule": draw(st.sampled_from(["cosine", "arccos", "linear", "square", "exp", "log", "single"])),
        "counts": draw(st.sampled_from(["maskgit", "maskgit-r", "enat", "mar", "halton", "halton-confidence"])),
        "guidance": draw(VALUES),
        "temperature": draw(VALUES),
        "start": draw(st.integers(0, 3)),
    }
    if draw(st.integers(0, 3)) == 0:
        tokens = st.integers(1, 12) | st.floats(0.1, 0.9)
        staged = st.fixed_dictionaries({"tokens": tokens, "steps": st.integers(1, 5)})
        settings |= {"steps": None, "stages": [*draw(st.lists(staged, max_size=2)), {"steps": draw(st.integers(1, 5))}]}
    if draw(st.booleans()):
        settings["reuse"] = {"cached": draw(st.integers(0, 3)), "full_first": draw(st.integers(0, 4))}
    return settings


@functools.cache
def net() -> Any:
    return tiny_net("uvit")


def plan(settings: dict[str, Any]) -> int:
    """The tokens that the plan of a sampler reveals on a grid of 16; MgenError for settings that aren't allowed."""
    return sum(step.count for step in ParallelSampler.from_settings(settings, "sampler").plan(net()).steps)


# -- all -------------------------------------------------------------------------------------------------------------------


def targets() -> dict[str, tuple[st.SearchStrategy[Any], Reader]]:
    """Everything that is fuzzed in memory: what to draw, and what reads it."""
    out: dict[str, tuple[st.SearchStrategy[Any], Reader]] = {}
    for name, (examples, read) in SETTINGS.items():
        out[name] = (st.sampled_from(examples).flatmap(damaged), read)
    for name in SCHEMAS:
        cls = found(name)
        out[name.rpartition(".")[2]] = (of_schema(cls), lambda value, cls=cls: build(cls, value, "file: "))
    return out | TEXTS_OF


def outcome(read: Reader, value: Any) -> str:
    """ "taken" or the words of the error that it raises; any other exception passes through."""
    try:
        read(value)
    except MgenError as error:
        text = str(error)
        assert text and text.isprintable() and len(text) < 3000, text[:500]
        return text
    return "taken"
