"""Trials of a search over policies: what was measured, in a trace that a search is replayed from, and how it is measured.

Image i of a trial is made from (model, settings, seed, i) alone, so the images of a trial with more of them begin with those of one with
fewer: features are kept in the output folder and extended.
"""

import contextlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mgen.evaluation.bootstrap import multiplicities, weighted_sums
from mgen.evaluation.extractors import Extractor
from mgen.evaluation.frechet import distance, frechet_distance
from mgen.evaluation.measure import features_of
from mgen.evaluation.sources import from_model
from mgen.evaluation.statistics import FeatureSums, Reference
from mgen.samplers import ParallelSampler
from mgen.tune.budget import key_of
from mgen.tune.strategies import own_settings
from mgen.utils.errors import MgenError
from mgen.utils.files import write_tensors, write_text
from mgen.utils.reading import MOST_JSON_BYTES, parse_json, read_text
from mgen.utils.schema import Count, NonNegative, Positive, Text, build, schema

Side = Literal["search", "test"]
Key = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
REPLICATES = 20  # of the bootstrap
MOST_LENGTH = (
    512  # of features: a distance of longer ones takes seconds, and its spread is left out on the side of the search
)
MOST_BYTES = 2**26  # of the features of a trial that are kept


class Score(NamedTuple):
    """A Fréchet distance, and its standard deviation over replicates of the bootstrap (None: not computed)."""

    distance: float
    deviation: float | None


class Objective(Protocol):
    """Measures a sampler by the first `images` images of a seed, against the reference of a side."""

    def __call__(self, sampler: ParallelSampler, *, side: Side, seed: int, images: int) -> Score: ...


@schema
class Trial:
    """One line of a trace.

    Attributes:
        key: of the settings, see `key_of`. seconds: that the measurement took. settings: of the sampler.
    """

    key: Key
    side: Side
    seed: int
    images: Count
    distance: float
    deviation: NonNegative | None
    seconds: NonNegative
    settings: dict[Text, Any]

    def __post_init__(self) -> None:
        if key_of(self.settings) != self.key:
            raise MgenError(f"the trial {self.key} is of other settings than its key says")


@schema
class Timing:
    """One line of a trace: the seconds of an image."""

    key: Key
    side: Literal["cost"]
    cost: Positive


@dataclass(kw_only=True)
class Trace:
    """All trials, in a JSON-lines file that is rewritten whole; nothing is measured twice.

    Args:
        path: of the file; an existing one is read.
    """

    path: Path
    trials: dict[tuple[str, str, int, int], Trial] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        text = read_text(self.path, most=MOST_JSON_BYTES) if self.path.exists() else ""
        for number, line in enumerate(text.splitlines(), 1):
            try:
                record = parse_json(line, "it")
                timing = isinstance(record, dict) and record.get("side") == "cost"
                self._add(build(Timing, record) if timing else build(Trial, record))
            except MgenError as error:
                raise MgenError(
                    f"{self.path}, line {number}, is not a trial ({error}): remove the line or the file"
                ) from error
            self.lines.append(line)

    def _add(self, record: Trial | Timing) -> None:
        if isinstance(record, Timing):
            self.costs[record.key] = record.cost
        else:
            self.trials[record.key, record.side, record.seed, record.images] = record

    def _write(self, record: Trial | Timing) -> None:
        self._add(record)
        self.lines.append(json.dumps(asdict(record)))
        write_text(self.path, "".join(f"{line}\n" for line in self.lines))

    def keep_cost(self, key: str, seconds: float) -> None:
        """Write down what an image costs."""
        self._write(Timing(key=key, side="cost", cost=seconds))

    @property
    def seconds(self) -> float:
        """Time spent measuring for the search."""
        return sum(trial.seconds for trial in self.trials.values() if trial.side == "search")

    def measure(
        self,
        sampler: ParallelSampler,
        objective: Objective,
        *,
        side: Side,
        seed: int,
        images: int,
    ) -> Trial:
        """The trial of a sampler, which is measured unless it was before."""
        settings = own_settings(sampler)
        key = key_of(settings)
        if (known := self.trials.get((key, side, seed, images))) is not None:
            return known
        begin = time.perf_counter()
        score = objective(sampler, side=side, seed=seed, images=images)
        if not np.isfinite(score.distance):
            raise MgenError(f"the distance of a sampler is {score.distance}: the model or the reference is damaged")
        trial = Trial(
            key=key,
            side=side,
            seed=seed,
            images=images,
            distance=float(score.distance),
            deviation=score.deviation,
            seconds=round(time.perf_counter() - begin, 2),
            settings=settings,
        )
        self._write(trial)
        return trial


@dataclass(kw_only=True)
class Distances:
    """The objective: Fréchet distances of sampled images.

    Args:
        pipe: the pipeline, whose sampler is replaced. references: by side. folder: of the features of the search.
        spread: whether the test's distances get a standard deviation by the bootstrap, since it has one seed.
    """

    pipe: Any
    extractor: Extractor
    references: dict[str, Reference]
    folder: Path
    batch_size: int = 100
    dtype: str = "fp32"
    spread: bool = False

    def __call__(self, sampler: ParallelSampler, *, side: Side, seed: int, images: int) -> Score:
        key = key_of(own_settings(sampler), seed)
        features = self._kept(key)[:images] if side == "search" else torch.empty(0, self.extractor.length)
        if len(features) < images:
            features = torch.cat([features, self.features(sampler, seed, len(features), images)])
            if side == "search" and features.numel() * features.element_size() <= MOST_BYTES:
                write_tensors(self._file(key), {"features": features})
        short = features.shape[1] <= MOST_LENGTH
        return score(features, self.references[side], REPLICATES if (short if side == "search" else self.spread) else 0)

    def features(self, sampler: ParallelSampler, seed: int, start: int, stop: int) -> Tensor:
        """Features (stop − start, F) of images start … stop − 1."""
        self.pipe.sampler = sampler
        source = from_model(self.pipe, name="", count=stop, seed=seed, batch_size=self.batch_size, dtype=self.dtype)
        found = []
        for first in range(start, stop, self.batch_size):
            batch = source.read(first, min(first + self.batch_size, stop))
            found.append(features_of(self.extractor, batch.images).features.float().cpu())
        features = torch.cat(found)
        if not torch.isfinite(features).all():
            raise MgenError("the extractor gave NaN features: its weights or the images are damaged")
        return features

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _kept(self, key: str) -> Tensor:
        """Features of the first images that are kept, (n, F)."""
        with contextlib.suppress(OSError, SafetensorError, KeyError):  # without them, or damaged: made again
            features = load_file(self._file(key))["features"]
            if features.ndim == 2 and features.shape[1] == self.extractor.length and features.isfinite().all():
                return features.float()
        return torch.empty(0, self.extractor.length)


def score(features: Tensor, reference: Reference, replicates: int) -> Score:
    """The Fréchet distance of features (n, F), and its spread over replicates of the bootstrap."""
    sums = FeatureSums(features.shape[1])
    sums.update(features)
    found = frechet_distance(*sums.finish(), reference.mean, reference.cov)
    again = [
        distance(
            *weighted_sums([features], multiplicities(len(features), i, 0)).finish(), reference.mean, reference.cov
        )
        for i in range(replicates)
    ]
    return Score(found, float(np.std(again, ddof=1)) if again else None)
