"""The official numbers on a GPU, in fp32 without TF32: every golden case with its network there, within the tolerances of the CPU."""

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import mgen.convert
from tests.golden.harness import Case

GOLDEN = Path(__file__).parents[1] / "golden"
Check = Callable[[Case], None]
TOKENIZERS = ("kl16", "ldetok")  # whose noise must be where they are
NOT_MET = (
    "to",
    "cpu",
    "cuda",
    "numpy",
    "tolist",
    "item",
    "copy_",
    "_has_compatible_shallow_copy_type",
    "allclose",
    "__get__",
)


class Meeting(TorchFunctionMode):
    """Brings what a case computes on the CPU to the network's device where the two meet, so that cases need not know of devices.

    Whether tensors of the library itself are where they should be, tests/gpu/test_networks.py asks, without this.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "numpy":
            return func(args[0].cpu(), *args[1:], **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name not in NOT_MET and len({x.device for x in tensors}) > 1:
            in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
            where = args[0].device if in_place else next(x.device for x in tensors if x.device.type != "cpu")
            args, kwargs = tree_map(lambda x: x.to(where) if isinstance(x, Tensor) else x, (args, kwargs))
            if in_place:
                args = (tensors[0], *args[1:])
        return func(*args, **kwargs)


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
def test_gives_the_official_numbers(
    function: Check, case: Case, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = mgen.convert.convert

    def moved(*args: Any, **kwargs: Any) -> Any:
        conversion = convert(*args, **kwargs)
        conversion.model.to(device)
        return conversion

    for name, module in list(sys.modules.items()):
        if name.startswith("tests.golden.") and getattr(module, "convert", None) is convert:
            monkeypatch.setattr(module, "convert", moved)
    if case.system in TOKENIZERS:
        case = replace(case, inputs={name: value.to(device) for name, value in case.inputs.items()}, compared={})
    monkeypatch.setattr(torch.testing, "assert_close", partial(torch.testing.assert_close, check_device=False))
    with Meeting():
        function(case)  # which fails for outputs that it doesn't compare
