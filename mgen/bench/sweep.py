"""Sweeps: several methods of sampling over several numbers of steps, compared at equal steps, equal distance and equal time.

A sweep file is YAML with

    base: <name of the method the others are compared with>
    steps: [4, 8, 16]
    methods: {name: {setting of the sampler: value, …}, …}

where `reuse.full_first` may be a share of the steps (0.375 of 32 steps: the first 12), and a method may list its own `steps`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, cast

import torch
from pydantic import Field
from tqdm import tqdm

from mgen.bench.benchmark import Clock, make_noise, run_batch
from mgen.bench.flops import Networks, count_run
from mgen.bench.proxy import AnyGenerator
from mgen.samplers import ParallelSampler
from mgen.tune.strategies import own_settings
from mgen.utils.changes import changes, differs
from mgen.utils.config import Settings, merge, read_config
from mgen.utils.errors import MgenError, shown
from mgen.utils.files import write_json
from mgen.utils.folders import shipped
from mgen.utils.reading import read_json
from mgen.utils.schema import Natural, Positive, Size, Text, build, schema

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


StepNumbers = Annotated[tuple[Size, ...], Field(min_length=1, max_length=1000)]


@schema
class SweepFile:
    """A sweep's file; see the head of this module."""

    base: Text
    steps: StepNumbers
    methods: dict[Text, dict[str, Any] | None]
    sampler: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.base not in self.methods:
            raise MgenError(f"base is {shown(self.base)}: it must be one of the methods, {', '.join(self.methods)}")


@schema
class MethodSteps:
    """The `steps` of one method."""

    steps: StepNumbers


@schema
class SweepRow:
    """A `Row` in sweep.json."""

    method: Text
    steps: Size
    full: Natural
    cached: Natural
    tflops: Positive
    seconds: Positive
    distance: float | None = None


@schema
class SweepResult:
    """sweep.json: rows, and what decides their numbers."""

    about: dict[str, Any]
    base: Text
    rows: tuple[SweepRow, ...]


def read_sweep(name: str, sampler: ParallelSampler, generator: AnyGenerator) -> Sweep:
    """A sweep of configs/sweeps or of a file, on top of the settings of `sampler`; MgenError for anything wrong in it."""
    path = shipped("sweeps").get(name, Path(name))
    data = build(SweepFile, read_config(path), f"{path}: ")
    own, runs = merge(own_settings(sampler), data.sampler), []
    for method, given in data.methods.items():
        where, settings = f"{path}: methods.{method}", dict(given or {})
        own_steps = settings.pop("steps", None)
        counts = data.steps if own_steps is None else build(MethodSteps, {"steps": own_steps}, f"{where}.").steps
        for count in dict.fromkeys(counts):
            made = ParallelSampler.from_settings(with_steps(own, settings, count), where)
            made.check(generator)
            runs.append((method, count, made))
    return Sweep(base=data.base, runs=runs)


def with_steps(own: Settings, settings: Settings, steps: int) -> Settings:
    """Settings of a method laid on `own`, with a number of steps and `reuse.full_first` as one."""
    out = merge({**own, "steps": steps}, settings)
    reuse = out.get("reuse")
    if isinstance(reuse, dict) and isinstance(first := reuse.get("full_first"), float):
        if not 0 <= first <= 1:
            raise MgenError(
                f"reuse.full_first is {first:g}: give a whole number of steps, or a share of them from 0 to 1"
            )
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
    rows = read_rows(file, written, measured=distance is not None) if file.exists() else []
    done = {(row["method"], row["steps"]) for row in rows}
    todo = [run for run in sweep.runs if run[:2] not in done]
    to_time = sweep.runs if retime else todo
    if to_time:  # the first steps of a process are slow
        time_run(pipe.transformer, to_time[0][2], batch_size, dtype, steps=1)
    with tqdm(total=len(to_time) * repeats + len(todo) * (distance is not None), unit="run", desc="sweep") as bar:
        times: dict[tuple[str, int], float] = {}
        for method, steps, sampler in [*to_time] * repeats:  # in turn, so that all settings see the same machine
            seconds = time_run(pipe.transformer, sampler, batch_size, dtype) / batch_size
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


def read_rows(file: Path, about: Settings, *, measured: bool) -> list[Row]:
    """The rows of an earlier run; MgenError if it had other settings. measured: whether rows have a distance."""
    found = build(SweepResult, read_json(file), f"{file}: ")
    if found.about != about:
        raise differs(file, "a sweep", list(changes(found.about, about)))
    rows: list[Row] = []
    for row in found.rows:
        kept = {name: value for name, value in asdict(row).items() if value is not None}
        if ("distance" in kept) != measured:
            raise MgenError(f"{file}: a row of {row.method} has {'no' if measured else 'a'} distance: remove the file")
        rows.append(cast(Row, kept))
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
