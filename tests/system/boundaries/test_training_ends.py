"""How trainings begin and end: one per folder, stopped by signals, diverged, from the weights of others, into folders of any name."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from mgen.cli import main
from mgen.pipelines.pretrained import load_weights
from mgen.training.config import build_model, train_config
from mgen.training.lock import locked
from mgen.training.loop import run, train
from mgen.training.trainer import Trainer
from mgen.utils.errors import MgenError, Terminated
from tests.helpers import tiny_config, tiny_tokens
from tests.system.boundaries.harness import Parts, Refused, row
from tests.system.boundaries.training import CNN, settings_of, written

# -- one training per folder -------------------------------------------------------------------------------------------------


def test_two_trainings_never_share_a_folder(refused: Refused, here: Path) -> None:
    with locked(here / "trained"):
        refused(["train", "--config", "@config"], "in use by another training", str(os.getpid()))
    assert not list(here.iterdir())
    code = "import time, pathlib as p, mgen.training.lock as m\nwith m.locked(p.Path('trained')):\n print(flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline()
    refused(["train", "--config", "@config"], "in use by another training", str(holder.pid))
    holder.kill()
    holder.wait()
    assert [p.name for p in (here / "trained").iterdir()] == [".lock"]
    with locked(here / "trained"):  # of a dead process
        pass
    assert list(here.iterdir()) == [here / "trained"] and not list((here / "trained").iterdir())


def test_a_lock_does_not_live_on_in_children(here: Path) -> None:
    with locked(here):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        with locked(here):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_full_disk_leaves_no_lock_and_no_folder(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        refused(["train", "--config", "@config", "output=a/b"], "cannot write to a/b", "No space left on device")
    with locked(Path("a/b")):
        assert Path("a/b/.lock").read_text()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_full_disk_leaves_no_logs_of_a_run_that_did_not_begin(
    refused: Refused, parts: Parts, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = Path.write_text

    def write(path: Path, *args: Any, **kwargs: Any) -> int:
        if name in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *args, **kwargs)

    parts["config"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write)
        refused(["train", "--config", "@config"], name, "No space left on device")


# -- signals -----------------------------------------------------------------------------------------------------------------


def stopped_at(trainer: Trainer, step: int, *signals: int) -> None:
    """Let signals arrive in this step."""
    real = trainer.train_step

    def one(*args: Any) -> Any:
        logs = real(*args)
        if trainer.step == step - 1:
            for number in signals:
                os.kill(os.getpid(), number)
        return logs

    trainer.train_step = one  # type: ignore[method-assign]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_a_checkpoint_and_the_run_goes_on_from_it(
    number: int, parts: Parts, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(parts) | {"steps": 4}
    train(train_config(settings | {"output": "whole"}))
    trainer, usual = Trainer(train_config(settings)), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    stopped_at(trainer, 3, number)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 4; .*trained/checkpoint-0000003") as stop:
        run(trainer)
    assert isinstance(stop.value, Terminated) == (number == signal.SIGTERM)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == usual
    assert "stopping after this step" in capfd.readouterr().err
    assert sorted(p.name for p in Path("trained").iterdir()) == ["checkpoint-0000003", "config.json", "metrics.jsonl"]
    train(train_config(settings))

    def losses(folder: str) -> list[float]:
        return [json.loads(line)["loss"] for line in Path(folder, "metrics.jsonl").read_text().splitlines()]

    assert losses("trained") == losses("whole")


def test_a_second_signal_stops_at_once(parts: Parts) -> None:
    trainer = Trainer(train_config(settings_of(parts)))
    stopped_at(trainer, 1, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="at once"):
        run(trainer)
    assert not list(Path("trained").glob("checkpoint-*"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_says_where_it_stopped(
    number: int, status: int, parts: Parts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.train_step

    def one(trainer: Trainer, *args: Any) -> Any:
        if trainer.step == 1:
            os.kill(os.getpid(), number)
        return real(trainer, *args)

    monkeypatch.setattr(Trainer, "train_step", one)
    assert main(["train", "--config", str(parts["config"]), "steps=9"]) == status
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "mgen: stopped after step 2 of 9; rerun the command to go on from trained/checkpoint-0000002"


# -- runs that diverge -------------------------------------------------------------------------------------------------------


def diverging(settings: dict[str, Any], change: Any) -> str:
    """Run with `change(trainer, out)` applied to each step's output; returns the error's text."""
    trainer = Trainer(train_config(settings))
    real = trainer.objective.forward
    trainer.objective.forward = lambda *args: change(trainer, real(*args))  # type: ignore[method-assign]
    with pytest.raises(MgenError) as error:
        run(trainer)
    assert not list(Path("trained").glob("model*"))
    return str(error.value)


def test_a_run_whose_steps_were_all_skipped_exports_nothing(parts: Parts) -> None:
    said = diverging(settings_of(parts), lambda trainer, out: out._replace(loss=out.loss * torch.nan))
    assert "diverged: 2 of 2 steps" in said and "optim.lr" in said


def test_weights_that_are_not_finite_are_never_written(parts: Parts) -> None:
    def poison(trainer: Trainer, out: Any) -> Any:
        if trainer.step == 1 and trainer.objective.training:
            next(iter(trainer.parameters)).data.fill_(torch.nan)
        return out

    said = diverging(
        settings_of(parts, ema=None) | {"log": {"every": 1, "checkpoint_every": 1, "tensorboard": False}}, poison
    )
    assert "diverged" in said and "NaN" in said
    assert [p.name for p in Path("trained").glob("checkpoint-*")] == ["checkpoint-0000001"]
    lines = Path("trained/metrics.jsonl").read_text()
    assert "NaN" not in lines and all(isinstance(json.loads(line), dict) for line in lines.splitlines())


def test_a_huge_learning_rate_is_told(refused: Refused, parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", str(parts["config"]), "optim.lr=1000", "steps=8", "ema=null"]) == 2
    assert "the run has diverged" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("trained/model").exists()
    assert "NaN" not in Path("trained/metrics.jsonl").read_text()


# -- weights to start from ---------------------------------------------------------------------------------------------------

MODEL = tiny_config("uvit", tokens=tiny_tokens(side=8, vocab_size=64))
STARTS: list[tuple[str, list[str], str]] = [
    ("other heads", ["model.trunk.heads=4"], "trunk.heads was 2, now it is 4"),
    ("other width", ["model.trunk.dim=48"], "trunk.dim was 32, now it is 48"),
    ("other depth", ["model.trunk.depth=4"], "trunk.depth"),
    ("without a null class", ["model.classes.null_class=false", "objective.label_drop=0"], "classes.null_class"),
]


@pytest.mark.parametrize(("changed", "words"), [row(name, changed, words) for name, changed, words in STARTS])
def test_init_is_of_the_same_configuration(refused: Refused, changed: list[str], words: tuple[str, ...]) -> None:
    refused(["train", "--config", "@config", "init=@pipeline", *changed], "init", *words)


LORA: list[tuple[list[str], str]] = [
    (["lora={}"], "lora needs init"),
    (["lora.rank=2", "task=classifier"], "leave lora out"),
    (["init=@pipeline", "lora=5"], "lora"),
    (["init=@pipeline", "lora=true"], "lora"),
    (["init=@pipeline", "lora.rank=0"], "at least 1"),
    (["init=@pipeline", "lora.rank=1000000"], "lora.rank is 1000000"),
    (["init=@pipeline", "lora.rank=1.5"], "whole number"),
    (["init=@pipeline", "lora.rnk=2"], "did you mean 'rank'"),
    (["init=@pipeline", "lora.alpha=0"], "lora.alpha"),
    (["init=@pipeline", "lora.alpha=.nan"], "finite"),
    (["init=@pipeline", "lora.dropout=1"], "lora.dropout"),
    (["init=@pipeline", "lora.targets=qkv"], "lora.targets"),
    (["init=@pipeline", "lora.targets=['']"], "lora.targets"),
    (["init=@pipeline", "lora.targets=[attn.q]"], "there are attn.proj, attn.qkv, mlp.fc1, mlp.fc2"),
    (["objective.image_size=33"], "33"),
    (["objective.image_size=64"], "the tokenizer makes 256 tokens"),
    (["objective.image_size=0"], "at least 1"),
]


@pytest.mark.parametrize(("changed", "words"), [row(" ".join(changed), changed, words) for changed, words in LORA])
def test_adapters_that_cannot_be_trained(refused: Refused, changed: list[str], words: tuple[str, ...]) -> None:
    refused(["train", "--config", "@config", *changed], *words)


def test_init_with_another_number_of_classes_starts_their_rows_anew(parts: Parts) -> None:
    for trunk, classes in (("uvit", {}), ("mage", {}), ("bert", {})):
        old, new = (
            build_model(tiny_config(trunk, tokens=tiny_tokens(side=8, vocab_size=64), classes={**classes, "count": n}))
            for n in (3, 5)
        )
        with torch.no_grad():
            for p in old.parameters():
                p.normal_()
        old.save_pretrained("old")
        fresh = {k: v.clone() for k, v in new.state_dict().items()}
        start = load_weights(new, "old")
        assert start.lines()[0].startswith("init: classes 3 → 5: starts anew (")
        before, after = old.state_dict(), new.state_dict()
        different = [k for k in after if after[k].shape != before[k].shape]
        assert all(torch.equal(after[k], before[k]) for k in after if k not in different)
        name = "classes.vectors.weight" if trunk == "uvit" else "embedder.table.weight"
        assert name in different
        first = 0 if trunk == "uvit" else 64
        assert torch.equal(after[name][:first], before[name][:first])
        assert torch.equal(after[name][first : first + 5], fresh[name][first : first + 5])
        assert torch.equal(after[name][first + 5 :], before[name][first + 3 :])  # the null class, and the mask


def test_init_of_a_classifier_with_other_classes(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    build_model({**CNN, "num_classes": 7}).save_pretrained("old")
    train(train_config(settings_of(parts, "classifier", init="old")))
    assert "init: classes 7 → 3: starts anew (classify.weight, classify.bias)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["[]", "null", "5", '"a"', "{", '{"_class_name": "VQGAN"}', '{"_class_name": 5}', "{}"]
)
def test_init_with_a_broken_configuration(refused: Refused, parts: Parts, text: str) -> None:
    build_model(CNN).save_pretrained("old")
    Path("old/config.json").write_text(text)
    refused(["train", "--config", written(settings_of(parts, "classifier", init="old"))], "old")


# -- where to --------------------------------------------------------------------------------------------------------------


def test_the_home_folder_is_expanded(parts: Parts, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    config = train_config(settings_of(parts) | {"output": "~/x/", "init": "~/y"})
    assert (config.output, config.init) == (str(here / "home/x"), str(here / "home/y"))


def test_a_run_that_could_not_begin_leaves_nothing_but_what_was_there(parts: Parts, here: Path) -> None:
    assert main(["train", "--config", str(parts["config"]), "output=a/b/c", "data.path=nowhere"]) == 2
    assert not list(here.iterdir())
