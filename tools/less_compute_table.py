"""The tables of docs/experiments/less_compute.md from the file of results; see tools/less_compute.py."""

import re
import statistics
from collections.abc import Sequence
from typing import Any

from scipy import stats

from mgen.utils.errors import MgenError

Row = dict[str, Any]
CONFIDENCE, FAR = 0.95, 0.15
HEAD = ("row", "settings", "TFLOPs per image", "ratio", "seconds per image", "ratio")


def interval(values: Sequence[float]) -> float:
    """Half the width of the t-interval of the mean, of at least two values."""
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(quantile * statistics.stdev(values) / len(values) ** 0.5)


def verdict(own: Sequence[float], plain: Sequence[float]) -> str:
    """How distances compare with those of the plain run: equal where the t-intervals of the means overlap."""
    if min(len(own), len(plain)) < 2:
        return "–"
    apart = statistics.mean(own) - statistics.mean(plain)
    if abs(apart) <= interval(own) + interval(plain):
        return "equal"
    return "worse" if apart > 0 else "better"


def shown_counts(rows: dict[str, Row]) -> list[str]:
    """Numbers of images to show: the one at which most distances are known, and larger ones at which a row can be compared."""
    totals: dict[str, int] = {}
    compared: dict[str, int] = {}
    for row in rows.values():
        for count, by_seed in row.get("distances", {}).items():
            totals[count] = totals.get(count, 0) + len(by_seed)
            compared[count] = compared.get(count, 0) + 1
    if not totals:
        return []
    most = max(totals, key=lambda count: (totals[count], int(count)))
    return [most, *sorted((c for c in totals if int(c) > int(most) and compared[c] > 1), key=int)]


def table(rows: dict[str, Row]) -> str:
    """Markdown of a trunk; the first row is the plain run."""
    plain = next(iter(rows.values()))
    counts, form = shown_counts(rows), any("form_ratio" in row for row in rows.values())
    head = [*HEAD, *(["ratio to the plain form"] if form else [])]
    for images in counts:
        head += [f"distance, {int(images):,} images", "against the plain run, same seeds", "quality"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        cells = [
            name,
            settings(row["set"]),
            f"{row['tflops']:.4g}",
            f"{row['tflops'] / plain['tflops']:.2f}",
            *seconds(row, plain),
        ]
        if form:
            cells.append(f"{row['form_ratio']:.2f}" if "form_ratio" in row else "–")
        for images in counts:
            cells += quality(
                row.get("distances", {}).get(images, {}), plain.get("distances", {}).get(images, {}), row is plain
            )
        lines.append("| " + " | ".join(cells) + " |")
    if form and "form_seconds" in plain:
        ratio = 1 / plain["form_ratio"]
        blank = ["–"] * (len(head) - 7)
        lines.append(
            "| "
            + " | ".join(["plain form", "", "–", "–", f"{plain['form_seconds']:.3g}", f"{ratio:.2f}", "1.00", *blank])
            + " |"
        )
    return "\n".join(lines) + "\n"


def settings(texts: Sequence[str]) -> str:
    """Settings as they are given to --set."""
    return "<br>".join(f"`{text}`" for text in texts)


def seconds(row: Row, plain: Row) -> list[str]:
    """Seconds and their ratio, marked where it is far from that of the operations."""
    if "seconds" not in row:
        return ["–", "–"]
    ratio, counted = row["time_ratio"], row["tflops"] / plain["tflops"]
    return [f"{row['seconds']:.3g}", f"{ratio:.2f}" + (" ⚠" if abs(ratio / counted - 1) > FAR else "")]


def quality(own: dict[str, float], plain: dict[str, float], same: bool) -> list[str]:
    """Mean and deviation over seeds, the mean difference at equal seeds with its interval, and what that means."""
    if not own:
        return ["–"] * 3
    values, n = list(own.values()), len(own)
    text = f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if n > 1 else "")
    if n != 3:
        text += f" ({n} seed{'s' * (n > 1)})"
    if same:
        return [text, "", ""]
    apart = [own[seed] - plain[seed] for seed in own if seed in plain]
    if not apart:
        return [text, "–", "–"]
    difference = f"{statistics.mean(apart):+.2f}" + (f" ± {interval(apart):.2f}" if len(apart) > 1 else "")
    return [text, difference, verdict(values, list(plain.values()))]


def filled(page: str, tables: dict[str, str]) -> str:
    """The page with each table between its two comments; MgenError for a table that has no place."""
    for name, text in tables.items():
        pattern = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- /table -->)", re.DOTALL)
        page, found = pattern.subn(lambda match, text=text: f"{match[1]}\n{text}\n{match[2]}", page)
        if found != 1:
            raise MgenError(
                f"the page has {found} places for the table of {name}: write <!-- table: {name} --> and <!-- /table --> once"
            )
    return page
