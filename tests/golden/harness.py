"""Golden sets: official outputs, reproduced case by case. A case or tensor that no family claims fails by its name.

The sets lie in tests/golden/sets, or in the folder MGEN_GOLDEN names.
"""

import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]


def root() -> Path:
    return Path(os.environ.get("MGEN_GOLDEN") or Path(__file__).parent / "sets")


@dataclass
class Case:
    """One case: its inputs, its expected outputs, and what was compared."""

    system: str
    name: str
    inputs: Tensors = field(default_factory=dict)
    outputs: Tensors = field(default_factory=dict)
    compared: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return root() / self.system

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    def number(self, pattern: str) -> int | None:
        """The number that `pattern` finds in the case's name."""
        found = re.search(pattern, self.name)
        return int(found[1]) if found else None

    def near(self, name: str, least: float, share: float = 5e-6) -> float:
        """Tolerance of out/<name>: `least`, ten times the reference's own error in the public set, or `share` of the largest
        value where another set has larger ones (complete runs: 1e-5, as the sets suggest)."""
        return max(least, share * self.outputs[name].abs().max().item()) if name in self.outputs else least

    def check(self, name: str, got: Tensor, *, atol: float = 0.0, rtol: float = 0.0) -> None:
        """Compare with out/<name>, if the set has it: integers exactly, floats within atol + rtol·|expected|."""
        if (
            name not in self.outputs
        ):  # sets differ in what they record; `run` fails for anything recorded and not compared
            return
        expected, got = self.outputs[name], got.cpu()
        assert got.shape == expected.shape, (
            f"{self.system}/{self.name}/{name}: shape {got.shape}, expected {expected.shape}"
        )
        if not expected.dtype.is_floating_point:
            wrong = (got.long() != expected.long()).sum().item()
            self.compared[name] = (float(wrong), 0.0)
            assert wrong == 0, f"{self.system}/{self.name}/{name}: {wrong} of {expected.numel()} integers differ"
            return
        error = (got.double() - expected.double()).abs()
        worst = error.max().item() if error.numel() else 0.0
        self.compared[name] = (worst, atol)
        allowed = atol + rtol * expected.double().abs()
        assert bool((error <= allowed).all()), (
            f"{self.system}/{self.name}/{name}: worst error {worst:.3e}, allowed {atol:.1e} + {rtol:.1e}·|x|"
        )


def read_cases(system: str) -> list[Case]:
    """All cases of a system's set."""
    path = root() / system / "cases.safetensors"
    if not path.is_file():
        return []
    cases: dict[str, Case] = {}
    for key, value in load_file(path).items():
        parts = re.fullmatch(r"(.+?)/(in|out)/(.+)", key)
        name = parts[1] if parts else key
        case = cases.setdefault(name, Case(system, name))
        if parts:
            (case.inputs if parts[2] == "in" else case.outputs)[parts[3]] = value
    return [cases[name] for name in sorted(cases)]


Family = Callable[[Case], None]


def run(case: Case, families: dict[str, Family], report: Callable[[str], None] = print) -> None:
    """Hand the case to the family whose pattern matches its name; fail if none does or if an output was not compared."""
    matching = [function for pattern, function in families.items() if re.fullmatch(pattern, case.name)]
    assert matching, f"golden case {case.system}/{case.name} belongs to no known family"
    matching[0](case)
    left = sorted(case.outputs.keys() - case.compared.keys())
    assert not left, f"golden case {case.system}/{case.name}: outputs never compared: {', '.join(left)}"
    for name, (worst, tolerance) in sorted(case.compared.items()):
        report(f"{case.system:<20} {case.name:<18} {name:<44} worst {worst:.2e}  tolerance {tolerance:.1e}")


def parametrize(system: str) -> Any:
    """Decorator: one test per case of the set (one that says the set is missing, if it is)."""
    cases = read_cases(system)
    if not cases:
        raise FileNotFoundError(
            f"no golden set {root() / system / 'cases.safetensors'}: set MGEN_GOLDEN to the folder of the sets"
        )
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def gradients(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad


def recipe_draw(key: str, shape: list[int], salt: int) -> Tensor:
    """The standard normal numbers of a full-size check, made from a weight's name as the sets' READMEs say."""
    x = np.random.RandomState((zlib.crc32(key.encode()) + salt) % 2**32).standard_normal(int(np.prod(shape)))
    return torch.from_numpy(x.astype(np.float32)).reshape(shape)
