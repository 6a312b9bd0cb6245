"""Tests of what must hold on a GPU; skipped where there is none.

    python -m pytest -m gpu -n 0

MGEN_TEST_DEVICE=cpu runs them on a CPU, which checks the tests themselves.
"""

import os
from collections.abc import Iterator

import pytest
import torch

DEVICE = os.environ.get("MGEN_TEST_DEVICE", "cuda")


def _missing() -> str | None:
    """Why the tests can't run here."""
    if DEVICE.startswith("cuda") and not torch.cuda.is_available():
        return "no GPU: torch.cuda.is_available() is false (MGEN_TEST_DEVICE=cpu runs these tests on a CPU)"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = _missing()
    for item in items:
        if "gpu" in item.path.parts:
            item.add_marker(pytest.mark.gpu)
            if why is not None:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def device() -> torch.device:
    """The device that is compared with the CPU."""
    return torch.device(DEVICE)


@pytest.fixture(autouse=True)
def exact_fp32() -> Iterator[None]:
    """fp32 products in fp32, not in TF32, while a test runs."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
