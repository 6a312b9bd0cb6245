"""Files of a saved pipeline and of a run that were damaged, or that others wrote."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mgen
from mgen.pipelines.pipeline import load
from mgen.utils.errors import MgenError
from mgen.zoo.identity import identity
from tests.helpers import tiny_tokenizer
from tests.system.boundaries.harness import Copied, Refused, fifo, row

SAMPLE = ["sample", "--model", "pipeline", "--num-images", "2", "--device", "cpu"]
DEEP = "[" * 100_000 + "]" * 100_000
KINDS = {"list": "[]", "null": "null", "number": "5", "string": '"x"', "deep": DEEP, "text": "{", "empty": ""}
FILES = {
    "model_index.json": "model_index.json",
    "transformer": "transformer/config.json",
    "tokenizer": "tokenizer/config.json",
    "sampler": "sampler/sampler_config.json",
}


@pytest.mark.parametrize("kind", [*KINDS, "binary", "missing", "folder", "fifo", "link"])
@pytest.mark.parametrize("name", FILES)
def test_json_files(refused: Refused, copied: Copied, name: str, kind: str) -> None:
    file = copied("pipeline") / FILES[name]
    file.unlink()
    if kind in KINDS:
        file.write_text(KINDS[kind])
    elif kind == "binary":
        file.write_bytes(b"\xff\xfe\x00")
    elif kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        fifo(file)
    elif kind == "link":
        file.symlink_to("nowhere")
    refused(SAMPLE, Path(FILES[name]).name)


def changed(file: Path, **values: Any) -> None:
    """Replace entries of a JSON file; ... removes one."""
    data = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


INDEX = [
    row("class names a number", {"class_names": 5}, "class_names"),
    row("class names null entries", {"class_names": [None] * 3}, "class_names"),
    row("class names lists", {"class_names": [["a"], ["b"], ["c"]]}, "class_names"),
    row("class names too few", {"class_names": ["a"]}, "1 class names for 3"),
    row("class names empty", {"class_names": ["a", "", "c"]}, "class_names"),
    row("no transformer", {"transformer": ...}, "transformer"),
    row("transformer a text", {"transformer": "Generator"}, "transformer"),
    row("transformer of numbers", {"transformer": [1, 2]}, "transformer"),
    row("transformer of three", {"transformer": ["mgen", "Generator", "x"]}, "transformer"),
    row("transformer unknown", {"transformer": ["mgen", "Genrator"]}, "did you mean 'Generator'"),
    row("transformer of another package", {"transformer": ["os", "Generator"]}, "no part of mgen"),
    row("class of another kind", {"_class_name": "StableDiffusionPipeline"}, "_class_name", "MaskedPipeline"),
    row("class a list", {"_class_name": []}, "_class_name is []"),
    row("tokenizer a generator", {"tokenizer": ["mgen", "Cascade"]}, "config.json"),
]


@pytest.mark.parametrize(("values", "words"), INDEX)
def test_model_index(refused: Refused, copied: Copied, values: dict[str, Any], words: list[str]) -> None:
    changed(copied("pipeline") / "model_index.json", **values)
    refused(SAMPLE, *words)


@pytest.mark.parametrize("part", ["transformer", "tokenizer", "sampler"])
@pytest.mark.parametrize("name", ["KLTokenizer", "", 5, None], ids=str)
def test_class_of_a_part(refused: Refused, copied: Copied, part: str, name: Any) -> None:
    changed(copied("pipeline") / FILES[part], _class_name=name)
    refused(SAMPLE, "_class_name is", "expected")


def test_no_log_stands_beside_the_error(refused: Refused, copied: Copied) -> None:
    file = copied("pipeline") / FILES["transformer"]
    changed(file, trunk=json.loads(file.read_text())["trunk"] | {"depth": 4})
    refused(SAMPLE, "missing keys")


SAMPLER = [
    row("unknown key", {"foo": 1}, "foo"),
    row("steps text", {"steps": "8"}, "sampler_config.json", "steps"),
    row("steps null", {"steps": None}, "steps"),
    row("steps 10**12", {"steps": 10**12}, "at most"),
    row("guidance null", {"guidance": None}, "guidance"),
    row("order number", {"order": 5}, "order"),
    row("head list", {"head": [1]}, "head"),
    row("reuse text", {"reuse": "x"}, "reuse"),
    row("temperature below 0", {"temperature": -1}, "temperature"),
]


@pytest.mark.parametrize(("values", "words"), SAMPLER)
def test_sampler_config(refused: Refused, copied: Copied, values: dict[str, Any], words: list[str]) -> None:
    changed(copied("pipeline") / "sampler" / "sampler_config.json", **values)
    refused(SAMPLE, *words)


WEIGHTS = "diffusion_pytorch_model.safetensors"


def as_bin(folder: Path, data: object) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(data, folder / "diffusion_pytorch_model.bin")


def with_index(folder: Path, text: str) -> None:
    (folder / f"{WEIGHTS}.index.json").write_text(text)


def piped(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    fifo(folder / WEIGHTS)


DAMAGES: list[Any] = [
    row("weights missing", lambda f: (f / WEIGHTS).unlink(), "missing"),
    row("weights empty", lambda f: (f / WEIGHTS).write_bytes(b""), "weights"),
    row("weights a pipe", piped, "no regular file"),
    row("weights text", lambda f: (f / WEIGHTS).write_text("version https://git-lfs"), "weights"),
    row("bin a list", lambda f: as_bin(f, [1, 2]), "state dict"),
    row("bin an object", lambda f: as_bin(f, Path("x")), "objects"),
    row("bin of another model", lambda f: as_bin(f, {"x": torch.zeros(1)}), "not those of"),
    row("index a list", lambda f: with_index(f, "[]"), "index.json"),
    row("index without a map", lambda f: with_index(f, "{}"), "missing key", "weight_map"),
    row("index without metadata", lambda f: with_index(f, '{"weight_map": {"a": "x.bin"}}'), "missing key", "metadata"),
    row("index of numbers", lambda f: with_index(f, '{"metadata": {}, "weight_map": {"a": 1}}'), "weight_map"),
    row("index deep", lambda f: with_index(f, DEEP), "index.json"),
    row("index elsewhere", lambda f: with_index(f, '{"metadata": {}, "weight_map": {"a": "../x"}}'), "same folder"),
    row(
        "index of a missing shard", lambda f: with_index(f, '{"metadata": {}, "weight_map": {"a": "x.bin"}}'), "no such"
    ),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_weights(refused: Refused, copied: Copied, damage: Callable[[Path], object], words: list[str]) -> None:
    damage(copied("pipeline") / "transformer")
    refused(SAMPLE, *words)


def test_weights_of_earlier_saves_go(tmp_path: Path) -> None:
    net, folder = tiny_tokenizer(), tmp_path / "net"
    net.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*-of-*"))) > 1
    (folder / "notes.txt").write_text("mine")
    net.save_pretrained(folder, variant="other")
    net.save_pretrained(folder)
    names = {"config.json", WEIGHTS, WEIGHTS.replace(".safe", ".other.safe"), "notes.txt"}
    assert {file.name for file in folder.iterdir()} == names
    mgen.VQGAN.from_pretrained(folder)
    net.save_pretrained(folder, safe_serialization=False)
    assert WEIGHTS not in {file.name for file in folder.iterdir()}
    found = mgen.VQGAN.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in found.items())
    net.save_pretrained(folder, max_shard_size="10KB")
    mgen.VQGAN.from_pretrained(folder)
    with pytest.raises(MgenError, match="is a file"):
        net.save_pretrained(folder / "notes.txt")


def test_a_model_is_all_its_files(parts: Any, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(parts["pipeline"], here / name))

    plain = identity(copy("a"))
    config = copy("b") / "transformer" / "config.json"
    data = json.loads(config.read_text())
    data["trunk"]["dropout"] = 0.25
    config.write_text(json.dumps(data))
    noted = copy("c")
    (noted / "README.md").write_text("notes")
    changed(noted / "transformer" / "config.json", _diffusers_version="9")
    changed(noted / "sampler" / "sampler_config.json", steps=3)
    assert identity(here / "b").weights_sha256 == plain.weights_sha256
    assert identity(here / "b") != plain and identity(noted) == plain
    pipe = load(copy("d"))
    for part in (pipe.transformer, pipe.tokenizer):
        folder = here / "d" / ("transformer" if part is pipe.transformer else "tokenizer")
        part.save_pretrained(folder, safe_serialization=False)
    assert identity(here / "d") != plain
    run = ["sample", "--num-images", "2", "--device", "cpu", "--out", "run"]
    from mgen.cli import main

    assert main([*run, "--model", "d"]) == 0
    capsys.readouterr()
    assert main([*run, "--model", "b"]) == 2
    assert "sha256" in capsys.readouterr().err


RUNS = [
    row("list", "[]", "does not describe a run"),
    row("null", "null", "does not describe a run"),
    row("text", "{", "run.json"),
    row("deep", DEEP, "run.json"),
    row("deep object", '{"a":' * 50_000 + "1" + "}" * 50_000, "run.json"),
    row("surrogate", '{"num_images": "\\ud800"}', "run.json"),
    row("num_images text", {"num_images": "6"}, "num_images"),
    row("num_images null", {"num_images": None}, "num_images"),
    row("num_images list", {"num_images": [6]}, "num_images"),
    row("num_images 0", {"num_images": 0}, "num_images"),
    row("num_images missing", {"num_images": ...}, "num_images"),
    row("num_images 10**30", {"num_images": 10**30}, "num_images"),
    row("another seed", {"seed": 3}, "seed was 3, now it is 0"),
    row("sampler null", {"sampler": None}, "sampler"),
    row("another model", {"model_sha256": "0" * 64}, "model_sha256"),
    row("unknown key", {"foo": 1}, "foo"),
    row("format list", {"format": []}, "format"),
]


@pytest.mark.parametrize(("content", "words"), RUNS)
def test_run_json(refused: Refused, copied: Copied, content: Any, words: list[str]) -> None:
    file = copied("run") / "run.json"
    if isinstance(content, str):
        file.write_text(content)
    else:
        changed(file, **content)
    refused(["sample", "--model", "@pipeline", "--num-images", "6", "--device", "cpu", "--out", "run"], *words)


def test_runs_of_older_versions_go_on(copied: Copied, parts: Any) -> None:
    from mgen.cli import main

    changed(copied("run") / "run.json", model_sha256=...)
    run = ["sample", "--model", str(parts["pipeline"]), "--num-images", "6", "--device", "cpu", "--out", "run"]
    assert main(run) == 0 and "model_sha256" in json.loads(Path("run/run.json").read_text())
