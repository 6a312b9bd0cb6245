"""Drawn checkpoints: official weights with wrappers, odd names, values and bytes. A conversion succeeds or raises MgenError."""

import argparse
import contextlib
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgen.convert import convert
from mgen.convert.formats import FORMATS
from mgen.utils.errors import MgenError
from mgen.utils.wrappers import EMA, PREFIXES, RAW
from tests.golden import harness

# Format → weights in the golden sets.
SETS = {"maskgit": "maskgit/weights", "llamagen-vq": "llamagen/weights", "maskgit-jax": "maskgit_jax/weights"}
SETS |= {"tokenbridge": "tokenbridge/weights", "kl16": "kl16/weights", "himar": "himar/weights", "enat": "enat/weights"}
DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]
DTYPES += [torch.complex64, torch.float8_e4m3fn]

State = dict[Any, Any]
Change = Callable[[State], State]


# -- values ------------------------------------------------------------------------------------------------------------------

shapes = st.lists(st.sampled_from([0, 1, 2, 3, 16, 257]), max_size=5)


def other_tensors() -> st.SearchStrategy[Tensor]:
    """Tensors that have nothing to do with the weights they stand for."""
    numbers = st.sampled_from([0.0, 1.0, -1e30, float("nan"), float("inf")])
    plain = st.builds(
        lambda s, v, t: torch.full(s, v, dtype=torch.float64).to(t), shapes, numbers, st.sampled_from(DTYPES)
    )
    return plain | st.sampled_from([torch.zeros(2, 2).to_sparse(), torch.zeros(3, device="meta"), torch.tensor(2.0)])


def reshaped(x: Tensor, how: str) -> Tensor:
    match how:
        case "flat":
            return x.flatten()
        case "transposed":
            return x.transpose(0, -1).contiguous() if x.ndim else x
        case "deeper":
            return x[None]
        case "shorter":
            return x[:1].clone() if x.ndim else x
        case "longer":
            return torch.cat([x, x]) if x.ndim else x
        case "huge":
            return torch.full_like(x, 1e300, dtype=torch.float64)
        case "view":
            return x.expand(3, *x.shape)[0]
    return torch.zeros(1).expand(x.shape)


objects = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.just(argparse.Namespace(a=1)),
    other_tensors(),
)
names = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [*RAW, *EMA, "params", "n_averaged", "in_blocks.999.a", "layers.x.y", "encoder.down.7.block.3.a", "."]
    ),
    st.sampled_from([0, None, 1.5, b"a", (1, 2), True]),
)


# -- changes -----------------------------------------------------------------------------------------------------------------


def at(index: int, change: Callable[[Any, Any], tuple[Any, Any]]) -> Change:
    """Change one entry: its name and value."""

    def changed(state: State) -> State:
        entries = list(state.items())
        if entries:
            entries[index % len(entries)] = change(*entries[index % len(entries)])
        return dict(entries)

    return changed


def without(index: int) -> Change:
    return lambda state: {k: v for i, (k, v) in enumerate(state.items()) if i != index % max(1, len(state))}


def prefixed(prefix: str, share: int) -> Change:
    """Every entry but each `share`-th gets a prefix; 0: all do."""
    return lambda state: {
        k if not isinstance(k, str) or (share and i % share == 0) else f"{prefix}.{k}": v
        for i, (k, v) in enumerate(state.items())
    }


indices = st.integers(0, 400)
changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(lambda i, v: at(i, lambda name, old: (name, v)), indices, objects),
    st.builds(lambda i, n: at(i, lambda name, old: (n, old)), indices, names),
    st.builds(
        lambda i, how: at(i, lambda name, old: (name, reshaped(old, how) if isinstance(old, Tensor) else old)),
        indices,
        st.sampled_from(["flat", "transposed", "deeper", "shorter", "longer", "huge", "view", "repeated"]),
    ),
    st.builds(without, indices),
    st.builds(prefixed, st.sampled_from([*PREFIXES, "a"]), st.sampled_from([0, 0, 2, 7])),
    st.builds(lambda n, v: lambda state: {**state, n: v}, names, objects),
    st.builds(
        lambda key, rest: lambda state: {**rest, key: state},
        st.sampled_from([*RAW, *EMA, "a"]),
        st.dictionaries(names, objects, max_size=2),
    ),
)


def written(state: State, kind: str, path: Path) -> Path:
    """The file of a state; what its format can't hold is left out."""
    if kind == "safetensors":
        flat = {k: v.contiguous().clone() for k, v in state.items() if isinstance(k, str) and _strided(v)}
        save_file(flat, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    if kind == "flax":
        path.write_bytes(msgpack.packb(packable(state), use_bin_type=True))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")
    return path


def _strided(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta


def packable(value: Any) -> Any:
    """A tree for msgpack: names with slashes become maps in maps."""
    if isinstance(value, Tensor):
        if not _strided(value) or value.dtype in (torch.bfloat16, torch.float8_e4m3fn):
            return None
        packed = [list(value.shape), str(value.dtype).removeprefix("torch."), value.contiguous().numpy().tobytes()]
        return msgpack.ExtType(1, msgpack.packb(packed))
    if not isinstance(value, dict):
        return value if isinstance(value, str | float | bool | None) else repr(value)
    tree: dict[Any, Any] = {}
    for name, inner in value.items():
        node, (*path, last) = tree, name.split("/") if isinstance(name, str) else [name]
        for part in path:
            node = node.setdefault(part, {}) if isinstance(node.get(part, {}), dict) else {}
        node[last] = packable(inner)
    return tree


def damaged(path: Path, cuts: list[tuple[float, bytes]]) -> None:
    """Overwrite bytes at some places of the file, given as shares of its length."""
    data = path.read_bytes()
    for where, new in cuts:
        start = int(where * len(data))
        data = data[:start] + new + data[start + len(new) :]
    path.write_bytes(data)


# -- the test ----------------------------------------------------------------------------------------------------------------

places = st.floats(0, 1) | st.sampled_from([0.0, 0.0005, 0.001, 0.005, 0.99, 0.999])
STATES: dict[str, State] = {}


def official(name: str) -> State:
    if name not in STATES:
        STATES[name] = load_file(harness.root() / f"{SETS[name]}.safetensors")
    return dict(STATES[name])


@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(sorted(SETS)),
    other=st.none() | st.sampled_from(sorted(FORMATS)),
    made=st.lists(changes, max_size=3),
    kind=st.sampled_from(["torch", "torch", "legacy", "safetensors", "flax"]),
    cuts=st.lists(st.tuples(places, st.binary(min_size=1, max_size=8)), max_size=2),
    raw=st.booleans(),
)
@example(name="kl16", other="maskgit-jax", made=[], kind="torch", cuts=[], raw=False)
@example(name="maskgit-jax", other="maskgit-vqgan", made=[], kind="flax", cuts=[], raw=False)
def test_a_conversion_ends_in_weights_or_in_one_line(
    name: str, other: str | None, made: list[Change], kind: str, cuts: list[tuple[float, bytes]], raw: bool
) -> None:
    state = official(name)
    for change in made:
        state = change(state)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            path = written(state, kind, Path(folder) / "checkpoint")
        except Exception:  # what no library writes needs not be read
            return
        damaged(path, cuts)
        with contextlib.suppress(MgenError):
            result = convert(other or name, path, raw=raw)
            assert all(bool(torch.isfinite(value).all()) for value in result.model.state_dict().values())
