"""Sweeps: comparisons, resuming, and the command on a small model."""

import json
from pathlib import Path
from typing import Any

import pytest

from mgen.bench import sweep, sweep_report
from mgen.bench.sweep import Row
from mgen.cli import main
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from mgen.utils.folders import part
from tests.helpers import tiny_generator, tiny_pipeline

ROWS: list[Row] = [
    Row(method="base", steps=4, full=4, cached=0, tflops=4.0, seconds=4.0, distance=10.0),
    Row(method="base", steps=8, full=8, cached=0, tflops=8.0, seconds=8.0, distance=6.0),
    Row(method="base", steps=16, full=16, cached=0, tflops=16.0, seconds=16.0, distance=7.0),
    Row(method="fast", steps=8, full=4, cached=4, tflops=5.0, seconds=4.0, distance=9.0),
    Row(method="fast", steps=16, full=8, cached=8, tflops=10.0, seconds=8.1, distance=6.1),
    Row(method="poor", steps=8, full=4, cached=4, tflops=3.0, seconds=2.0, distance=20.0),
]


def write(path: Path, **changes: Any) -> Path:
    data = {
        "base": "all",
        "steps": [3, 4],
        "methods": {"all": {}, "reuse": {"reuse": {"cached": 1, "full_first": 0.5}}},
    }
    path.write_text(json.dumps({**data, **changes}))  # JSON is YAML too
    return path


def test_comparisons() -> None:
    steps = {(s.row["method"], s.row["steps"]): (s.faster, s.predicted) for s in sweep.equal_steps(ROWS, "base")}
    assert steps["fast", 8] == (2.0, 1.6) and steps["base", 16] == (1.0, 1.0)
    distance = {(match.goal, match.method): match.row for match in sweep.equal_distance(ROWS, "base")}
    # 16 steps of the base are beaten by its 8 steps and are no goal; 6.1 is within 2 % of 6.
    assert {goal for goal, _ in distance} == {10.0, 6.0}
    assert distance[6.0, "fast"] is ROWS[4] and distance[10.0, "fast"] is ROWS[3]
    assert distance[10.0, "poor"] is None
    time = {(match.goal, match.method): match.row for match in sweep.equal_time(ROWS, "base")}
    assert time[8.0, "fast"] is ROWS[4] and time[4.0, "fast"] is ROWS[3] and time[4.0, "poor"] is ROWS[5]
    assert [row["distance"] for row in sweep.frontier(ROWS, "seconds")] == [20.0, 9.0, 6.0]


def test_a_sweep_runs_and_resumes(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    made = sweep.read_sweep(str(write(tmp_path / "s.yaml")), pipe.sampler, pipe.transformer)
    assert [(m, n) for m, n, _ in made.runs] == [("all", 3), ("all", 4), ("reuse", 3), ("reuse", 4)]
    assert made.runs[3][2].reuse.full_first == 2  # half of the steps
    asked: list[ParallelSampler] = []

    def distance(sampler: ParallelSampler) -> float:
        asked.append(sampler)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return float(len(asked))

    def run(retime: bool = False) -> list[Row]:
        settings: dict[str, Any] = dict(file=tmp_path / "sweep.json", about={"a": 1}, batch_size=2, repeats=1)
        return sweep.run_sweep(pipe, made, distance=distance, retime=retime, **settings)

    with pytest.raises(KeyboardInterrupt):
        run()
    rows = run()
    assert len(rows) == 4 and len(asked) == 5  # two rows were there, the third was measured again
    assert all(row["seconds"] > 0 and row["tflops"] > 0 for row in rows)
    again = run(retime=True)  # seconds alone
    assert len(asked) == 5 and [{**a, "seconds": 0} for a in again] == [{**r, "seconds": 0} for r in rows]
    assert all(a["seconds"] != r["seconds"] for a, r in zip(again, rows))
    assert [row["cached"] for row in rows] == [0, 0, 0, 2]  # class and null row of one cached step
    other = sweep.read_sweep(
        str(write(tmp_path / "t.yaml", methods={"all": {"guidance": 1.0}})), pipe.sampler, pipe.transformer
    )
    with pytest.raises(MgenError, match="another --out"):  # the same names with other settings
        sweep.run_sweep(pipe, other, file=tmp_path / "sweep.json", about={"a": 1}, batch_size=2, repeats=1)
    with pytest.raises(MgenError, match="another --out"):
        sweep.run_sweep(pipe, made, file=tmp_path / "sweep.json", about={}, batch_size=2, repeats=1)


def test_report_names_what_was_not_reached(tmp_path: Path) -> None:
    about = {
        "command": "mgen bench",
        "model": "m",
        "batch_size": 1,
        "threads": 1,
        "dtype": "fp32",
        "distance": "d of 9",
    }
    text = sweep_report.markdown(ROWS, "base", about)
    assert "not reached" in text and "1.60×" in text and "metric: d of 9" in text
    assert "| 8 | fast | 4 + 4 | 5 | 4 | 2.00× | 1.60× | 9.000 |" in text
    bare = [{k: v for k, v in row.items() if k != "distance"} for row in ROWS]
    assert "random weights" in sweep_report.markdown(bare, "base", about)
    for name, rows in (("a.svg", ROWS), ("b.png", bare)):
        sweep_report.plot(rows, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_bad_sweeps(tmp_path: Path) -> None:
    net, sampler = tiny_generator(), ParallelSampler(steps=4)
    for changes, words in (
        ({"base": "other"}, "one of the methods"),
        ({"step": [3]}, "unknown key"),
        ({"methods": {"all": {"steps": 3}}}, "takes a list"),
        ({"methods": {"all": [1]}}, "takes a mapping"),
        ({"methods": {"all": {"orders": "halton"}}}, "unknown key"),
        ({"methods": {"all": {"guidance": [1.0, 2.0]}}}, "guidance lists 2"),
    ):
        with pytest.raises(MgenError, match=words):
            sweep.read_sweep(str(write(tmp_path / "bad.yaml", **changes)), sampler, net)
    with pytest.raises(MgenError, match="no such file"):
        sweep.read_sweep("nowhere", sampler, net)


def test_the_command_on_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "s.yaml", steps=[3])
    common = ["bench", "--arch", "fmnist-maskgit", "--tokenizer", "none", "--batch-size", "1"]
    assert main([*common, "--sweep", str(file), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "predicted" in text and "fmnist-maskgit, random weights" in text
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"sweep.json", "sweep.md", "sweep.svg"}
    assert main(["bench", "--sweep", str(file), "--out", str(tmp_path / "trained")]) != 0  # needs --num-images
    assert "--num-images" in capsys.readouterr().err


def test_shipped_sweeps_are_well_formed() -> None:
    from mgen.utils.config import read_config

    for path in sorted((part("configs") / "sweeps").glob("*.yaml")):
        data = read_config(path)
        assert data["base"] in data["methods"]
        for settings in data["methods"].values():
            settings = dict(settings)
            steps = settings.pop("steps", data["steps"])[0]
            ParallelSampler(**sweep.with_steps(data.get("sampler") or {}, settings, steps))


def test_a_benchmark_names_its_model_and_counts_its_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    common = ["bench", "--tokenizer", "none", "--batch-size", "1", "--threads", "1", "--steps", "4", "--guidance", "2"]
    reuse = ["--set", "reuse.cached=1", "--set", "reuse.full_first=2"]
    windows = ["--model-set", "windows.side=2", "--model-set", "trunk.dropout=0.0"]
    assert main([*common, "--arch", "fmnist-maskgit", *windows, *reuse, "--json", str(file)]) == 0
    assert "fmnist-maskgit, windows.side=2, trunk.dropout=0.0 (trunk uvit)" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["trunk"] == "uvit" and found["steps"] == 4
    assert found["passes_per_image"] == {"full": 6, "cached": 2}  # the class's row and the null row of each
    assert main([*common, "--config", "fmnist-himar", "--head-steps", "3", "--set", "first_stage.steps=2"]) == 0
    assert "trunk mae-two-stage" in capsys.readouterr().out
    for wrong, words in (
        (["--model-set", "trunk.dropout=0.0"], "--arch or --config"),
        (["--arch", "fmnist-mask"], "fmnist-maskgit"),
        (["--arch", "fmnist-maskgit", "--model-set", "trunk.width=3"], "model.trunk.width"),
        (["--config", "fmnist-kl"], "trains a KLTokenizer"),
        (["--arch", "fmnist-maskgit", "--config", "fmnist-himar"], "give one of them"),
    ):
        assert main([*common, *wrong]) == 2
        assert words in capsys.readouterr().err
