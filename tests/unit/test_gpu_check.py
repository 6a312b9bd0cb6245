"""tools/gpu_check.py: one command for a GPU, tried with tiny sizes on a CPU."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mgen.cli import run
from tests.helpers import tiny_net
from tools import compile_speed, data_speed, gpu_check, moment_precision, training_parts, training_speed

SMALL = ["--device", "cpu", "--small", "--models", "fmnist-maskgit", "--dtypes", "bf16", "--compile", "off"]


def test_a_page_resumed_after_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run works, the others fail in two ways; the page has all, and the second start runs the failed ones alone."""
    made = gpu_check.jobs
    broken = {"tests": ["-c", "print('no | luck'); raise SystemExit(3)"], "training": ["-c", "pass"]}

    def some_broken(args: object, out: Path) -> list[gpu_check.Job]:
        return [
            replaced(job, [sys.executable, *broken[job.part]]) if job.part in broken else job for job in made(args, out)
        ]  # type: ignore[arg-type]

    def replaced(job: gpu_check.Job, command: list[str]) -> gpu_check.Job:
        return gpu_check.Job(**{**vars(job), "command": command, "environment": {"N": job.name}})

    monkeypatch.setattr(gpu_check, "jobs", some_broken)
    options = [*SMALL, "--out", str(tmp_path / "out")]
    assert run(gpu_check.command, options) == 1
    text = (tmp_path / "out" / "report.md").read_text()
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
    assert [("error" in row, row["part"]) for row in rows] == [
        (True, "tests"),
        (False, "bench"),
        *[(True, "training")] * 2,
    ]
    assert torch.__version__ in text and "4 runs, 3 failed" in text
    assert "* tests gpu: exit status 3: no \\| luck" in text and "no numbers" in text
    measured = rows[1]["result"]
    assert f"| fmnist-maskgit | bf16 | off | 2 | {1 / measured['seconds_per_image']:.3g} |" in text
    assert "mgen bench --model fmnist-maskgit --steps 2 --device cpu --dtype bf16 --batch-size 2" in text

    ran: list[str] = []

    def note(job: gpu_check.Job, limit: float) -> dict[str, object]:
        ran.append(job.part)
        return {"part": job.part, "name": job.name, "command": job.line, "seconds": 1.0}

    monkeypatch.setattr(gpu_check, "execute", note)
    assert run(gpu_check.command, options) == 0
    assert (
        ran == ["tests", "training", "training"]
        and "4 runs, none failed" in (tmp_path / "out" / "report.md").read_text()
    )


def test_numbers_of_tests_and_of_trainings(tmp_path: Path) -> None:
    """As pytest and tools/training_speed.py write them."""
    from tools.gpu_check_page import page

    file = tmp_path / "tests.xml"
    file.write_text(
        '<testsuites><testsuite tests="4" failures="1" errors="0" skipped="1"><testcase classname="a" name="b"/>'
        '<testcase classname="a" name="c"><failure/></testcase></testsuite></testsuites>'
    )
    here = {"images_per_second": 12.5, "mfu": 0.25, "memory_bytes": 2e9, "data_wait": 0.01}
    trained = {"rows": [{"precision": "bf16", "batch_size": 64, "here": here}]}
    rows = [
        {"part": "tests", "name": "gpu", "command": "x", "seconds": 2.0, "result": gpu_check.read_tests(file)},
        {"part": "training", "name": "mar-b bf16 full", "command": "y", "seconds": 2.0, "result": trained},
    ]
    text = page({"card": "H"}, "z", rows)
    assert "| gpu | 2 | 1 | 1 | 2.0 | a::c |" in text
    assert "| mar-b | bf16 | full | 64 | 12.5 | 25 | 2 | 1 |" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cuda"], "--device cpu --small"),
        (["--device", "cpu"], "--small"),
        (["--only", "test"], "tests"),
        (["--models", "mar-c"], "mar-b"),
        (["--dtypes", "fp8"], "bf16"),
        (["--compile", "fast"], "regional"),
    ],
)
def test_bad_options(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(gpu_check.command, [*options, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tool", "options", "said"),
    [
        (training_speed, ["--steps", "0"], "--steps"),
        (training_speed, ["--models", "mar-c"], "mar-b"),
        (training_speed, ["--out", "{}/file/x.json"], "cannot write to"),
        (training_speed, ["--models", "fmnist-mar", "--set", "optim.lr=fast"], "optim.lr"),
        (moment_precision, ["--tokenizer", "fmnist-maskgit"], "--tokenizer"),
        (data_speed, ["--images", "10"], "--batch-size 256"),
        (data_speed, ["--folder", "{}/none"], "is no folder"),
        (data_speed, ["--images", "32", "--batch-size", "32", "--streams", "9", "--repeats", "1"], "streams"),
        (training_parts, ["--repeats", "0"], "--repeats"),
        (training_parts, ["--out", "{}/file/x.json"], "cannot write to"),
    ],
)
def test_bad_options_of_other_tools(
    tool: ModuleType,
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A line and no trace, before anything is measured."""
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    (tmp_path / "file").touch()
    assert run(tool.command, [option.format(tmp_path) for option in options]) == 2
    found = capsys.readouterr()
    assert said in found.err and found.err.count("\n") == 1 and not found.out


def test_training_steps_are_timed_with_weights_in_fp32() -> None:
    net, seen = tiny_net("uvit").train(), set[torch.dtype]()
    net.trunk.register_forward_pre_hook(lambda trunk, inputs: seen.update(p.dtype for p in trunk.parameters()))
    losses = compile_speed.Trained(net, 2, "bf16")()
    assert losses.isfinite().all() and seen == {torch.float32}


def test_paper_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU: the tests, six models and two trainings, in two precisions, plain and compiled."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("mgen.utils.devices.check_device", str)
    found = gpu_check.jobs(gpu_check.read_options([]), tmp_path)
    assert [sum(job.part == part for job in found) for part in gpu_check.PARTS] == [1, 24, 8]
    assert len({job.line for job in found}) == len({job.result for job in found}) == 33
    for job in found[1:]:
        named = job.command[job.command.index("--arch" if job.part == "bench" else "--models") + 1]
        assert named in {arch for arch, _ in gpu_check.SAMPLED.values()} | set(gpu_check.TRAINED)
