"""Variables of the environment by which launchers number processes and ask accelerate for its engines."""

from collections.abc import Mapping

import pytest
from accelerate import PartialState
from accelerate.state import AcceleratorState

from mgen.training.launch import make_accelerator, meet
from tests.system.boundaries.harness import Raises, Refused
from tests.system.boundaries.test_options import USUAL

# What accelerate sets while processes meet.
SET = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NUMBERS = [
    *({"WORLD_SIZE": value} for value in ("abc", "-1", "0", "1.5", "²", "9" * 30)),
    *({"RANK": value, "WORLD_SIZE": "2"} for value in ("abc", "-1", "2")),
    *({"LOCAL_RANK": value} for value in ("abc", "-2", "0.5")),
]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher, before and after."""
    for name in SET:
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards
        monkeypatch.delenv(name)
    AcceleratorState._reset_state(reset_partial_state=True)  # of other tests in this process


def given(monkeypatch: pytest.MonkeyPatch, values: Mapping[str, str]) -> tuple[str, str]:
    """Set the variables; returns the first one."""
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return next(iter(values.items()))


@pytest.mark.parametrize("values", NUMBERS, ids=str)
@pytest.mark.parametrize("command", ["train", "sample", "cache"])
def test_variables_that_number_no_process(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, command: str, values: dict[str, str]
) -> None:
    name, value = given(monkeypatch, values)
    line = refused(
        [command, *USUAL[command]], f"the environment's {name} is ", "expected a whole number from", "unset it"
    )
    assert repr(value[:20])[:-1] in line and "--num_processes" not in line, line


@pytest.mark.parametrize("values", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "1"}], ids=str)
@pytest.mark.parametrize("command", ["train", "sample", "cache"])
def test_processes_that_nobody_launched(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, command: str, values: dict[str, str]
) -> None:
    """The second time like the first: nothing half made is left."""
    for _ in range(2):
        for name in SET:
            monkeypatch.delenv(name, raising=False)
        given(monkeypatch, values)
        refused([command, *USUAL[command]], "processes of this run do not find each other", "MASTER_ADDR", "launch")
    assert PartialState._shared_state == {}


def test_a_process_of_one_machine_that_nobody_launched(raises: Raises, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, {"LOCAL_RANK": "0"})
    raises(make_accelerator, "processes of this run do not find each other", "MASTER_ADDR", "launch")


@pytest.mark.parametrize("values", [{"WORLD_SIZE": ""}, {"LOCAL_RANK": ""}, {"RANK": "", "WORLD_SIZE": "1"}], ids=str)
def test_empty_variables_number_nothing(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    given(monkeypatch, values)
    assert meet("cpu")[:3] == (0, 1, "cpu")
    if not values.get("WORLD_SIZE"):
        assert make_accelerator().num_processes == 1


def test_what_is_wrong_is_not_said_to_be_the_processes(monkeypatch: pytest.MonkeyPatch, raises: Raises) -> None:
    given(monkeypatch, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "ACCELERATE_DEBUG_MODE": "abc"})
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29555")
    raises(make_accelerator, "accelerate can't begin", "abc", "ACCELERATE_")


ASKED = [
    ("ACCELERATE_DYNAMO_BACKEND", "foo", "ACCELERATE_DYNAMO_BACKEND is 'foo', only 'no' is allowed"),
    ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "set compile=regional"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "abc", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS is 'abc', only '1'"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2", "set accumulate"),
    ("ACCELERATE_USE_DEEPSPEED", "true", "DEEPSPEED"),
    ("ACCELERATE_DEBUG_MODE", "abc", "abc"),
    ("ACCELERATE_USE_CPU", "abc", "abc"),
    ("ACCELERATE_DYNAMO_USE_FULLGRAPH", "abc", "abc"),
]


@pytest.mark.parametrize(("name", "value", "words"), ASKED)
def test_what_accelerate_is_asked_for(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    given(monkeypatch, {name: value})
    refused(["train", *USUAL["train"]], "accelerate", words)
