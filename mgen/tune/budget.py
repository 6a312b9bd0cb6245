"""Budgets: what one image may cost, in floating-point operations (counted, nothing is run) or in seconds (measured on this machine)."""

import copy
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from mgen.bench.benchmark import fastest
from mgen.bench.flops import Networks, count_run
from mgen.bench.proxy import AnyGenerator
from mgen.bench.repeats import Repeats
from mgen.samplers import ParallelSampler
from mgen.tokenizers import Tokenizer
from mgen.tune.strategies import own_settings
from mgen.utils.errors import MgenError, shown

Measure = Literal["flops", "seconds"]
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
FORM = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*(x(?:\s*seconds)?|[kMGTP]?FLOPs?|s|ms|seconds)")
TIMED = 20  # images of a batch that is timed
REPEATS = 2  # of which the fastest counts


class Cost(Protocol):
    """What an image of a sampler costs."""

    measure: Measure

    def __call__(self, sampler: ParallelSampler) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that an image may cost.

    Attributes:
        measure: of costs. amount: of it, or if `relative`, as a multiple of what the start costs.
    """

    measure: Measure
    amount: float
    relative: bool = False

    @classmethod
    def of(cls, text: str) -> "Budget":
        """From a text such as 0.25x, 0.25x seconds, 12 GFLOPs, 0.8s or 800 ms; MgenError for another."""
        match = FORM.fullmatch(text.strip())
        if not match or len(text) > 60:
            raise MgenError(
                f"--budget {shown(text)} is no budget: give a multiple of what the start costs (0.25x, in operations; '0.25x seconds'), "
                "operations (12 GFLOPs, 1.5 TFLOPs) or seconds (0.8s, 800ms) per image"
            )
        amount, unit = float(match[1]), match[2].replace(" ", "")
        if not 0 < amount < 1e30:
            raise MgenError(f"--budget {shown(text)}: it must be above 0")
        if unit.startswith("x"):
            return cls(measure="seconds" if unit != "x" else "flops", amount=amount, relative=True)
        if "FLOP" in unit:
            return cls(measure="flops", amount=amount * UNITS[unit.partition("FLOP")[0]])
        return cls(measure="seconds", amount=amount / 1000 if unit == "ms" else amount)

    def limit(self, start: float) -> float:
        """The most that an image may cost, if one of the start costs `start`."""
        return self.amount * start if self.relative else self.amount


def shown_cost(cost: float, measure: Measure) -> str:
    """A cost with its unit."""
    if measure == "seconds":
        return f"{cost:.3g} s"
    for prefix in ("", "k", "M", "G", "T"):
        if cost < 1000 or prefix == "T":
            return f"{cost:.4g} {prefix}FLOPs"
        cost /= 1000
    raise AssertionError


def unit_of(measure: Measure) -> str:
    """The unit of a progress bar over costs."""
    return "s" if measure == "seconds" else "FLOP"


def key_of(*parts: object) -> str:
    """A hash of plain values: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class _Shapes:
    """Networks without weights, to be counted."""

    transformer: AnyGenerator
    tokenizer: Tokenizer | None

    def sampled(self) -> AnyGenerator:
        """What draws the tokens."""
        return self.transformer


class Operations:
    """The floating-point operations of an image, decoding included; see mgen.bench.flops. Equal samplers are counted once."""

    measure: Measure = "flops"

    def __init__(self, pipe: Networks) -> None:
        self.shapes = _Shapes(copy.deepcopy(pipe.transformer).to("meta"), pipe.tokenizer)
        self.decoder: int | None = None
        self.known: dict[str, float] = {}
        self.repeats = Repeats()

    def __call__(self, sampler: ParallelSampler) -> float:
        key = key_of(own_settings(sampler))
        if key not in self.known:
            counts = count_run(self.shapes, sampler, decode=self.decoder is None, repeats=self.repeats)
            if self.decoder is None:  # the same for all
                self.decoder = counts.flops["decoder"]
            self.known[key] = counts.flops["trunk"] + counts.flops["head"] + self.decoder
        return float(self.known[key])


class Seconds:
    """The seconds of an image, decoding included, in batches of TIMED, measured once for equal samplers.

    Args:
        known: seconds measured before, by key. keep: called with the key and the seconds of each that is measured.
    """

    measure: Measure = "seconds"

    def __init__(self, pipe: Networks, known: dict[str, float], keep: Callable[[str, float], None], dtype: str) -> None:
        self.pipe, self.known, self.keep, self.dtype = pipe, known, keep, dtype

    def __call__(self, sampler: ParallelSampler) -> float:
        key = key_of(own_settings(sampler))
        if key not in self.known:
            timed, _ = fastest(self.pipe, sampler, batch_size=TIMED, repeats=REPEATS, dtype=self.dtype)
            seconds = timed["total"] / TIMED
            self.known[key] = seconds
            self.keep(key, seconds)
        return self.known[key]
