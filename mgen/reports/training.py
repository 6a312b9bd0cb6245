"""The log of a training, read for a report: its curves, its settings, and what is trained on what."""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mgen.reports.data import flatten
from mgen.reports.read import cleaned
from mgen.utils.errors import MgenError
from mgen.utils.logged import NO_CURVE, logged
from mgen.utils.reading import parse_json, read_mapping, read_text
from mgen.utils.schema import build, schema

MOST_LOG = 2**28  # bytes
# Settings without which two runs are the same: places, logs, how the work is cut, what is sampled for previews.
PLACES: tuple[str, ...] = (
    "about",
    "output",
    "resume",
    "processes",
    "accumulate",
    "log",
    "model",
    "data.kind",
    "data.path",
    "data.val_path",
    "data.workers",
    "data.image_size",
    "data.channels",
)
PLACES += tuple(
    f"objective.{name}"
    for name in ("tokenizer", "sampler", "vision_weights", "perceptual_model", "logits_model", "discriminator_weights")
)
SMOOTHED = 15  # a curve is smoothed over a 15th of its values
Points = list[tuple[float, float]]


@schema(extra=True)
class Line:
    """One line of metrics.jsonl."""

    step: Annotated[int, Field(ge=0, le=10**9)]


Values = dict[str, Annotated[float, Field(ge=-1e30, le=1e30)] | None]


@schema
class LogFile:
    lines: list[Values]


@dataclass(frozen=True, kw_only=True)
class Training:
    """curves: value → (step, value), by step. batch: images per step. about: the model and the data in words and numbers."""

    name: str
    folder: Path
    curves: Mapping[str, Points]
    batch: float
    seconds: float
    about: Mapping[str, object]
    settings: Mapping[str, object]  # with dotted keys

    @property
    def steps(self) -> int:
        return int(max((points[-1][0] for points in self.curves.values()), default=0))

    def over_images(self, metric: str) -> Points:
        """The curve over images seen."""
        return [(step * self.batch, value) for step, value in self.curves.get(metric, [])]


def read_training(folder: Path, name: str) -> Training:
    """The training in a folder; MgenError if its log or its settings can't be read."""
    file = folder / "metrics.jsonl"
    lines = _read_lines(file)
    settings: dict[str, Any] = {}
    for other in ("training.json", "config.json"):  # a model's folder has a config.json that is not of the training
        if (folder / other).is_file():
            settings = read_mapping(folder / other)
            break
    curves: dict[str, dict[int, float]] = {}
    for line in lines:
        step = int(line["step"] or 0)
        for key, value in line.items():
            if key not in NO_CURVE and value is not None:
                curves.setdefault(cleaned(key), {})[step] = (
                    value  # a run that was rerun after its end has some steps twice
                )
    if not curves:
        raise MgenError(f"{file} holds no values yet: wait for the first line of the log (setting log.every)")
    seen = [(line["images"], line["step"]) for line in lines if line.get("images") and line.get("step")]
    batch = settings.get("batch_size")
    if seen:
        batch = (seen[-1][0] or 0.0) / (seen[-1][1] or 1.0)
    elif not isinstance(batch, int):
        raise MgenError(
            f"{file} says nowhere how many images were seen, and {folder} has no settings: give the whole folder"
        )
    about = settings.get("about")
    return Training(
        name=cleaned(name),
        folder=folder,
        curves={key: sorted((float(s), v) for s, v in points.items()) for key, points in curves.items()},
        batch=float(batch),
        seconds=max((line["seconds"] or 0.0 for line in lines if "seconds" in line), default=0.0),
        about={cleaned(str(k)): v for k, v in about.items()} if isinstance(about, dict) else {},
        settings={cleaned(k): v for k, v in flatten(settings).items() if not _is_place(k)},
    )


def _read_lines(file: Path) -> list[Values]:
    """The lines of a log. The last one may have been cut off by a crash."""
    texts = [text for text in read_text(file, most=MOST_LOG).splitlines() if text.strip()]
    lines = []
    for number, text in enumerate(texts, 1):
        where = f"{file}, line {number}"
        try:
            lines.append(parse_json(text, where))
        except MgenError:
            if number < len(texts):
                raise
        else:
            build(Line, lines[-1], f"{where}: ")
    return build(LogFile, {"lines": lines}, f"{file}: ").lines


def _is_place(key: str) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in PLACES)


def smooth(points: Points, metric: str) -> Points:
    """The mean of each value and its neighbors, a 15th of the curve in all; the ends have fewer. Of an exact value the value itself."""
    if not logged(metric).noisy:
        return points
    half = len(points) // SMOOTHED // 2
    out = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)  # as many on both sides, so that a slope does not shift the ends
        part = points[i - reach : i + reach + 1]
        out.append((x, sum(value for _, value in part) / len(part)))
    return out


def value_at(points: Points, x: float) -> float | None:
    """The value at x, linear between two points; None outside of the curve."""
    if not points or not points[0][0] <= x <= points[-1][0]:
        return None
    right = bisect.bisect_left(points, (x, float("-inf")))
    if points[right][0] == x or right == 0:
        return points[right][1]
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def thinned(points: Points, most: int = 300) -> Points:
    """At most so many points, evenly spread, with the last one."""
    if len(points) <= most:
        return points
    return [points[i * (len(points) - 1) // (most - 1)] for i in range(most)]
