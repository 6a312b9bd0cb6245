"""The README keeps its word: its Python example runs, its commands and files exist."""

import re
from pathlib import Path

from mgen.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_examples_run(capsys) -> None:
    first, second = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict = {}
    exec(first, names)
    assert len(names["images"]) == 2 and names["image"].shape == (2, 1, 32, 32)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 and lines[-1] == "11 [64, 64] of 64 tokens known"
    exec(second, names)
    assert len(names["images"]) == 2 and names["pipe"].generator.spec.kind == "vector"


def test_commands_and_files_exist() -> None:
    assert set(re.findall(r"^\| `mgen (\w+)`", TEXT, re.M)) == set(COMMANDS)
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)
    for marker in ("test", "sample"):
        assert re.search(rf"<!-- {marker} -->\n```sh\n.*pip install", TEXT)
