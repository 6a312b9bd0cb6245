"""Comparison of results: which may share a table, what differs between them, and the columns of the table."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mgen.evaluation.result import Facts, Result
from mgen.reports import data
from mgen.reports.read import ReportRun, is_number
from mgen.utils.errors import MgenError

# The number of steps in the path of a training run's checkpoint.
STEP = re.compile(r"(?i)\b((?:checkpoint|ckpt|step|steps|iter|epoch)[-_=]?)(\d+)(?![\d.])")


@dataclass(kw_only=True)
class Column:
    """A column of a comparison. kind: setting, metric or cost; better: lower, higher or None; best: rows with the best value."""

    name: str
    kind: str
    cells: list[str]
    values: Sequence[object]
    better: str | None = None
    best: set[int] = field(default_factory=set)

    @property
    def numeric(self) -> bool:
        return all(v is None or is_number(v) for v in self.values)


@dataclass(kw_only=True)
class Group:
    """Runs whose numbers are comparable."""

    runs: list[ReportRun]

    @property
    def title(self) -> str:
        result = self.runs[0].result
        protocol, reference = result["protocol"], result["reference"]
        against = f"reference {reference.get('name')}" if reference else "no reference"
        counts = " or ".join(f"{count:,}" for count in sorted({run.result["count"] for run in self.runs}))
        return f"Protocol {protocol.get('name')} ({protocol.get('id')}), {against}, {counts} images"

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(name for run in self.runs for name in run.result["metrics"]))

    def better(self, name: str) -> str | None:
        return next((run.result["better"][name] for run in self.runs if name in run.result["better"]), None)


def difference(a: Result, b: Result) -> str | None:
    """Why the numbers of two results are not comparable; None if they are."""
    parts: Sequence[tuple[str, str, Facts, Facts]] = (
        ("protocols", "id", a["protocol"], b["protocol"]),
        ("references", "sha256", a["reference"] or {}, b["reference"] or {}),
        ("extractors", "sha256", a["extractor"], b["extractor"]),
        ("classifiers", "sha256", a["classifier"] or {}, b["classifier"] or {}),
    )
    for what, key, mine, theirs in parts:
        # With other classifiers the names of the metrics differ too.
        other = what == "classifiers" and mine.get("name") != theirs.get("name")
        if other or mine.get(key) == theirs.get(key):
            continue
        names = [f"{part.get('name', '?')} ({str(part.get(key))[:8]})" if part else "none" for part in (mine, theirs)]
        return f"their {what} differ: {names[0]} and {names[1]}"
    if data.has_distance(a) and data.has_distance(b) and a["count"] != b["count"]:
        return f"their distances are of {a['count']} and of {b['count']} images, and distances fall with the count"
    return None


def grouped(runs: Sequence[ReportRun], *, allow_mixed: bool) -> list[Group]:
    """The runs in groups of comparable ones, keeping their order.

    Raises:
        MgenError: there is more than one group, and `allow_mixed` is not set.
    """
    groups: list[Group] = []
    for run in runs:
        reasons = [(other, difference(other.result, run.result)) for group in groups for other in group.runs]
        if not allow_mixed and (found := next(((o, why) for o, why in reasons if why), None)):
            raise MgenError(
                f"{found[0].title!r} (result {found[0].number}) and {run.title!r} (result {run.number}) cannot be compared: {found[1]}. "
                "Measure them the same way, or allow separate tables on one page with --allow-mixed"
            )
        home = next((g for g in groups if not any(difference(o.result, run.result) for o in g.runs)), None)
        if home is None:
            groups.append(home := Group(runs=[]))
        home.runs.append(run)
    return groups


def settings(result: Result) -> Facts:
    """What the images are and how they were sampled, flattened; the sampler's keys come without its name."""
    images = dict(result["images"])
    own = images.pop("sampler", None)
    sampler = data.flatten(own) if isinstance(own, Mapping) else {}
    flat = {"count": result["count"], **data.flatten(images)}
    return flat | {(f"sampler.{key}" if key in flat else key): value for key, value in sampler.items()}


def differing(results: Sequence[Result]) -> dict[str, list[object]]:
    """Settings that differ between the results, with their values; None where a result lacks the key."""
    flat = [settings(result) for result in results]
    keys = dict.fromkeys(key for one in flat for key in one)
    values = {key: [one.get(key) for one in flat] for key in keys}
    found = {key: column for key, column in values.items() if any(x != column[0] for x in column)}
    if "model" in found:
        for key in ("weights_sha256", "model_sha256"):  # another model has others
            found.pop(key, None)
        models = list(map(str, found["model"]))
        steps: list[object] = [int(match[-1][1]) for model in models if (match := STEP.findall(model))]
        if len(steps) == len(models):  # the same training at several steps, or several trainings
            del found["model"]
            bases: list[object] = [STEP.sub(r"\1…", model) for model in models]
            if len(set(bases)) > 1:
                found["model"] = bases
            if len(set(steps)) > 1 and steps not in found.values():
                found["training step"] = steps
    return found


def columns(group: Group) -> list[Column]:
    """The comparison: settings that differ, metrics ± deviations, cost."""
    results = [run.result for run in group.runs]
    found = []
    for key, values in differing(results).items():
        cells = [str(v)[:8] if key.endswith("sha256") and v else data.plain(v) for v in values]
        found.append(Column(name=key, kind="setting", cells=cells, values=values))
    taken = {column.name for column in found}
    for name in group.metrics:
        if "deviation over" in name:
            continue  # belongs to another metric; shown with each run
        numbers = [result["metrics"].get(name) for result in results]
        cells, better = [data.metric(result, name) for result in results], group.better(name)
        best = best_rows(numbers, better)
        found.append(Column(name=name, kind="metric", cells=cells, values=numbers, better=better, best=best))
    costs = [result["cost"] or {} for result in results]
    for key in dict.fromkeys(key for cost in costs for key in cost):
        values = [cost.get(key) for cost in costs]
        same = all(value == values[0] for value in values)
        if key in taken or (same and key not in ("tflops_per_image", "seconds_per_image")):
            continue
        cells = (
            data.column_numbers(values) if all(isinstance(v, float) for v in values) else list(map(data.number, values))
        )
        found.append(Column(name=data.COST.get(key, key.replace("_", " ")), kind="cost", cells=cells, values=values))
    return found


def best_rows(values: Sequence[float | None], better: str | None) -> set[int]:
    """The rows with the best value; empty if all values are equal."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    if better not in ("lower", "higher") or len(set(there)) < 2:
        return set()
    best = min(there) if better == "lower" else max(there)
    return {i for i, value in enumerate(values) if value == best}


def same_for_all(group: Group) -> list[tuple[str, str]]:
    """The most important settings that the runs of a group share."""
    results = [run.result for run in group.runs]
    shared, known = settings(results[0]), differing(results)
    hidden = {"model"} if "training step" in known else set()
    keys, common = ("model", "steps", "order", "schedule", "labels", "seed"), shared.keys() - known.keys() - hidden
    rows = [(key, data.plain(shared[key])) for key in keys if key in common]
    cost = results[0]["cost"] or {}
    if "hardware" in cost and all((r["cost"] or {}).get("hardware") == cost["hardware"] for r in results):
        rows.append(("seconds measured on", data.plain(cost["hardware"])))
    return rows


def told_apart(group: Group) -> list[str]:
    """What distinguishes each run, in a few words; "" if nothing or too much does."""
    known = [column for column in columns(group) if column.kind == "setting"]
    if not 0 < len(known) <= 3:
        return [""] * len(group.runs)
    return [", ".join(f"{column.name} {column.cells[i]}" for column in known) for i in range(len(group.runs))]


def run_names(groups: Sequence[Group]) -> dict[int, str]:
    """A heading for each run: its title and what distinguishes it."""
    told = [pair for group in groups for pair in zip(group.runs, told_apart(group))]
    return {run.number: f"{run.title}{': ' if words else ''}{words}" for run, words in told}


def notes(group: Group) -> list[str]:
    """What to know before comparing; notes on some of the runs name them."""
    on: dict[str, list[int]] = {}
    for run in group.runs:
        for text in data.warnings(run.result):
            on.setdefault(text, []).append(run.number)
    every = len(group.runs)
    return [t if len(runs) == every else f"Run {', '.join(map(str, runs))}: {t}" for t, runs in on.items()]


def best_of(group: Group) -> list[tuple[str, str, str, str]]:
    """Name, best value, direction and best runs of each metric that has a direction."""
    found, names = [], told_apart(group)
    for column in columns(group):
        if column.kind == "metric" and column.best:
            best = sorted(column.best)
            numbers = ", ".join(str(group.runs[i].number) for i in best)
            name = names[best[0]] or group.runs[best[0]].title
            who = f"run {numbers} ({name})" if len(best) == 1 else f"runs {numbers}"
            found.append((column.name, column.cells[best[0]], data.direction(column.better), who))
    return found
