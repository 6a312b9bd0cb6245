"""Typos, help and the zoo need none of the heavy libraries: what is told at once doesn't wait seconds for their import."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mgen.cli import COMMANDS
from tests.forks import Forks

HEAVY = ("torch", "diffusers", "transformers", "torchvision", "scipy", "accelerate")
RUN = """
import contextlib, io, json, sys
from mgen.cli import main
out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
    main(ARGV)
print(json.dumps([[name for name in HEAVY if name in sys.modules], out.getvalue()]))
"""
HELP = ["--help", "--version", *(f"{command} --help" for command in COMMANDS)]
ZOO = [
    "zoo",
    "zoo --json",
    "zoo fmnist-mar",
    "zoo mar-l-imagenet256",
    "zoo mar-l-imagenet256 --json",
    "zoo --models mar*",
]
# Arguments with a fault, and a word of the answer.
FAULTS = {
    "smple": "sample",
    "sample --modle x": "--model",
    "sample --model fmnist-maskgt": "fmnist-maskgit",
    "sample --model mar-l-imagenet256": "published",
    "sample --recipe mar-l-imagenet": "mar-l-imagenet256",
    "sample --dtype fp8": "bf16",
    "sample --labels sort": "sorted",
    "sample --format jpg": "png",
    "sample --quantization floor": "truncate",
    "sample --device gpu": "cuda",
    "sample --set steps": "key.sub=value",
    "sample --steps two": "whole number",
    "sample --animation a.mp4": ".gif",
    "edit nowhere.png --box 0,0,8,8": "no such image",
    "edit --box 0,0,8,8": "image",
    "train --config fmnist-maskgitt": "fmnist-maskgit",
    "train --config nowhere.yaml": "nowhere.yaml",
    "train --config fmnist-maskgit optm.lr=1": "optim",
    "train --config fmnist-maskgit optim.lr=x": "optim.lr",
    "cache --data nowhere --out made": "no such folder",
    "cache --data fmnist --tokenizer fmnist-mask --out made": "fmnist-maskgit",
    "cache --data fmnist --split tst --out made": "test",
    "eval nowhere": "mgen zoo",
    "eval fmnist --protocol torch-fidelty": "torch-fidelity",
    "eval --recipe mar-l": "mar-l-imagenet256",
    "eval fmnist-mar --labels sort": "sorted",
    "eval fmnist --reconstruction fmnist-ma": "fmnist-mar",
    "eval fmnist --inception-weights nowhere.pth --extractor inception": "no such file",
    "stats nowhere --out made.safetensors": "nowhere",
    "stats fmnist --protocol cleen --out made.safetensors": "clean",
    "report nowhere": "no such file",
    "tune --model fmnist-maskgt": "fmnist-maskgit",
    "tune --start autonat": "autonat",
    "convert maskgitt nowhere --out made": "maskgit",
    "convert mar nowhere --out made": "no such checkpoint",
    "convert mar README.md --recipe mar-l --out made --tokenizer README.md": "mar-l-imagenet256",
    "bench --arch mar-bb": "mar-b",
    "bench --config fmnist-maskgitt": "fmnist-maskgit",
    "bench --sweep fmnist-maskgitt": "fmnist-maskgit",
    "bench --model fmnist-maskgt": "fmnist-maskgit",
    "zoo mar-l-imagenet": "mar-l-imagenet256",
    "zoo --models nobody*": "mar-b",
}


Answer = Callable[[str, Path], str]


@pytest.fixture(scope="module")
def answer() -> Iterator[Answer]:
    """What a command prints in a process of its own; asserts that it imports nothing heavy."""
    with Forks("mgen.cli") as forks:

        def ask(line: str, folder: Path) -> str:
            code = RUN.replace("ARGV", repr(line.split())).replace("HEAVY", repr(HEAVY))
            done = forks.run(code, cwd=folder)
            assert done.returncode == 0, done.stderr
            heavy, text = json.loads(done.stdout)
            assert not heavy, f"mgen {line} imports {', '.join(heavy)}"
            return str(text)

        yield ask


@pytest.mark.parametrize("line", HELP)
def test_help_imports_nothing_heavy(line: str, answer: Answer, tmp_path: Path) -> None:
    assert "mgen" in answer(line, tmp_path)


@pytest.mark.parametrize("line", ZOO)
def test_the_zoo_imports_nothing_heavy(line: str, answer: Answer, tmp_path: Path) -> None:
    assert "mgen: error" not in answer(line, tmp_path)


@pytest.mark.parametrize("line", FAULTS)
def test_typos_are_answered_before_heavy_imports(line: str, answer: Answer, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("text\n")
    said = answer(line, tmp_path)
    assert said.startswith("mgen: error: ") and FAULTS[line] in said, said
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


def test_the_light_lists_name_what_there_is() -> None:
    """Lists that stand apart from the code that they name, so that reading them imports nothing."""
    from mgen.convert.formats import FORMATS
    from mgen.data.fashion_mnist import FILES
    from mgen.evaluation.request import SPLITS
    from mgen.pipelines.run_file import PRECISIONS
    from mgen.utils.modeling import DTYPES
    from mgen.zoo.formats import ABOUT

    assert list(ABOUT) == list(FORMATS) and PRECISIONS == tuple(DTYPES) and SPLITS == tuple(FILES)
