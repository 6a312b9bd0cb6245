"""A small space of policies for the tests of `mgen tune`."""

from typing import Any

from mgen.samplers import ParallelSampler
from mgen.tune.axes import Axis
from mgen.tune.policies import Policies
from mgen.utils.schema import build
from tests.helpers import tiny_generator, tiny_mar

GENERATOR, MAR = tiny_generator(), tiny_mar()
AXES = [
    {"name": "steps", "range": {"key": "steps", "low": 1, "high": "2x", "log": True}, "cost": True},
    {"name": "order", "choices": [{"order": "random"}, {"order": "halton"}]},
    {"name": "guidance", "range": {"key": "guidance.end", "low": 1.0, "high": 5.0}},
    {"name": "reuse", "choices": [{"reuse.cached": 1}, {"reuse.cached": 2}]},
]


def space(*, generator: Any = GENERATOR, axes: Any = AXES, **start: Any) -> Policies:
    sampler = ParallelSampler(**{"steps": 8, "guidance": 3.0, **start})
    return Policies(sampler, generator, [build(Axis, given) for given in axes])
