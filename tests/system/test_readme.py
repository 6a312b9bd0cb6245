"""The README and the pages of docs/ are right about the project: links, commands, and the names that commands take."""

import argparse
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest

from mgen.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Reports are made by mgen itself; docs/cli.md is compared with the parsers by tests/unit/test_docs.py.
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if "report" not in p.parts and p.name != "cli.md"),
]
SHIPPED = {"--config": "train", "--recipe": "recipes", "--sweep": "sweeps", "--arch": "models"}


@lru_cache
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cli_reference", ROOT / "tools" / "cli_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache
def parser(command: str) -> argparse.ArgumentParser:
    return reference().parser_of(command)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def command_lines(page: Path) -> Iterator[str]:
    """Every `mgen …` of a page's code, in blocks and inside sentences, one a line and without its comment."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh)?\n(.*?)```", text, re.S) + re.findall(r"(?m)^    (mgen .*)$", text)
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    for code in [*(block.replace("\\\n", " ") for block in blocks), *(" ".join(span.split()) for span in spans)]:
        for line in code.splitlines():
            for part in re.split(r"&&|\s#\s|\s{4,}", line):
                found = re.search(r"(?:^|-m )(mgen(?:\.train)? .+)$", part.strip())
                if found:
                    yield found[1].replace("mgen.train", "mgen train")


def wrong_with(line: str) -> Iterator[str]:
    """What a command line names that is not there: the command, an option, a shipped file."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quotation inside a sentence
        words = line.split()
    command = words[1]
    if not re.fullmatch(r"[a-z]+", command):  # mgen COMMAND, mgen …
        return
    if command not in COMMANDS:
        yield f"no command {command!r}"
        return
    options = {name for action in parser(command)._actions for name in action.option_strings}
    for word, value in zip(words[2:], [*words[3:], ""]):
        if word.startswith("--") and word not in options:
            yield f"mgen {command} has no {word}"
        folder = SHIPPED.get(word)
        if folder and re.fullmatch(r"[a-z0-9-]+", value):
            if not (ROOT / "configs" / folder / f"{value}.yaml").is_file():
                yield f"no configs/{folder}/{value}.yaml"


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(<?([^)>]+)>?\)", page.read_text(encoding="utf-8")):
            if link.startswith("https://"):
                continue
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken, "\n".join(broken)


def test_every_page_is_linked_from_another() -> None:
    linked = set()
    for page in PAGES:
        for link in re.findall(r"\]\(<?([^)>#]+)", page.read_text(encoding="utf-8")):
            if not link.startswith("https://"):
                linked.add((page.parent / link).resolve())
    pages = {ROOT / "docs" / "cli.md", *PAGES} - {ROOT / "README.md"}
    assert sorted(str(p.relative_to(ROOT)) for p in pages if p.resolve() not in linked) == []


def test_the_readme_is_short_and_has_the_commands_that_ci_runs() -> None:
    assert len(README.splitlines()) <= 150
    for marker in ("test", "sample"):
        assert re.search(rf"<!-- {marker} -->\n```sh\n.*pip install", README)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_options_and_names_exist(page: Path) -> None:
    wrong = [f"{fault}: {line}" for line in command_lines(page) for fault in wrong_with(line)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "systems").glob("*.md")), ids=lambda page: page.stem)
def test_models_recipes_and_trainings_of_a_system_exist(page: Path) -> None:
    text, named = page.read_text(encoding="utf-8"), set()
    part = {name: text.partition(f"## {name}\n")[2].partition("\n## ")[0] for name in ("Models", "Recipes", "Train")}
    for name in re.findall(r"(?m)^\| `([a-z0-9-]+)`", part["Models"]):
        named.add(f"models/{name}")
    for heading, folder in (("Recipes", "recipes"), ("Train", "train")):
        for name in re.findall(r"`((?:fmnist|[a-z{},0-9-]*imagenet)[a-z{},0-9-]*)`", part[heading]):
            named |= {f"{folder}/{full}" for full in expand(name)}
    missing = sorted(name for name in named if not (ROOT / "configs" / f"{name}.yaml").is_file())
    assert not missing, f"{page.name} names configs that are not there: {', '.join(missing)}"


def expand(name: str) -> list[str]:
    """The names that `a-{b,c}-d` stands for."""
    found = re.search(r"\{([^}]*)\}", name)
    if found is None:
        return [name]
    return [n for word in found[1].split(",") for n in expand(name[: found.start()] + word + name[found.end() :])]
