"""Every golden set is run by a module of this folder."""

import re
from pathlib import Path

from tests.golden import harness


def test_every_set_has_a_module_that_runs_it() -> None:
    text = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    run = set(re.findall(r'@harness\.parametrize\("(\w+)"\)', text))
    found = {folder.name for folder in harness.root().iterdir() if (folder / "cases.safetensors").is_file()}
    assert found <= run, f"sets that no module runs: {', '.join(sorted(found - run))}"
