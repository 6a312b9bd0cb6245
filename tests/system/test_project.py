"""A project from a folder of images to its report: all stages of a tiny one, kills, changed settings, stages by themselves."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mgen
from mgen.cli import main
from mgen.project.records import Records
from mgen.project.stages import run_project
from mgen.project.start import InitRequest, init
from mgen.utils.errors import MgenError
from tests.system.test_own_data import color_images

FAST = {
    "classifier.yaml": [
        ("$", "\nsteps: 12\nlog: {every: 4, tensorboard: false}\nmodel: {widths: [8, 16], features: 8}\n")
    ],
    "tokenizer.yaml": [
        (r"steps: \d+", "steps: 12"),
        ("channels: 16", "channels: 8"),
        ("log: {", "log: {tensorboard: false, "),
    ],
    "generator.yaml": [
        (r"steps: \d+", "steps: 12"),
        ("dim: 192, depth: 6, heads: 6", "dim: 32, depth: 2, heads: 2"),
        ("encoder_dim: 192, encoder_depth: 3, encoder_heads: 6", "encoder_dim: 32, encoder_depth: 1, encoder_heads: 2"),
        ("decoder_dim: 192, decoder_depth: 3, decoder_heads: 6", "decoder_dim: 32, decoder_depth: 1, decoder_heads: 2"),
        ("width: 192, depth: 3", "width: 32, depth: 1"),
        ("log: {", "log: {tensorboard: false, "),
    ],
    "project.yaml": [("images: 1000", "images: 12")],
}


def tiny_project(folder: Path, **options: object) -> Path:
    """A project of 72 images whose trainings take seconds."""
    data = folder / "colors"
    if not data.exists():
        color_images(data, count=24, side=32)
    out = folder / "project"
    init(InitRequest(data=str(data), out=str(out), timed=False, **options))  # type: ignore[arg-type]
    for name, changes in FAST.items():
        if (out / name).exists():
            change(out / name, *changes)
    return out


def change(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in changes:
        text = text.rstrip() + new if old == "$" else re.sub(old, new, text)
    file.write_text(text)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project, by the commands."""
    folder = tmp_path_factory.mktemp("projects")
    out = tiny_project(folder)
    assert main(["train", "--project", str(out), "--accept-tokenizer"]) == 0
    return out


def test_a_project_ends_with_a_model_and_a_report(done: Path, tmp_path: Path) -> None:
    assert (
        main(["sample", "--model", str(done), "--num-images", "3", "--device", "cpu", "--out", str(tmp_path / "s")])
        == 0
    )
    pipe = mgen.load(done, device="cpu")
    assert list(pipe.class_names) == ["blue", "green", "red"] and pipe.tokenizer.config.in_channels == 3
    records = Records.read(done)
    assert all(record.finished for record in records.stages.values()) and len(records.stages) == 6
    result = json.loads((done / "report" / "samples" / "result.json").read_text())
    assert result["reference"]["name"] == "training images" and result["count"] == 12 and result["nearest"]
    floor = json.loads((done / "report" / "validation" / "result.json").read_text())
    fewer = json.loads((done / "report" / f"samples-{floor['count']}" / "result.json").read_text())
    assert floor["count"] == fewer["count"] and floor["protocol"] == fewer["protocol"]
    page = (done / "report" / "report.html").read_text()
    assert "validation images" in page and "class accuracy" in page
    assert (done / "check" / "reconstructions.png").is_file()


def test_finished_stages_are_skipped(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (done / "stages.json").read_text()
    assert main(["train", "--project", str(done), "--accept-tokenizer"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and all("finished, nothing has changed" in line for line in lines)
    assert (done / "stages.json").read_text() == before


def test_a_poor_tokenizer_stops_the_project_unless_it_is_accepted(done: Path) -> None:
    with pytest.raises(MgenError, match="Not good enough: .*--accept-tokenizer"):
        run_project(done)


def test_a_change_is_noticed_and_more_steps_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tiny_project(tmp_path)
    run_project(out, accept_tokenizer=True)
    change(out / "generator.yaml", ("dim: 32", "dim: 48"))
    with pytest.raises(
        MgenError,
        match=r"begun with other settings: model.trunk.dim was 32, now it is 48.*--stage generator --redo",
    ):
        run_project(out, accept_tokenizer=True)
    run_project(out, ["generator"], redo=True)
    capsys.readouterr()
    change(out / "generator.yaml", ("steps: 12", "steps: 16"))
    run_project(out, accept_tokenizer=True)
    said = capsys.readouterr().err
    assert "resuming from step 12 of 16" in said and "[6/6] report: done" in said
    change(out / "tokenizer.yaml", ("steps: 12", "steps: 14"))
    with pytest.raises(
        MgenError,
        match=r"cache was begun with other inputs: the tokenizer changed.*--stage cache,generator --redo",
    ):
        run_project(out, accept_tokenizer=True)
    run_project(out, ["cache", "generator"], redo=True)
    run_project(out, accept_tokenizer=True)


def test_new_images_are_noticed(tmp_path: Path) -> None:
    out = tiny_project(tmp_path)
    run_project(out, ["classifier"])
    (tmp_path / "colors" / "red" / "0.png").rename(tmp_path / "colors" / "red" / "renamed.png")
    with pytest.raises(MgenError, match="classifier was begun with other inputs: data changed since"):
        run_project(out, ["classifier"])


def test_a_stage_by_itself_needs_those_before_it(tmp_path: Path) -> None:
    out = tiny_project(tmp_path)
    with pytest.raises(MgenError, match="the stage tokenizer needs classifier, which is not finished"):
        run_project(out, ["tokenizer"])
    assert run_project(out, ["classifier"]) == out / "classifier" / "second" / "model"
    run_project(out, ["tokenizer", "cache"])
    with pytest.raises(MgenError, match="the stage generator needs check"):
        run_project(out, ["generator"])


@pytest.mark.parametrize("generator", ["mar", "fmnist-maskgit"])
def test_vectors_and_named_generators(tmp_path: Path, generator: str) -> None:
    out = tiny_project(tmp_path, generator=generator)
    run_project(out, accept_tokenizer=True)
    assert len(mgen.load(out, device="cpu")(["red"], progress=False, steps=2).images) == 1


def test_a_single_class(tmp_path: Path) -> None:
    out = tiny_project(tmp_path, classes="none")
    run_project(out, accept_tokenizer=True)
    assert (out / "report" / "samples.png").is_file() and not mgen.load(out, device="cpu").conditional


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_project_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    out = tiny_project(tmp_path)
    run_project(out, ["classifier"])
    change(out / "tokenizer.yaml", ("steps: 12", "steps: 2000"), ("checkpoint_every: [0-9]+", "checkpoint_every: 5"))
    command = [sys.executable, "-m", "mgen", "train", "--project", str(out), "--accept-tokenizer"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list((out / "tokenizer").glob("checkpoint-*")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate()[1]
    assert process.returncode == 128 + number and "the same command goes on" in said, said
    step = int(re.findall(r"stopped after step (\d+) of 2000", said)[-1])
    assert Records.read(out).stages["tokenizer"].finished is None
    change(out / "tokenizer.yaml", ("steps: 2000", f"steps: {step + 2}"))
    run_project(out, accept_tokenizer=True)
    assert Records.read(out).stages["report"].finished


def test_steps_are_timed(tmp_path: Path) -> None:
    color_images(tmp_path / "colors", count=24, side=32)
    draft, out = init(InitRequest(data=str(tmp_path / "colors"), out=str(tmp_path / "project"), hours=0.5))
    records = Records.read(out)
    assert set(records.estimates) == {"classifier", "tokenizer", "check", "cache", "generator", "report"}
    assert sum(records.estimates.values()) == pytest.approx(1800, rel=0.05) and draft.stretch != 1
    assert "for --hours" in (out / "generator.yaml").read_text()
    with pytest.raises(MgenError, match="--hours 0.01 is too short"):
        init(InitRequest(data=str(tmp_path / "colors"), out=str(tmp_path / "other"), hours=0.01))
    assert not (tmp_path / "other").exists()
