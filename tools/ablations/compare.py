"""The table of ablations: plain form and ours in turn, and complete runs of both."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from mgen.bench.proxy import AnyGenerator, Proxy
from mgen.nn.precision import computing
from mgen.samplers import ParallelSampler
from mgen.utils.modeling import DTYPES


class Row(TypedDict):
    """An optimization beside the plain form: seconds of both, their ratio, and how far the results differ.

    Attributes:
        difference: the largest over the largest number of the plain result; of ids, the share that differs. Absent where there is
            nothing to compare.
    """

    ablation: str
    plain_seconds: float
    seconds: float
    ratio: float
    difference: NotRequired[float]


@dataclass
class AblationTable:
    """Rows of the table: plain form and ours in turn, so that both see the same machine; the fastest of `repeats` counts.

    clock: seconds, by default of the wall.
    """

    device: torch.device
    repeats: int
    prefix: str = ""
    rows: list[Row] = field(default_factory=list)
    clock: Callable[[], float] = time.perf_counter

    def add(
        self,
        name: str,
        plain: Callable[[], Tensor | None],
        ours: Callable[[], Tensor | None],
        repeats: int | None = None,
    ) -> None:
        best = [float("inf")] * 2
        results: list[Tensor | None] = [None, None]
        for _ in range(repeats or self.repeats):
            for i, function in enumerate((plain, ours)):
                start = self.clock()
                results[i] = function()
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                best[i] = min(best[i], self.clock() - start)
        ratio = best[0] / best[1]
        row = Row(ablation=self.prefix + name, plain_seconds=best[0], seconds=best[1], ratio=ratio)
        a, b = results
        if a is not None and b is not None:
            ids = not a.is_floating_point()
            row["difference"] = ((a != b).float().mean() if ids else (a - b).abs().max() / a.abs().max()).item()
        self.rows.append(row)


def complete_run(
    table: AblationTable,
    generator: AnyGenerator,
    sampler: ParallelSampler,
    batch_size: int,
    dtype: str,
    *,
    plain: Proxy,
    name: str,
) -> None:
    """Add a complete sampling run with all optimizations, beside the run of the generator `plain`.

    Args:
        dtype: "bf16" or "fp16" adds a run in that type beside the plain one in fp32.
    """
    device = generator.device
    class_ids = torch.arange(batch_size, device=device) % generator.num_classes
    noise = sampler.make_noise(generator, range(batch_size)).to(device)
    name = f"{name}, batch {batch_size}"

    def run(model: Any) -> Tensor:
        *_, last = sampler(model, class_ids, noise=noise)
        return last.tokens

    @cache
    def first() -> Tensor:
        return run(plain)

    def cast() -> Tensor:
        with computing(generator, DTYPES[dtype], device):
            return run(generator)

    table.add(f"all together: {name}", first, lambda: run(generator), 1)
    if dtype != "fp32":
        seconds = table.rows[-1]["plain_seconds"]
        table.add(f"all together in {dtype}, plain in fp32", first, cast, 1)
        row = table.rows[-1]  # the plain result is that of the row before, and so is its time
        row["plain_seconds"], row["ratio"] = seconds, seconds / row["seconds"]


def look_up_by_nonzero(positions: Tensor, length: int) -> tuple[Tensor, ...]:
    """Rows and positions to draw, found as nonzero entries of a mask; on a GPU this waits for the device."""
    wanted = torch.zeros(len(positions), length, dtype=torch.bool, device=positions.device)
    return wanted.scatter_(1, positions, True).nonzero(as_tuple=True)


def format_table(rows: list[Row]) -> str:
    """The rows for a person."""
    width = max(len(row["ablation"]) for row in rows)
    lines = [f"{'ablation':<{width}} {'plain s':>9} {'s':>9} {'ratio':>6} {'rel. difference':>16}"]
    for row in rows:
        times = f"{row['plain_seconds']:>9.4f} {row['seconds']:>9.4f} {row['ratio']:>6.2f}"
        difference = f"{row['difference']:.1e}" if "difference" in row else ""
        lines.append(f"{row['ablation']:<{width}} {times} {difference:>16}")
    return "\n".join(lines)
