"""What a sweep found, for a person: three tables in Markdown and a plot of distance against cost."""

from pathlib import Path
from typing import Any

from mgen.bench.sweep import EQUAL, Row, equal_distance, equal_steps, equal_time, frontier
from mgen.utils.errors import MgenError
from mgen.utils.files import atomic_path


def markdown(rows: list[Row], base: str, about: dict[str, Any]) -> str:
    """Tables at equal steps and, where distances were measured, at equal distance and at equal time."""
    trained = "distance" in rows[0]
    measured = f" · distance: {about['distance']}" if trained else " · random weights: time and operations only"
    lines = [
        f"`{about['command']}`",
        "",
        f"{about['model']}, batch {about['batch_size']}, {about['threads']} threads, {about['dtype']}{measured}. TFLOPs and seconds are "
        "per image, without decoding; evaluations count class and null rows apart.",
        "",
        f"**At equal steps** (ratios to *{base}*: measured, and as the operations predict)",
        "",
        "| steps | method | full + local evaluations | TFLOPs | seconds | faster | predicted |"
        + (" distance |" if trained else ""),
        "|---" * (7 + trained) + "|",
    ]
    for row in equal_steps(rows, base):
        ratios = ["–" if row[key] is None else f"{row[key]:.2f}×" for key in ("faster", "predicted")]
        cells = [row["steps"], row["method"], f"{row['full']} + {row['local']}", f"{row['tflops']:.4g}"]
        cells += [f"{row['seconds']:.4g}", *ratios] + ([f"{row['distance']:.3f}"] if trained else [])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    if not trained:
        return "\n".join(lines) + "\n"
    lines += ["", f"**At equal distance** (at most {EQUAL:.0%} above what *{base}* reaches; the fastest setting)", ""]
    lines += ["| distance | method | steps | TFLOPs | seconds | faster |", "|---" * 6 + "|"]
    for found in equal_distance(rows, base):
        row = found["row"]
        cells = [f"{found['goal']:.3f}", found["method"]]
        cells += ["–", "–", "–", "not reached"] if row is None else _costs(row, found["base_seconds"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", f"**At equal time** (at most {EQUAL:.0%} above what *{base}* takes; the best setting)", ""]
    lines += ["| seconds | method | steps | distance |", "|---" * 4 + "|"]
    for found in equal_time(rows, base):
        row = found["row"]
        cells = [f"{found['goal']:.4g}", found["method"]]
        cells += ["–", "–"] if row is None else [row["steps"], f"{row['distance']:.3f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _costs(row: Row, base_seconds: float) -> list[Any]:
    return [row["steps"], f"{row['tflops']:.4g}", f"{row['seconds']:.4g}", f"{base_seconds / row['seconds']:.2f}×"]


def plot(rows: list[Row], file: Path) -> None:
    """Distance (random weights: operations) against seconds and, if trained, operations; .svg or .png by the file's name.

    Raises:
        MgenError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MgenError("the plot needs matplotlib: pip install 'mgen[plots]' (the tables are written)") from error
    trained = "distance" in rows[0]
    figure = Figure(figsize=(11 if trained else 6, 4.5), layout="constrained")
    costs = [("seconds", "seconds per image"), ("tflops", "TFLOPs per image")][: 2 if trained else 1]
    axes = figure.subplots(1, len(costs), squeeze=False)[0]
    value, label = ("distance", "distance") if trained else ("tflops", "TFLOPs per image")
    for panel, (cost, name) in zip(axes, costs):
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = sorted((row for row in rows if row["method"] == method), key=lambda row: row["steps"])
            panel.plot([r[cost] for r in mine], [r[value] for r in mine], marker="o", markersize=4, label=method)
            for row in mine:
                panel.annotate(
                    row["steps"], (row[cost], row[value]), fontsize=6, xytext=(3, 3), textcoords="offset points"
                )
        if trained:
            best = frontier(rows, cost)
            panel.step(
                [r[cost] for r in best], [r[value] for r in best], where="post", color="0.7", linewidth=5, zorder=0
            )
        panel.set(xlabel=name, ylabel=label, xscale="log")
        panel.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 + trained, fontsize=7)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format=file.suffix.lstrip("."))
