"""Tests of whole commands, launches, kills and a browser take minutes: they carry the marker `slow`; boundaries take seconds."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and HERE / "boundaries" not in item.path.parents:
            item.add_marker(pytest.mark.slow)
