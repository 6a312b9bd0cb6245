"""Trackers beside metrics.jsonl: by name, continued by a resumed run, given up if they fail."""

import importlib.util
import json
import socket
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from PIL import Image

from mgen.training.config import TrainConfig, train_config
from mgen.training.logs import Logger
from mgen.training.trackers import _wandb_answers, tracker_names
from mgen.utils.errors import MgenError

Fake = Callable[[str], dict[str, list[Any]]]


def config(output: Path, **log: Any) -> TrainConfig:
    model = {"class": "ImageClassifier", "widths": [8]}
    return train_config({"task": "classifier", "output": str(output), "steps": 4, "model": model, "log": log})


@pytest.fixture(autouse=True)
def state() -> None:
    """What a Trainer has made before its Logger."""
    PartialState(cpu=True)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Modules with the calls that accelerate makes of wandb and trackio; what they were called with."""

    def make(name: str) -> dict[str, list[Any]]:
        calls: dict[str, list[Any]] = {"init": [], "log": [], "finish": []}
        module = types.ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, loader=None)

        def log(values: dict[str, Any], step: int | None = None) -> None:
            if step == 3:
                raise ConnectionError("no route to host")
            calls["log"].append((step, values))

        def init(**settings: Any) -> types.SimpleNamespace:
            calls["init"].append(settings)
            return types.SimpleNamespace(log=log, finish=lambda: calls["finish"].append(True))

        vars(module).update(init=init, Image=lambda picture: ("image", picture))
        monkeypatch.setitem(sys.modules, name, module)
        return calls

    return make


def test_a_missing_tracker_is_an_error_that_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MgenError, match="pip install comet-ml"):
        tracker_names(config(tmp_path, trackers=["comet_ml"]).log)
    assert tracker_names(config(tmp_path).log) == ()  # TensorBoard is for those who have it
    with pytest.raises(MgenError, match="log.trackers"):
        config(tmp_path, trackers=["wandbb"])


def test_the_setting_tensorboard_is_for_runs_without_a_list(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert tracker_names(config(tmp_path).log) == ("tensorboard",)
    assert tracker_names(config(tmp_path, tensorboard=False).log) == ()
    assert tracker_names(config(tmp_path, tensorboard=False, trackers=["tensorboard"]).log) == ("tensorboard",)
    assert tracker_names(config(tmp_path, trackers=[]).log) == ()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_is_the_same_run_of_the_tracker(
    name: str, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, settings = fake(name), config(tmp_path / "run", trackers=[name], project="tiles")
    monkeypatch.setenv("WANDB_MODE", "online")
    for step in (0, 2, 0):
        logger = Logger(tmp_path / "run", settings, step=step, active=True)
        logger.write(step + 1, {"loss": 0.5})
        logger.close()
    first, second, third = calls["init"]
    key = "id" if name == "wandb" else "name"
    assert first["project"] == "tiles" and first["config"]["log.project"] == "tiles" and first["resume"] == "allow"
    assert first[key] == second[key] != third[key]  # the third one starts anew
    assert [step for step, _ in calls["log"]] == [1, 1] and len(calls["finish"]) == 2  # it failed in step 3


def test_a_tracker_that_fails_is_given_up_and_the_run_goes_on(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = fake("trackio")
    logger = Logger(tmp_path, config(tmp_path, trackers=["trackio"]), step=0, active=True)
    for step in range(1, 6):
        logger.write(step, {"loss": float(step)})
        logger.show("preview", Image.new("RGB", (4, 4)), step)
    logger.close()
    assert [step for step, _ in calls["log"]] == [1, 1, 2, 2] and calls["log"][1][1]["preview"][0] == "image"
    assert capsys.readouterr().err.count("trackio failed (no route to host)") == 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]


def test_a_tracker_that_does_not_start_leaves_nothing(fake: Fake, tmp_path: Path) -> None:
    fake("trackio")
    vars(sys.modules["trackio"])["init"] = None
    settings = config(tmp_path / "run", trackers=["trackio"])
    with pytest.raises(MgenError, match="trackio does not start"):
        Logger(tmp_path / "run", settings, step=0, active=True)
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "trackers.json").write_text("[1]")  # of a run that goes on
    with pytest.raises(MgenError, match="trackers.json holds .*expected a mapping"):
        Logger(tmp_path / "run", settings, step=2, active=True)
    assert (tmp_path / "run" / "config.json").exists()


def test_commands_with_passwords_are_not_sent(fake: Fake, tmp_path: Path) -> None:
    calls, given = fake("trackio"), []
    for command in ("curl -H 'Authorization: secret'", "curl -H 'Authorization: hidden'", "KEY=secret curl x"):
        settings = config(tmp_path, trackers=["trackio"])
        object.__setattr__(settings.data, "path", f"pipe:{command}")
        Logger(tmp_path, settings, step=0, active=True).close()
        given.append(calls["init"][-1]["config"]["data.path"])
        assert "secret" not in str(calls) and "hidden" not in str(calls)
        assert command in (tmp_path / "config.json").read_text()
    assert given[0].startswith("pipe:curl … (") and given[2].startswith("pipe: … (") and len(set(given)) == 3


def test_wandbs_server_is_looked_for_at_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        assert _wandb_answers()
    assert not _wandb_answers()  # it is closed
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert _wandb_answers()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert not _wandb_answers()
    monkeypatch.setenv("WANDB_BASE_URL", "http://host:port")
    with pytest.raises(MgenError, match="WANDB_BASE_URL"):
        _wandb_answers()


def test_wandb_without_a_key_is_offline(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    calls = fake("wandb")
    Logger(tmp_path / "run", config(tmp_path / "run", trackers=["wandb"]), step=0, active=True).close()
    assert calls["init"][0]["mode"] == "offline" and "wandb sync" in capsys.readouterr().err


def test_tensorboard_drops_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step, value in ((0, 1.0), (2, 2.0)):
        logger = Logger(tmp_path, config(tmp_path, trackers=["tensorboard"]), step=step, active=True)
        for i in range(step + 1, 5):
            logger.write(i, {"loss": value})
        logger.close()
        for file in (tmp_path / "tensorboard").iterdir():  # as of a host or process whose name sorts behind all others
            file.rename(file.with_name(f"{'.'.join(file.name.split('.')[:4])}.~"))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
