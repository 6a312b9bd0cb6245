"""The table of savings: plain form and ours in turn, and complete runs of both."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mgen.samplers import ParallelSampler


@dataclass
class Comparison:
    """Rows of the table: plain form and ours in turn, so that both see the same machine; the fastest of `repeats` counts."""

    device: torch.device
    repeats: int
    prefix: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, plain: Callable[[], Any], ours: Callable[[], Any], repeats: int | None = None) -> None:
        best, results = [float("inf")] * 2, [None, None]
        for _ in range(repeats or self.repeats):
            for i, function in enumerate((plain, ours)):
                start = time.perf_counter()
                results[i] = function()
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                best[i] = min(best[i], time.perf_counter() - start)
        row = {"saving": self.prefix + name, "plain_seconds": best[0], "seconds": best[1], "ratio": best[0] / best[1]}
        a, b = results
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            ids = not a.is_floating_point()
            row["difference"] = ((a != b).float().mean() if ids else (a - b).abs().max() / a.abs().max()).item()
        self.rows.append(row)


def whole(
    table: Comparison, generator: Any, sampler: ParallelSampler, batch_size: int, dtype: str, *, plain: Any, name: str
) -> None:
    """A complete sampling run with all savings, against the run of the generator `plain`."""
    from mgen.pipelines.pipeline import DTYPES

    label = torch.arange(batch_size, device=generator.device) % generator.num_classes
    noise = sampler.draw(generator, range(batch_size)).to(generator.device)
    name = f"{name}, batch {batch_size}"
    results: dict[str, Tensor] = {}

    def run(model: Any) -> Tensor:
        *_, last = sampler(model, label, noise=noise)
        return last.tokens

    def first() -> Tensor:
        if "plain" not in results:
            results["plain"] = run(plain)
        return results["plain"]

    def cast() -> Tensor:
        with torch.autocast(generator.device.type, DTYPES[dtype]):
            return run(generator)

    table.add(f"all together: {name}", first, lambda: run(generator), 1)
    if dtype != "fp32":
        seconds = table.rows[-1]["plain_seconds"]
        table.add(f"all together in {dtype} against plain fp32", first, cast, 1)
        row = table.rows[-1]  # the plain result is that of the row before, and so is its time
        row |= {"plain_seconds": seconds, "ratio": seconds / row["seconds"]}


def look_up_by_nonzero(positions: Tensor, length: int) -> tuple[Tensor, ...]:
    """Rows and places to draw, as a mask of tokens is searched for them; on a GPU this waits for the device."""
    wanted = torch.zeros(len(positions), length, dtype=torch.bool, device=positions.device)
    return wanted.scatter_(1, positions, True).nonzero(as_tuple=True)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a person."""
    width = max(len(row["saving"]) for row in rows)
    lines = [f"{'saving':<{width}} {'plain s':>9} {'s':>9} {'ratio':>6} {'rel. difference':>16}"]
    for row in rows:
        times = f"{row['plain_seconds']:>9.4f} {row['seconds']:>9.4f} {row['ratio']:>6.2f}"
        difference = f"{row['difference']:.1e}" if "difference" in row else ""
        lines.append(f"{row['saving']:<{width}} {times} {difference:>16}")
    return "\n".join(lines)
