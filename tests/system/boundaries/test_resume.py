"""Resuming a training: checkpoints that were changed or damaged, settings and data that are no longer the same."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgen.cli import main
from mgen.project.work import last_value
from mgen.training.config import train_config
from mgen.training.loop import train
from mgen.training.summary import read_lines
from tests.system.boundaries.harness import Parts, Refused, row
from tests.system.boundaries.training import folders, settings_of, written

# -- resuming ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, with checkpoints of both."""
    folder = tmp_path_factory.mktemp("begun") / "trained"
    settings = settings_of(parts) | {
        "output": str(folder),
        "log": {"every": 1, "checkpoint_every": 1, "tensorboard": False},
    }
    train(train_config(settings))
    return folder


@pytest.fixture
def trained(begun: Path, here: Path) -> Path:
    """A copy of it, where `@config` trains."""
    return Path(shutil.copytree(begun, here / "trained"))


def again(**changed: str) -> list[str]:
    """The command that resumes it."""
    return [
        "train",
        "--config",
        "@config",
        "steps=4",
        "log.checkpoint_every=1",
        *(f"{k}={v}" for k, v in changed.items()),
    ]


def change(folder: Path, **values: object) -> None:
    """Overwrite keys of the newest checkpoint's state.json; "-" removes one."""
    file = folder / "checkpoint-0000002" / "state.json"
    state = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({k: v for k, v in state.items() if v != "-"}))


STATES: list[tuple[str, dict[str, object], str]] = [
    ("step null", {"step": None}, "step' takes a whole number"),
    ("step -1", {"step": -1}, "step' is -1"),
    ("step 10**9", {"step": 10**9}, "the folder's name says 2"),
    ("step 10**12", {"step": 10**12}, "at most"),
    ("step 10**30", {"step": 10**30}, "64 bits"),
    ("step 1.5", {"step": 1.5}, "whole number"),
    ("step 2.0", {"step": 2.0}, "whole number"),
    ("step true", {"step": True}, "whole number"),
    ("step text", {"step": "2"}, "whole number"),
    ("step 1", {"step": 1, "ema_steps": 1}, "the folder's name says 2"),
    ("step 3", {"step": 3}, "the folder's name says 2"),
    ("no step", {"step": "-"}, "missing key"),
    ("seconds text", {"seconds": "5"}, "seconds' takes a number"),
    ("seconds null", {"seconds": None}, "seconds' takes a number"),
    ("seconds negative", {"seconds": -1.0}, "seconds' is -1"),
    ("seconds 1e300", {"seconds": 1e300}, "at most"),
    ("no seconds", {"seconds": "-"}, "missing key"),
    ("skipped -1", {"skipped": -1}, "at least 0"),
    ("skipped 5", {"skipped": 5}, "skipped is 5"),
    ("skipped text", {"skipped": "no"}, "whole number"),
    ("version 3", {"version": 3}, "version' takes 2"),
    ("unknown key", {"other": 3}, "unknown key"),
    ("settings null", {"settings": None}, "mapping"),
    ("settings list", {"settings": []}, "mapping"),
    ("settings empty", {"settings": {}}, "missing key"),
    ("model null", {"model": None}, "mapping"),
    ("model empty", {"model": {}}, "other settings"),
    ("data null", {"data": None}, "mapping"),
    ("data images text", {"data": {"images": "12", "class_names": [], "tokens": None}}, "whole number"),
    ("data images 0", {"data": {"images": 0, "class_names": [], "tokens": None}}, "at least 1"),
    ("data class names numbers", {"data": {"images": 12, "class_names": [1], "tokens": None}}, "text"),
    ("ema steps null", {"ema_steps": None}, "ema_steps"),
    ("ema steps -1", {"ema_steps": -1}, "at least 0"),
    ("ema steps 10**9", {"ema_steps": 10**9}, "ema_steps"),
    ("scaler list", {"scaler": []}, "mapping"),
    (
        "scaler of another run",
        {
            "scaler": {
                "scale": 1.0,
                "growth_factor": 2.0,
                "backoff_factor": 0.5,
                "growth_interval": 9,
                "growth_tracker": 1,
            }
        },
        "scaler",
    ),
]


@pytest.mark.parametrize(("values", "words"), [row(name, values, words) for name, values, words in STATES])
def test_states_that_no_run_writes(
    refused: Refused, trained: Path, values: dict[str, object], words: tuple[str, ...]
) -> None:
    change(trained, **values)
    refused(again(), *words, "checkpoint-0000002")


@pytest.mark.parametrize("text", ["[]", "null", "5", '"a"', "[" * 50 + "]" * 50])
def test_states_that_are_no_mapping(refused: Refused, trained: Path, text: str) -> None:
    (trained / "checkpoint-0000002" / "state.json").write_text(text)
    refused(again(), "checkpoint-0000002", "expected a mapping")


CHANGED: list[tuple[str, str, str]] = [
    ("seed", "1", "seed was 0, now it is 1"),
    ("batch_size", "6", "batch_size was 4, now it is 6"),
    ("precision", "bf16", "precision"),
    ("model.trunk.heads", "4", "model.trunk.heads was 2, now it is 4"),
    ("model.trunk.dropout", "0.1", "model.trunk.dropout"),
    ("model.trunk.dim", "48", "model.trunk.dim"),
    ("data.flip", "true", "data.flip"),
    ("data.shift", "1", "data.shift"),
    ("data.kind", "fmnist data.path=@idx model.classes.count=10", "data.kind"),
    ("objective.label_drop", "0.5", "objective.label_drop"),
    ("objective.mask.distribution", "uniform", "objective.mask.distribution"),
    ("optim.betas", "[0.5,0.5]", "optim.betas"),
    ("optim.freeze", "[head]", "optim.freeze"),
    ("optim.decay_all", "false", "optim.decay_all"),
    ("ema", "null", "ema"),
    ("init", "@pipeline", "init"),
    ("steps", "1", "'steps' is 1"),
]


@pytest.mark.parametrize(("key", "value", "words"), [pytest.param(*c, id=c[0]) for c in CHANGED])
def test_settings_that_a_resumed_run_must_keep(
    refused: Refused, trained: Path, key: str, value: str, words: str
) -> None:
    command = [word for word in again() if not word.startswith(f"{key}=")]
    refused([*command, *f"{key}={value}".split(" ")], words)


APPLIED = ["optim.lr=0.5", "optim.weight_decay=0.5", "optim.clip=0.1", "ema.decay=0.1", "ema.warmup=false"]


def test_settings_that_may_change_are_applied_and_told(
    trained: Path, begun: Path, parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    unchanged = Path(shutil.copytree(begun, "unchanged"))
    command = [word.replace("@config", str(parts["config"])) for word in again()]
    assert main([*command, f"output={unchanged}"]) == 0
    assert main([*command, "output=trained/", *APPLIED]) == 0
    said = capsys.readouterr().err
    for word in (
        "optim.lr was 0.0001, now it is 0.5",
        "optim.weight_decay was 0.0",
        "ema.decay was 0.9999",
        "steps was 2",
    ):
        assert word in said
    for name in ("model", "ema"):
        a, b = (load_file(p / "checkpoint-0000004" / f"{name}.safetensors") for p in (unchanged, trained))
        assert not any(torch.equal(a[k], b[k]) for k in a if k.endswith("attn.qkv.weight"))
    config = json.loads((trained / "config.json").read_text())
    assert config["optim"]["lr"] == 0.5 and config["ema"] == {"decay": 0.1, "warmup": False} and config["steps"] == 4


def test_foreign_folders_and_files_are_no_checkpoints(trained: Path, parts: Parts) -> None:
    """Names with digits that are not ASCII, other names, files: none of them is resumed from, or removed."""
    for name in (
        "checkpoint-²",
        "checkpoint-0000009x",
        "checkpoint-",
        "checkpoint--0000003",
        "checkpoint-９９９９９９９",
        "checkpoint-9",
    ):
        shutil.copytree(trained / "checkpoint-0000001", trained / name)
    (trained / "checkpoint-0000008").write_text("")
    before = sorted(p.name for p in trained.iterdir())
    assert main(["train", "--config", str(parts["config"]), "steps=3"]) == 0
    left = sorted(p.name for p in trained.iterdir())
    assert set(before) - set(left) == {"checkpoint-0000001"} and "checkpoint-0000003" in left


class _Runs:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch ran",)


def test_pickles_are_never_read(refused: Refused, trained: Path) -> None:
    """Checkpoints of older versions raise an error, and pickles laid beside the files of new ones are not looked at."""
    folder = trained / "checkpoint-0000002"
    for name in ("custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl", "scheduler.bin", "scaler.pt"):
        torch.save(_Runs(), folder / name)
    change(trained, version="-", settings="-", model="-", data="-", task="generator", batch_size=4, seed=0)
    refused(again(), "older mgen", "pickles", "init=")
    assert not Path("ran").exists()


TENSORS: list[tuple[str, str, Callable[[dict[str, torch.Tensor]], object], str]] = [
    ("weight missing", "model", lambda t: t.pop("model.head.bias"), "model.head.bias is missing"),
    ("foreign weight", "model", lambda t: t.update(more=torch.zeros(3)), "more is not of this run"),
    ("other shape", "model", lambda t: t.update({"model.head.bias": torch.zeros(3)}), "(3,) of float32"),
    ("other type", "model", lambda t: t.update({"model.head.bias": torch.zeros(64).half()}), "float16"),
    ("NaN", "model", lambda t: t["model.head.bias"].fill_(torch.nan), "NaN"),
    ("averaged weight missing", "ema", lambda t: t.pop("model.head.bias"), "missing"),
    ("averaged weight infinite", "ema", lambda t: t["model.head.bias"].fill_(torch.inf), "infinity"),
    ("moment missing", "optimizer", lambda t: t.pop("model.head.bias/exp_avg"), "missing"),
    ("moment of another shape", "optimizer", lambda t: t.update({"model.head.bias/exp_avg": torch.zeros(1)}), "(1,)"),
    ("second moment negative", "optimizer", lambda t: t["model.head.bias/exp_avg_sq"].fill_(-1), "negative"),
    ("step count NaN", "optimizer", lambda t: t["model.head.bias/step"].fill_(torch.nan), "number of steps"),
    ("step count 10**9", "optimizer", lambda t: t["model.head.bias/step"].fill_(1e9), "number of steps"),
    ("step count as integers", "optimizer", lambda t: t.update({"model.head.bias/step": torch.tensor(2)}), "int64"),
]


@pytest.mark.parametrize(("part", "damage", "words"), [pytest.param(*t[1:], id=t[0]) for t in TENSORS])
def test_tensors_that_are_not_those_of_the_run(
    refused: Refused, trained: Path, part: str, damage: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    shutil.rmtree(trained / "checkpoint-0000001")
    file = trained / "checkpoint-0000002" / f"{part}.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    refused(again(), words, "checkpoint-0000002", "remove it")


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "folder", "text"])
@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
def test_files_that_cannot_be_read(refused: Refused, trained: Path, name: str, damage: str) -> None:
    if damage == "missing" and name == "state.json":
        pytest.skip("a folder without it is no checkpoint")
    shutil.rmtree(trained / "checkpoint-0000001")
    file = trained / "checkpoint-0000002" / name
    data = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"no tensors {"}[damage])
    refused(again(), "checkpoint-0000002", name)


DAMAGED_LINES = {
    "no UTF-8": b"\xff\xfe{}",
    "nested deeply": b"[" * 100_000,
    "step a text": b'{"step": "x"}',
    "step a list": b'{"step": [1], "loss": 1.0}',
    "no step": b'{"loss": 1.0}',
    "a value a text": b'{"step": 1, "loss": "low"}',
    "a value of 400 digits": b'{"step": 1, "loss": 1' + b"0" * 400 + b"}",
    "no mapping": b"5",
    "cut off": b'{"step": 2, "lo',
}


@pytest.mark.parametrize("line", DAMAGED_LINES.values(), ids=DAMAGED_LINES)
def test_damaged_lines_of_a_log_are_left_out(trained: Path, parts: Parts, line: bytes) -> None:
    log = trained / "metrics.jsonl"
    whole = log.read_bytes()
    log.write_bytes(line + b"\n" + whole + line)
    assert last_value(trained, "loss") == json.loads(whole.splitlines()[1])["loss"]
    assert [values["step"] for values in read_lines(log)] == [1, 2]
    assert main(["train", "--config", str(parts["config"]), "steps=3"]) == 0
    assert log.read_bytes().startswith(whole)
    assert [json.loads(text)["step"] for text in log.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("line", DAMAGED_LINES.values(), ids=DAMAGED_LINES)
def test_reports_of_damaged_logs_say_so(refused: Refused, trained: Path, line: bytes) -> None:
    log = trained / "metrics.jsonl"
    log.write_bytes(line + b"\n" + log.read_bytes())
    refused(["report", str(trained), "--out", "page.html"], "metrics.jsonl")


def test_data_that_changed_before_a_resume(refused: Refused, trained: Path, parts: Parts, here: Path) -> None:
    data = Path(shutil.copytree(parts["images"], here / "images"))
    config = written(settings_of(parts, data={**settings_of(parts)["data"], "path": "images"}, output="own"))
    assert main(["train", "--config", config]) == 0
    more = next(data.rglob("*.png"))
    shutil.copy(more, more.with_name("more.png"))
    refused(["train", "--config", config, "steps=4"], "other data", "images was 12, now it is 13")
    folders("images", ant=1)
    refused(["train", "--config", config, "steps=4", "model.classes.count=4"], "model.classes.count")
    assert main(["train", "--config", config, "steps=4", "output=new", "model.classes.count=4"]) == 0
