"""The official numbers on a GPU, in fp32 without TF32: every golden case runs with weights and inputs there."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.golden.harness import Case

GOLDEN = Path(__file__).parents[1] / "golden"
Check = Callable[[Case], None]


def checks() -> Iterator[tuple[str, Check, Case]]:
    """Every test of a golden case, with its cases."""
    for file in sorted(GOLDEN.glob("test_*.py")):
        module = importlib.import_module(f"tests.golden.{file.stem}")
        for name, function in vars(module).items():
            for mark in getattr(function, "pytestmark", ()) if name.startswith("test_") else ():
                if mark.name == "parametrize" and mark.args[0] == "case":
                    for case in mark.args[1]:
                        yield f"{case.system}-{case.name}", function, case


ALL = list(checks())


@pytest.mark.parametrize(("function", "case"), [pair for _, *pair in ALL], ids=[name for name, *_ in ALL])
def test_gives_the_official_numbers(function: Check, case: Case, device: torch.device) -> None:
    moved = replace(case, inputs={name: value.to(device) for name, value in case.inputs.items()}, compared={})
    with device:  # where new tensors, and so weights, are made
        function(moved)
    assert moved.compared
