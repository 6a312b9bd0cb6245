"""Sweeps: several methods of sampling over several numbers of steps, compared at equal steps, equal distance and equal time.

A sweep file is YAML with

    base: <name of the method the others are compared with>
    steps: [4, 8, 16]
    methods: {name: {setting of the sampler: value, …}, …}

where `reuse.full_first` may be a share of the steps (0.375 of 32 steps: the first 12), and a method may list its own `steps`.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mgen.bench.benchmark import Clock
from mgen.bench.flops import count_run
from mgen.samplers import ParallelSampler
from mgen.tune.strategies import own_settings
from mgen.utils.config import merge, read_config
from mgen.utils.errors import MgenError
from mgen.utils.files import read_json, write_json
from mgen.utils.folders import part
from mgen.utils.modeling import check_keys

Row = dict[str, Any]
# Two distances that differ by less than this share count as equal: what one more draw of the images changes is about so much.
EQUAL = 0.02


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Settings of a sweep: its base, and (method, steps, sampler) in the order in which they run."""

    base: str
    runs: Sequence[tuple[str, int, ParallelSampler]]


def read_sweep(name: str, sampler: ParallelSampler, generator: Any) -> Sweep:
    """A sweep of configs/sweeps or of a file, on top of the settings of `sampler`.

    Raises:
        MgenError: no such file, unknown keys, or settings that the generator does not take.
    """
    shipped = part("configs") / "sweeps" / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    data = read_config(path)
    check_keys(data, {"base", "steps", "methods", "sampler"}, f"{path}: ")
    methods, steps = data.get("methods"), data.get("steps")
    if not isinstance(methods, dict) or not methods or not isinstance(steps, list) or data.get("base") not in methods:
        raise MgenError(f"{path} needs `steps` (a list), `methods` (a mapping) and `base`, one of the methods")
    for method, settings in methods.items():
        if settings is not None and not isinstance(settings, dict):
            raise MgenError(
                f"{path}: methods.{method} is {settings!r}: expected a mapping of sampler settings, or {{}}"
            )
        own_steps = (settings or {}).get("steps", steps)
        if not isinstance(own_steps, list) or not all(type(n) is int for n in own_steps):
            raise MgenError(f"{path}: the steps of {method} are {own_steps!r}: expected a list of whole numbers")
    own = merge(own_settings(sampler), data.get("sampler") or {})
    runs = []
    for method, settings in methods.items():
        settings = dict(settings or {})
        for count in settings.pop("steps", steps):
            made = ParallelSampler.from_settings(_with(own, settings, count), f"{path}: methods.{method}")
            made.check(generator)
            runs.append((str(method), count, made))
    return Sweep(base=str(data["base"]), runs=runs)


def _with(own: dict[str, Any], settings: dict[str, Any], steps: int) -> dict[str, Any]:
    out = merge({**own, "steps": steps}, settings)
    reuse = out.get("reuse")
    if isinstance(reuse, dict) and isinstance(first := reuse.get("full_first"), float):
        out["reuse"] = {**reuse, "full_first": round(first * steps)}
    return out


def run_sweep(
    pipe: Any,
    sweep: Sweep,
    *,
    file: Path,
    about: dict[str, Any],
    batch_size: int,
    repeats: int,
    dtype: str = "fp32",
    distance: Callable[[ParallelSampler], float] | None = None,
    retime: bool = False,
) -> list[Row]:
    """Measure every run of the sweep; rows that `file` holds already are kept, so an interrupted sweep goes on.

    Args:
        about: what else decides the numbers; a file with another `about`, or with rows of other settings, is refused.
        batch_size: of the timing. repeats: timed runs of each setting, in turn with the others; the fastest counts.
        retime: measure the seconds of rows that are there again, as after distances that took hours on a busy machine.
        distance: draws images with a sampler and measures them; None: random weights, time and operations only.

    Returns:
        method, steps, full, local (evaluations per image), tflops, seconds (per image, without decoding) and distance.
    """
    about = json.loads(json.dumps(about))
    about["settings"] = {f"{m}, {n} steps": json.loads(json.dumps(own_settings(s))) for m, n, s in sweep.runs}
    rows: list[Row] = []
    if file.is_file():
        if read_json(file).get("about") != about:
            raise MgenError(f"{file} holds a sweep with other settings: choose another --out, or remove it")
        rows = read_json(file)["rows"]
    done = {(row["method"], row["steps"]) for row in rows}
    todo = [run for run in sweep.runs if run[:2] not in done]
    bare, timed = _Bare(pipe.generator, None), sweep.runs if retime else todo
    times = {run[:2]: float("inf") for run in timed}
    if timed:  # the first steps of a process are slow
        time_run(pipe.generator, timed[0][2], batch_size, dtype, steps=1)
    with tqdm(total=len(timed) * repeats + len(todo) * (distance is not None), unit="run", desc="sweep") as bar:
        for _ in range(repeats):  # in turn, so that all settings see the same machine
            for method, steps, sampler in timed:
                seconds = time_run(pipe.generator, sampler, batch_size, dtype) / batch_size
                times[method, steps] = min(times[method, steps], seconds)
                bar.update()
        for there in rows if retime else ():
            there["seconds"] = times[there["method"], there["steps"]]
        write_json(file, {"about": about, "base": sweep.base, "rows": rows})
        for method, steps, sampler in todo:
            counts = count_run(bare, sampler)
            row: Row = {"method": method, "steps": steps, "full": counts.full, "local": counts.local}
            row |= {"tflops": counts.total / 1e12, "seconds": times[method, steps]}
            if distance is not None:
                row["distance"] = distance(sampler)
                bar.update()
            rows.append(row)
            write_json(file, {"about": about, "base": sweep.base, "rows": rows})
    return rows


@dataclass
class _Bare:
    generator: Any
    tokenizer: Any


@torch.inference_mode()
def time_run(
    generator: Any, sampler: ParallelSampler, batch_size: int, dtype: str = "fp32", steps: int | None = None
) -> float:
    """Wall seconds of one batch, without decoding; of the first `steps` steps only, if given."""
    from mgen.pipelines.pipeline import DTYPES

    device = generator.device
    cast = nullcontext() if dtype == "fp32" else torch.autocast(device.type, DTYPES[dtype])
    condition = torch.arange(batch_size, device=device) % generator.num_classes
    noise = sampler.draw(generator, range(batch_size)).to(device)
    clock = Clock(device)
    start = clock.read()
    with cast:
        for _ in islice(sampler(generator, condition, noise=noise), steps):
            pass
    return clock.read() - start


# -- comparisons -----------------------------------------------------------------------------------------------------------


def equal_steps(rows: list[Row], base: str) -> list[Row]:
    """Every row with its ratios to the base at the same number of steps: measured, and as the operations predict."""
    first = {row["steps"]: row for row in rows if row["method"] == base}
    out = []
    for row in rows:
        other = first.get(row["steps"])
        ratios = {"faster": None, "predicted": None}
        if other:
            ratios = {"faster": other["seconds"] / row["seconds"], "predicted": other["tflops"] / row["tflops"]}
        out.append({**row, **ratios})
    return sorted(out, key=lambda row: row["steps"])


def equal_distance(rows: list[Row], base: str) -> list[Row]:
    """For every distance that the base reaches, the cheapest setting of each method that reaches it too (within EQUAL)."""
    out = []
    for goal in frontier([row for row in rows if row["method"] == base], "seconds"):
        for method in dict.fromkeys(row["method"] for row in rows):
            fits = [r for r in rows if r["method"] == method and r["distance"] <= goal["distance"] * (1 + EQUAL)]
            best = min(fits, key=lambda row: row["seconds"], default=None)
            out.append({"goal": goal["distance"], "method": method, "row": best, "base_seconds": goal["seconds"]})
    return out


def equal_time(rows: list[Row], base: str) -> list[Row]:
    """For every time that the base takes, the best distance of each method within it (and EQUAL)."""
    out = []
    for goal in sorted((row for row in rows if row["method"] == base), key=lambda row: row["seconds"]):
        for method in dict.fromkeys(row["method"] for row in rows):
            fits = [r for r in rows if r["method"] == method and r["seconds"] <= goal["seconds"] * (1 + EQUAL)]
            best = min(fits, key=lambda row: row["distance"], default=None)
            out.append({"goal": goal["seconds"], "method": method, "row": best})
    return out


def frontier(rows: list[Row], cost: str) -> list[Row]:
    """The rows that no other beats in both cost and distance, cheapest first."""
    out: list[Row] = []
    for row in sorted(rows, key=lambda row: (row[cost], row["distance"])):
        if not out or row["distance"] < out[-1]["distance"]:
            out.append(row)
    return out
