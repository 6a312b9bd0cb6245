"""Fuzzing of settings, files in memory and plans, the same draws every time; tools/fuzz.py goes on for hours."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from mgen.samplers import ParallelSampler
from tests import fuzzing
from tests.fuzzing import outcome, targets

FIXED = dict(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
TARGETS = targets()


@pytest.mark.parametrize("name", TARGETS)
def test_only_mgen_errors_come_out(name: str) -> None:
    drawn, read = TARGETS[name]

    @settings(max_examples=60, **FIXED)  # type: ignore[arg-type]
    @given(value=drawn)
    def check(value: Any) -> None:
        outcome(read, value)

    check()


def test_examples_are_taken_as_they_are() -> None:
    """Else the damaged ones would be refused for something else."""
    for name, (examples, read) in fuzzing.SETTINGS.items():
        for example in examples:
            assert outcome(read, example) == "taken", (name, example)


def test_plans_reveal_every_token_once() -> None:
    taken = []

    @settings(max_examples=150, **FIXED)  # type: ignore[arg-type]
    @given(value=fuzzing.samplers())
    def check(value: dict[str, Any]) -> None:
        if outcome(lambda v: ParallelSampler.from_settings(v, "sampler").check(fuzzing.net()), value) == "taken":
            revealed: list[int] = []
            if outcome(lambda v: revealed.append(fuzzing.plan(v)), value) == "taken":
                assert revealed == [16]
                taken.append(value)

    check()
    assert len(taken) > 30


def test_fuzzing_finds_what_it_looks_for() -> None:
    def broken(value: Any) -> None:
        if isinstance(value, dict) and value.get("a") is None:
            raise KeyError("bug")

    @settings(max_examples=300, **FIXED)  # type: ignore[arg-type]
    @given(value=fuzzing.damaged({"a": 1, "b": 2}))
    def check(value: Any) -> None:
        outcome(broken, value)

    with pytest.raises(KeyError):
        check()
