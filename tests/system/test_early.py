"""Typos, help and the zoo need none of the heavy libraries: what is told at once doesn't wait seconds for their import."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mgen.cli import COMMANDS

HEAVY = ("torch", "diffusers", "transformers", "torchvision", "scipy", "accelerate")
# Each line has a process of its own, forked from one that has imported the entry of the command line and nothing else.
RUN = f"""
import contextlib, io, json, os, sys
from mgen.cli import main
for line in sys.stdin:
    if (child := os.fork()) == 0:
        folder, argv = json.loads(line)
        os.chdir(folder)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
            main(argv)
        print(json.dumps([[name for name in {HEAVY} if name in sys.modules], out.getvalue()]), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("null", flush=True)
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
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    argv = [sys.executable, "-c", RUN]
    with subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(line: str, folder: Path) -> str:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps([str(folder), line.split()]) + "\n")
            process.stdin.flush()
            said = json.loads(process.stdout.readline())
            assert said is not None, f"mgen {line} raised an error"
            heavy, text = said
            assert not heavy, f"mgen {line} imports {', '.join(heavy)}"
            return str(text)

        yield ask
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


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
