"""Sweeps: several methods of sampling over several numbers of steps, compared at equal steps, equal distance and equal time.

A sweep file is YAML with

    base: <name of the method the others are compared with>
    steps: [4, 8, 16]
    methods: {name: {setting of the sampler: value, …}, …}

where `reuse.full_first` may be a share of the steps (0.375 of 32 steps: the first 12), and a method may list its own `steps`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import torch
from tqdm import tqdm

from mgen.bench.benchmark import Clock, make_noise, run_batch
from mgen.bench.flops import Networks, count_run
from mgen.bench.proxy import AnyGenerator
from mgen.samplers import ParallelSampler
from mgen.tune.strategies import own_settings
from mgen.utils.config import Settings, merge, read_config
from mgen.utils.errors import MgenError
from mgen.utils.files import read_json, write_json
from mgen.utils.folders import part
from mgen.utils.modeling import check_keys

Measure = Literal["distance", "seconds", "tflops"]
# Two distances that differ by less than this share count as equal: sampling the images once more changes a distance about as much.
EQUAL = 0.02


class Row(TypedDict):
    """One method at one number of steps; the rest is per image.

    Attributes:
        full, cached: passes of the trunk, those of the null class included. tflops, seconds: without decoding.
        distance: of the images; absent with random weights.
    """

    method: str
    steps: int
    full: int
    cached: int
    tflops: float
    seconds: float
    distance: NotRequired[float]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Settings of a sweep: its base, and (method, steps, sampler) in the order in which they run."""

    base: str
    runs: Sequence[tuple[str, int, ParallelSampler]]


def read_sweep(name: str, sampler: ParallelSampler, generator: AnyGenerator) -> Sweep:
    """A sweep of configs/sweeps or of a file, on top of the settings of `sampler`; MgenError for anything wrong in it."""
    shipped = part("configs") / "sweeps" / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    data = read_config(path)
    check_keys(data, {"base", "steps", "methods", "sampler"}, f"{path}: ")
    methods, steps = data.get("methods"), data.get("steps")
    if not isinstance(methods, dict) or not methods or not isinstance(steps, list) or data.get("base") not in methods:
        raise MgenError(f"{path} needs `steps` (a list), `methods` (a mapping) and `base`, one of the methods")
    own, runs = merge(own_settings(sampler), data.get("sampler") or {}), []
    for method, settings in methods.items():
        if settings is not None and not isinstance(settings, dict):
            raise MgenError(
                f"{path}: methods.{method} is {settings!r}: expected a mapping of sampler settings, or {{}}"
            )
        settings = dict(settings or {})
        counts = settings.pop("steps", steps)
        if not isinstance(counts, list) or not all(type(n) is int for n in counts):
            raise MgenError(f"{path}: the steps of {method} are {counts!r}: expected a list of whole numbers")
        for count in counts:
            made = ParallelSampler.from_settings(with_steps(own, settings, count), f"{path}: methods.{method}")
            made.check(generator)
            runs.append((str(method), count, made))
    return Sweep(base=str(data["base"]), runs=runs)


def with_steps(own: Settings, settings: Settings, steps: int) -> Settings:
    """Settings of a method laid on `own`, with a number of steps and `reuse.full_first` as one."""
    out = merge({**own, "steps": steps}, settings)
    reuse = out.get("reuse")
    if isinstance(reuse, dict) and isinstance(first := reuse.get("full_first"), float):
        out["reuse"] = {**reuse, "full_first": round(first * steps)}
    return out


def run_sweep(
    pipe: Networks,
    sweep: Sweep,
    *,
    file: Path,
    about: Mapping[str, object],
    batch_size: int,
    repeats: int,
    dtype: str = "fp32",
    distance: Callable[[ParallelSampler], float] | None = None,
    retime: bool = False,
) -> list[Row]:
    """Measure every run of the sweep. Rows in `file` are kept, so an interrupted sweep resumes.

    Args:
        about: what else decides the numbers; a file with another `about`, or with rows of other settings, raises an error.
        batch_size: of the timing. repeats: timed runs of each setting, in turn with the others; the fastest counts.
        retime: measure the seconds of rows in `file` again, for example after measuring distances for hours on a busy machine.
        distance: draws images with a sampler and measures them; None: random weights, time and operations only.
    """
    settings = {f"{method}, {steps} steps": own_settings(sampler) for method, steps, sampler in sweep.runs}
    written = json.loads(json.dumps({**about, "settings": settings}))
    rows: list[Row] = []
    if file.is_file():
        found = read_json(file)
        if found.get("about") != written:
            raise MgenError(f"{file} holds a sweep with other settings: choose another --out, or remove it")
        rows = found["rows"]
    done = {(row["method"], row["steps"]) for row in rows}
    todo = [run for run in sweep.runs if run[:2] not in done]
    to_time = sweep.runs if retime else todo
    if to_time:  # the first steps of a process are slow
        time_run(pipe.generator, to_time[0][2], batch_size, dtype, steps=1)
    with tqdm(total=len(to_time) * repeats + len(todo) * (distance is not None), unit="run", desc="sweep") as bar:
        times: dict[tuple[str, int], float] = {}
        for method, steps, sampler in [*to_time] * repeats:  # in turn, so that all settings see the same machine
            seconds = time_run(pipe.generator, sampler, batch_size, dtype) / batch_size
            times[method, steps] = min(times.get((method, steps), seconds), seconds)
            bar.update()
        for row in rows if retime else ():
            row["seconds"] = times[row["method"], row["steps"]]
        write_json(file, {"about": written, "base": sweep.base, "rows": rows})
        for method, steps, sampler in todo:
            counts = count_run(pipe, sampler, decode=False)
            full, cached = counts.passes.values()
            row = Row(
                method=method,
                steps=steps,
                full=full,
                cached=cached,
                tflops=counts.total / 1e12,
                seconds=times[method, steps],
            )
            if distance is not None:
                row["distance"] = distance(sampler)
                bar.update()
            rows.append(row)
            write_json(file, {"about": written, "base": sweep.base, "rows": rows})
    return rows


@torch.inference_mode()
def time_run(
    generator: AnyGenerator, sampler: ParallelSampler, batch_size: int, dtype: str, steps: int | None = None
) -> float:
    """Wall seconds of one batch, without its noise and decoding; of the first `steps` steps only, if given."""
    noise, clock = make_noise(generator, sampler, batch_size), Clock(generator.device)
    start = clock.read()
    run_batch(generator, sampler, noise, dtype, steps)
    return clock.read() - start


# -- comparisons -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """A row and its ratios to the base at as many steps, by measured seconds and by FLOPs; None where the base has no such row."""

    row: Row
    faster: float | None = None
    predicted: float | None = None


@dataclass(frozen=True, kw_only=True)
class Match:
    """The best row of a method for a goal that the base sets: its distance, or its seconds. None: no row reaches it."""

    goal: float
    method: str
    row: Row | None
    base_seconds: float


def equal_steps(rows: Sequence[Row], base: str) -> list[Speedup]:
    """Every row beside the base at the same number of steps."""
    first = {row["steps"]: row for row in rows if row["method"] == base}
    ordered = sorted(rows, key=lambda row: row["steps"])
    pairs = [(row, first.get(row["steps"])) for row in ordered]
    return [
        Speedup(row=row, faster=other["seconds"] / row["seconds"], predicted=other["tflops"] / row["tflops"])
        if other
        else Speedup(row=row)
        for row, other in pairs
    ]


def equal_distance(rows: Sequence[Row], base: str) -> list[Match]:
    """For every distance that the base reaches, the fastest setting of each method that reaches it too (within EQUAL)."""
    goals = frontier([row for row in rows if row["method"] == base], "seconds")
    return _matches(rows, goals, reach="distance", least="seconds")


def equal_time(rows: Sequence[Row], base: str) -> list[Match]:
    """For every time that the base takes, the least distance of each method within it (and EQUAL)."""
    goals = sorted((row for row in rows if row["method"] == base), key=lambda row: row["seconds"])
    return _matches(rows, goals, reach="seconds", least="distance")


def _matches(rows: Sequence[Row], goals: Sequence[Row], *, reach: Measure, least: Measure) -> list[Match]:
    """Of each method the row of the least `least` that reaches the goal's `reach`, for every goal."""
    out = []
    for goal in goals:
        for method in dict.fromkeys(row["method"] for row in rows):
            fits = [row for row in rows if row["method"] == method and row[reach] <= goal[reach] * (1 + EQUAL)]
            best = min(fits, key=lambda row: row[least], default=None)
            out.append(Match(goal=goal[reach], method=method, row=best, base_seconds=goal["seconds"]))
    return out


def frontier(rows: Sequence[Row], cost: Measure) -> list[Row]:
    """The rows that no other beats in both cost and distance, cheapest first."""
    out: list[Row] = []
    for row in sorted(rows, key=lambda row: (row[cost], row["distance"])):
        if not out or row["distance"] < out[-1]["distance"]:
            out.append(row)
    return out
