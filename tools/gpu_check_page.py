"""The page of tools/gpu_check.py, from its rows."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def page(about: dict[str, str], line: str, rows: Sequence[Row]) -> str:
    """Markdown: the machine, a table for each part, what failed, and every command."""
    failed = [row for row in rows if "error" in row]
    verdict = f"{len(rows)} runs, {len(failed)} failed." if failed else f"{len(rows)} runs, none failed."
    parts = [
        f"# GPU check\n\n`{line}`\n\n{verdict} Seconds are those of the clock; fp32 products are in fp32, without TF32.",
        "## Machine\n\n" + table(("", ""), about.items()),
    ]
    for title, part, make in (
        ("Tests", "tests", _tests),
        ("Sampling", "bench", _bench),
        ("Training", "training", _training),
    ):
        own = [row for row in rows if row["part"] == part and "result" in row]
        if own:
            parts.append(f"## {title}\n\n{make(own)}")
    if failed:
        parts.append(
            "## Failed\n\n" + "\n".join(f"* {row['part']} {row['name']}: {_plain(row['error'])}" for row in failed)
        )
    parts.append("## Commands\n\n```sh\n" + "\n".join(row["command"] for row in rows) + "\n```")
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Any) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(str(cell)) for cell in row) + " |" for row in lines)


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _tests(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        r = row["result"]
        bad = r["failures"] + r["errors"]
        lines.append(
            (row["name"], r["tests"] - bad - r["skipped"], bad, r["skipped"], row["seconds"], ", ".join(r["failed"]))
        )
    return table(("tests", "passed", "failed", "skipped", "s", "which failed"), lines)


def _bench(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        r = row["result"]
        cells = (
            1 / r["seconds_per_image"],
            r["seconds_per_image"],
            r["peak_memory_gb"],
            100 * r["share_of_peak"]["all"],
        )
        first = _number(r["compile_seconds"]) if r["compile"] != "off" else ""
        name = row["name"].split()[0]
        lines.append((name, r["dtype"], r["compile"], r["batch_size"], *map(_number, cells), first))
    head = (
        "model",
        "dtype",
        "compile",
        "batch",
        "images/s",
        "s/image",
        "peak memory, GB",
        "share of matmul peak, %",
        "first batch, s",
    )
    return table(head, lines)


def _training(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        name, _, mode = row["name"].split()
        for r in row["result"]["rows"]:
            here = r["here"]
            mfu = None if here["mfu"] is None else 100 * here["mfu"]
            numbers = here["images_per_second"], mfu, here["memory_bytes"] / 1e9, 100 * here["data_wait"]
            lines.append((name, r["precision"], mode, r["batch_size"], *map(_number, numbers)))
    head = ("model", "precision", "compile", "batch", "images/s", "MFU, %", "peak memory, GB", "waiting for data, %")
    return table(head, lines)
