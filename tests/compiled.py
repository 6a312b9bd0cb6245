"""What tests of torch.compile share: how many graphs were compiled since a test began."""

from collections.abc import Iterator

import pytest
import torch._dynamo
from torch._dynamo.utils import counters


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing is compiled when a test begins, nor left to the next one."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """Graphs that were compiled since the counters were cleared."""
    return int(counters["stats"]["unique_graphs"])
