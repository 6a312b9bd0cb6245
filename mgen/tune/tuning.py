"""Search for a sampling strategy: the least Fréchet distance at a fixed number of steps (Ni et al., AutoNAT, arXiv 2406.05478).

The published search follows finite differences of every entry of every list, 4T − 2 distances per update, each on new labels and
random numbers, so that it follows noise to a large part. Here:

- every trial samples the same classes from the same seeds (common random numbers);
- few numbers bend the lists (mgen.tune.strategies);
- the method is COBYLA (scipy): it fits a plane to the last n + 1 trials and trusts it within a radius. It needs no derivatives, can
  improve with every trial from the first on, and its large radius steps over the jumps of sampled ids, on which line searches get
  stuck. When the radius is used up, it starts again from the best strategy, with half the radius.

A search is replayed, not restored: its path is a function of the distances, and distances measured before are read from the trace.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from scipy.optimize import Bounds, minimize
from tqdm import tqdm

from mgen.evaluation.extractors import Extractor
from mgen.evaluation.frechet import frechet_distance
from mgen.evaluation.measure import measure
from mgen.evaluation.sources import from_model
from mgen.evaluation.statistics import Reference
from mgen.samplers import ParallelSampler
from mgen.tune.strategies import REACH, Lists, Space, own_settings
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.files import write_text
from mgen.utils.reading import MOST_JSON_BYTES, parse_json, read_text
from mgen.utils.schema import Count, NonNegative, Text, build, schema

RADII = (1.0, 0.5, 0.25)

Objective = Callable[[ParallelSampler], float]


@schema
class Trial:
    """One line of a trace.

    Attributes:
        key: of side and settings, see Trace.key. passes_per_image: forward passes. strategy: list name → a value for each step.
    """

    key: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    side: Literal["search", "test"]
    distance: float
    passes_per_image: Count
    seconds: NonNegative
    strategy: dict[Text, list[float]]


@dataclass(kw_only=True)
class Trace:
    """All trials, in a JSON-lines file that is rewritten whole; equal strategies are measured once.

    Args:
        path: of the file; an existing one is read. records: by key.
    """

    path: Path
    records: dict[str, Settings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        text = read_text(self.path, most=MOST_JSON_BYTES) if self.path.exists() else ""
        for number, line in enumerate(text.splitlines(), 1):
            try:
                record = asdict(build(Trial, parse_json(line, "it")))
            except MgenError as error:
                raise MgenError(
                    f"{self.path}, line {number}, is not a trial ({error}): remove the line or the file"
                ) from error
            self.records[record["key"]] = record

    @staticmethod
    def key(side: str, sampler: ParallelSampler) -> str:
        """Hash of the settings, and the side: "search" or "test"."""
        text = json.dumps([side, own_settings(sampler)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def measure(self, side: str, space: Space, lists: Lists, objective: Objective) -> Settings:
        """The record of a strategy, which is measured unless it was before."""
        sampler = space.sampler(lists)
        key = self.key(side, sampler)
        if key not in self.records:
            begin = time.perf_counter()
            distance = float(objective(sampler))
            if not np.isfinite(distance):
                raise MgenError(f"the distance of a strategy is {distance}: the model or the reference is damaged")
            self.records[key] = {
                "key": key,
                "side": side,
                "distance": distance,
                "passes_per_image": space.cost(lists),
                "seconds": round(time.perf_counter() - begin, 2),
                "strategy": lists,
            }
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records.values()))
        elif self.records[key]["strategy"] != lists or self.records[key]["side"] != side:
            raise MgenError(f"{self.path}: the trial {key} is of another strategy than its key says: remove its line")
        return self.records[key]


class _Spent(Exception):
    """The trials are used up."""


def search(space: Space, objective: Objective, trace: Trace, *, trials: int, progress: bool = True) -> list[dict]:
    """Records of the strategies tried, in order, the start first.

    Args:
        trials: different strategies at most, at least 1, including those that the trace holds of an interrupted search.
    """
    tried: dict[str, Settings] = {}
    best: tuple[float, np.ndarray] = (np.inf, np.zeros(space.size))
    with tqdm(total=trials, unit="strategy", desc="searching", disable=not progress) as bar:

        def attempt(x: np.ndarray) -> float:
            nonlocal best
            lists = space.at(x)
            known = trace.key("search", space.sampler(lists)) in tried
            if len(tried) == trials and not known:
                raise _Spent
            record = trace.measure("search", space, lists, objective)
            tried[record["key"]] = record
            if record["distance"] < best[0]:
                best = record["distance"], np.array(x, dtype=float)
            bar.update(not known)
            bar.set_postfix(best=f"{best[0]:.3f}", last=f"{record['distance']:.3f}")
            return record["distance"]

        attempt(best[1])
        with suppress(_Spent):
            for radius in RADII:
                options = {"rhobeg": radius, "tol": radius / 4, "maxiter": 100 * (space.size + trials)}
                start, bounds = best[1].clip(-REACH, REACH), Bounds(-REACH, REACH)
                minimize(attempt, start, method="COBYLA", bounds=bounds, options=options)
    return list(tried.values())


@dataclass(kw_only=True)
class Outcome:
    """Records of the start and of the best strategy, on the images of the search and on those of the test; and all that were tried."""

    tried: list[Settings]
    search: tuple[Settings, Settings]
    test: tuple[Settings, Settings]

    @property
    def better(self) -> bool:
        """Whether the strategy found is better on images that the search did not use."""
        return self.test[1]["distance"] < self.test[0]["distance"]

    @property
    def kept(self) -> Lists:
        """The strategy to use."""
        return self.test[self.better]["strategy"]


def compare(space: Space, tried: Sequence[dict], objective: Objective, trace: Trace) -> Outcome:
    """Measure the first and the best of `tried` with the objective of the test, which has its own images and reference."""
    pair = tried[0], min(tried, key=lambda record: record["distance"])
    first, best = (trace.measure("test", space, record["strategy"], objective) for record in pair)
    return Outcome(tried=list(tried), search=pair, test=(first, best))


@dataclass(kw_only=True)
class Distance:
    """Fréchet distance of images made with a sampler: classes in turn, image i from (seed, i) alone, whatever the sampler."""

    pipe: Any
    extractor: Extractor
    reference: Reference
    count: int
    seed: int
    batch_size: int = 100
    dtype: str = "fp32"
    progress: bool = False

    def __call__(self, sampler: ParallelSampler) -> float:
        self.pipe.sampler = sampler
        source = from_model(
            self.pipe, name="", count=self.count, batch_size=self.batch_size, seed=self.seed, dtype=self.dtype
        )
        measured = measure(source, self.extractor, batch_size=self.batch_size, examples=0, progress=self.progress)
        mean, cov = measured.sums().finish()
        return frechet_distance(mean, cov, self.reference.mean, self.reference.cov)
