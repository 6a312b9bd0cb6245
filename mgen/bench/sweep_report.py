"""What a sweep found, for a person: three tables in Markdown and a plot of distance against cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mgen.bench.sweep import EQUAL, Measure, Row, equal_distance, equal_steps, equal_time, frontier
from mgen.utils.errors import MgenError
from mgen.utils.files import atomic_path


def markdown(rows: Sequence[Row], base: str, about: Mapping[str, object]) -> str:
    """Tables at equal steps and, where distances were measured, at equal distance and at equal time."""
    trained = "distance" in rows[0]
    measured = f" · metric: {about['distance']}" if trained else " · random weights: time and operations only"
    lines = [
        f"`{about['command']}`",
        "",
        f"{about['model']}, batch {about['batch_size']}, {about['threads']} threads, {about['dtype']}{measured}. TFLOPs and seconds are "
        "per image, without decoding; passes with and without the class are counted separately.",
        "",
        *_equal_steps(rows, base, trained),
    ]
    if trained:
        lines += ["", *_equal_distance(rows, base), "", *_equal_time(rows, base)]
    return "\n".join(lines) + "\n"


def _equal_steps(rows: Sequence[Row], base: str, trained: bool) -> list[str]:
    names = ["steps", "method", "full + cached passes", "TFLOPs/image", "s/image", "faster", "predicted"]
    cells = []
    for found in equal_steps(rows, base):
        row = found.row
        ratios = ["–" if ratio is None else f"{ratio:.2f}×" for ratio in (found.faster, found.predicted)]
        cells.append([row["steps"], row["method"], f"{row['full']} + {row['cached']}", f"{row['tflops']:.4g}"])
        cells[-1] += [f"{row['seconds']:.4g}", *ratios] + ([f"{row['distance']:.3f}"] if trained else [])
    title = f"**At equal steps** (ratios to *{base}*: measured, and as the FLOPs predict)"
    return _table(title, names + ["distance"] * trained, cells)


def _equal_distance(rows: Sequence[Row], base: str) -> list[str]:
    cells = []
    for found in equal_distance(rows, base):
        costs: list[object] = ["–", "–", "–", "not reached"]
        if row := found.row:
            faster = f"{found.base_seconds / row['seconds']:.2f}×"
            costs = [row["steps"], f"{row['tflops']:.4g}", f"{row['seconds']:.4g}", faster]
        cells.append([f"{found.goal:.3f}", found.method, *costs])
    title = f"**At equal distance** (at most {EQUAL:.0%} above what *{base}* reaches; the fastest setting)"
    return _table(title, ["distance", "method", "steps", "TFLOPs/image", "s/image", "faster"], cells)


def _equal_time(rows: Sequence[Row], base: str) -> list[str]:
    cells = []
    for found in equal_time(rows, base):
        best = ["–", "–"] if found.row is None else [found.row["steps"], f"{found.row['distance']:.3f}"]
        cells.append([f"{found.goal:.4g}", found.method, *best])
    title = f"**At equal time** (at most {EQUAL:.0%} above what *{base}* takes; the best setting)"
    return _table(title, ["s/image", "method", "steps", "distance"], cells)


def _table(title: str, names: Sequence[str], cells: Sequence[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(map(str, line)) + " |" for line in (names, *cells)]
    return [title, "", lines[0], "|---" * len(names) + "|", *lines[1:]]


def plot(rows: Sequence[Row], file: Path) -> None:
    """Distance (random weights: operations) against seconds and, if trained, operations; .svg or .png by the file's name.

    Raises:
        MgenError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MgenError("the plot needs matplotlib: pip install 'mgen[plots]' (the tables are written)") from error
    trained = "distance" in rows[0]
    drawing = Figure(figsize=(11 if trained else 6, 4.5), layout="constrained")
    costs: dict[Measure, str] = {"seconds": "seconds per image"}
    if trained:
        costs["tflops"] = "TFLOPs per image"
    axes = drawing.subplots(1, len(costs), squeeze=False)[0]
    value: Measure = "distance" if trained else "tflops"
    label = "distance" if trained else "TFLOPs per image"
    for panel, (cost, name) in zip(axes, costs.items()):
        for method in dict.fromkeys(row["method"] for row in rows):
            own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["steps"])
            panel.plot([r[cost] for r in own], [r[value] for r in own], marker="o", markersize=4, label=method)
            for r in own:
                panel.annotate(r["steps"], (r[cost], r[value]), fontsize=6, xytext=(3, 3), textcoords="offset points")
        if trained:
            best = frontier(rows, cost)
            points = [r[cost] for r in best], [r[value] for r in best]
            panel.step(*points, where="post", color="0.7", linewidth=5, zorder=0)
        panel.set(xlabel=name, ylabel=label, xscale="log")
        panel.grid(alpha=0.3)
    drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 + trained, fontsize=7)
    with atomic_path(file) as temporary:
        drawing.savefig(temporary, format=file.suffix.lstrip("."))
