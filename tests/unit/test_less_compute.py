"""The tables of policies: what is kept and measured again, what a row says, and errors before any work."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mgen.bench.benchmark import random_pipeline
from mgen.utils.errors import MgenError
from tools import less_compute
from tools.ablations.diffusion import PlainHead
from tools.less_compute_rows import BEST, PLAIN, TRUNKS, Trunk, changed, diffusion_form, masked_form
from tools.less_compute_table import filled, interval, table, verdict
from tools.less_compute_time import batch_of, in_turn

TINY = Trunk(
    model="fmnist-maskgit",
    base=("steps=2",),
    batch_size=2,
    rows={"one step": ("steps=1",), "no guidance": ("guidance.end=1.0",)},
)


@pytest.fixture
def trunk(monkeypatch: pytest.MonkeyPatch) -> Trunk:
    """The only trunk."""
    monkeypatch.setattr(less_compute, "TRUNKS", {"tiny": TINY})
    return TINY


def page_of(folder: Path, *names: str) -> Path:
    page = folder / "page.md"
    page.write_text("# Title\n" + "".join(f"<!-- table: {name} -->\nold\n<!-- /table -->\nafter\n" for name in names))
    return page


def test_rows_are_measured_once_and_again_when_they_change(
    trunk: Trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "results.json", page_of(tmp_path, "tiny")
    common = ["--out", str(out), "--work", str(tmp_path / "work"), "--images", "4", "--page", str(page)]
    assert less_compute.main(["tiny", *common, "--seeds", "0", "--rows", "one step"]) == 0
    first: dict[str, Any] = json.loads(out.read_text())["tiny"]
    assert list(first) == [PLAIN, "one step"]
    assert less_compute.main(["tiny", *common, "--seeds", "0", "1"]) == 0
    found: dict[str, Any] = json.loads(out.read_text())["tiny"]
    assert set(found) == {PLAIN, "one step", "no guidance"}
    for name, row in found.items():
        assert set(row["distances"]["4"]) == {"0", "1"} and row["set"] == list(trunk.rows.get(name, trunk.base))
        assert row["distances"]["4"]["0"] != row["distances"]["4"]["1"]
    assert found[PLAIN]["distances"]["4"]["0"] == first[PLAIN]["distances"]["4"]["0"]
    assert found[PLAIN]["tflops"] > 1.8 * found["one step"]["tflops"] > 0
    assert found[PLAIN]["passes"]["full"] == 2 * found["no guidance"]["passes"]["full"] == 4

    capsys.readouterr()
    assert less_compute.main(["tiny", *common, "--seeds", "0", "1"]) == 0
    assert not capsys.readouterr().err  # nothing to do
    rows = {"one step": ("steps=1", "guidance.end=2.0"), "no guidance": trunk.rows["no guidance"]}
    monkeypatch.setattr(less_compute, "TRUNKS", {"tiny": replace(trunk, rows=rows)})
    assert less_compute.main(["tiny", *common, "--seeds", "0"]) == 0
    again: dict[str, Any] = json.loads(out.read_text())["tiny"]
    assert set(again["one step"]["distances"]["4"]) == {"0"} and again[PLAIN] == found[PLAIN]
    said = capsys.readouterr().err
    assert "one step, seed 0" in said and "no guidance" not in said

    assert less_compute.main(["tiny", *common, "--time", "--rounds", "1", "--render"]) == 0
    timed: dict[str, Any] = json.loads(out.read_text())["tiny"]
    assert all(row["seconds"] > 0 and row["timing"]["rounds"] == 1 for row in timed.values())
    assert timed[PLAIN]["time_ratio"] == 1 and "form_seconds" not in timed[PLAIN]
    text = page.read_text()
    assert "old" not in text and text.startswith("# Title\n") and text.endswith("after\n")
    assert "| one step | `steps=1`<br>`guidance.end=2.0` |" in text and text.count("\n| ") == 4


def test_features_are_kept_by_settings(trunk: Trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose file of results is lost samples nothing again."""
    common = ["tiny", "--work", str(tmp_path / "work"), "--images", "4", "--seeds", "3", "--rows", "one step"]
    assert less_compute.main([*common, "--out", str(tmp_path / "a.json")]) == 0
    monkeypatch.setattr(type(trunk.pipe), "__call__", lambda *a, **k: pytest.fail("sampled again"))
    assert less_compute.main([*common, "--out", str(tmp_path / "b.json")]) == 0
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def row(tflops: float, ratio: float | None = None, distances: dict[str, list[float]] | None = None) -> dict[str, Any]:
    times = (
        {}
        if ratio is None
        else {"seconds": ratio / 2, "time_ratio": ratio, "form_seconds": 1.5, "form_ratio": ratio / 3}
    )
    by_seed = {images: {str(i): d for i, d in enumerate(values)} for images, values in (distances or {}).items()}
    return {"set": ["steps=2"], "tflops": tflops, "distances": by_seed, **times}


def test_what_a_table_says() -> None:
    rows = {
        PLAIN: row(2.0, 1.0, {"500": [5.0, 5.2, 5.4], "2000": [4.0, 4.1, 4.2]}),
        "as counted": row(1.0, 0.55, {"2000": [4.1, 4.2, 4.3]}),
        "slower than counted": row(1.0, 0.6, {"2000": [9.0, 9.1, 9.2]}),
        "better": row(1.0, None, {"2000": [3.0, 3.1, 3.2]}),
        "one seed": row(1.0, None, {"2000": [4.4]}),
        "few images": row(0.5, None, {"500": [5.0, 5.1, 5.2]}),
    }
    lines = table(rows).splitlines()
    assert "distance, 2,000 images" in lines[0] and len({line.count("|") for line in lines}) == 1
    cells = {line.split(" | ")[0][2:]: line[:-2].split(" | ") for line in lines[2:]}
    assert cells[PLAIN][2:] == ["2", "1.00", "0.5", "1.00", "0.33", "4.10 ± 0.10", "", ""]
    assert cells["as counted"][3:] == ["0.50", "0.275", "0.55", "0.18", "4.20 ± 0.10", "+0.10 ± 0.00", "equal"]
    assert cells["slower than counted"][5] == "0.60 ⚠" and cells["slower than counted"][-1] == "worse"
    assert cells["better"][-1] == "better" and cells["better"][4:7] == ["–", "–", "–"]
    assert cells["one seed"][-3:] == ["4.40 (1 seed)", "+0.40", "–"]
    assert cells["few images"][-3:] == ["–", "–", "–"]
    assert cells["plain form"][4:7] == ["1.5", "3.00", "1.00"]
    assert "distance" not in table({PLAIN: row(2.0) | {"distances": {}}})
    more = {name: one | {"distances": one["distances"] | {"50": {"0": 9.0, "1": 9.1}}} for name, one in rows.items()}
    more[PLAIN]["distances"] |= {"9000": {"0": 3.0}}
    assert "50 images" not in table(more) and "9,000" not in table(more)  # few images; and nothing to compare
    more["better"]["distances"] |= {"9000": {"0": 2.5}}
    assert table(more).splitlines()[5].endswith("| 3.10 ± 0.10 | -1.00 ± 0.00 | better | 2.50 (1 seed) | -0.50 | – |")


@pytest.mark.parametrize(
    ("own", "words"),
    [([4.0, 4.5, 5.0], "equal"), ([6.0, 6.1, 6.2], "worse"), ([2.0, 2.1, 2.2], "better"), ([6.0], "–")],
)
def test_equal_means_that_intervals_overlap(own: list[float], words: str) -> None:
    assert verdict(own, [4.0, 4.1, 4.2]) == words
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5, rel=1e-3)


def test_runs_take_turns() -> None:
    """The run that is farthest from its end goes next; what comes after the last step belongs to its run."""
    seen: list[str] = []

    def steps(name: str, count: int) -> Any:
        for _ in range(count):
            seen.append(name)
            yield 1.0
        seen.append(name.upper())

    seconds = in_turn({"a": steps("a", 4), "b": steps("b", 2)}, {"a": 4, "b": 2})
    assert "".join(seen) == "abaabaAB" and set(seconds) == {"a", "b"} and min(seconds.values()) >= 0


@pytest.mark.parametrize(("name", "form"), [("fmnist-mar", diffusion_form), ("fmnist-maskgit", masked_form)])
def test_plain_forms_draw_the_same(name: str, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed as the plain form computes what the plain run does."""
    pipe = TRUNKS[name].pipe
    sample, drawn = PlainHead.sample, []
    monkeypatch.setattr(PlainHead, "sample", lambda *inputs, **kwargs: drawn.append(1) or sample(*inputs, **kwargs))
    sampler = changed(
        pipe.sampler, ("steps=2", "head.steps=4", "head.max_timestep=600") if name == "fmnist-mar" else ("steps=2",)
    )
    noise, ids = sampler.make_noise(pipe.transformer, range(2)), torch.tensor([3, 7])
    with torch.inference_mode():
        *_, own = sampler(pipe.transformer, ids, noise=noise)
        *_, other = sampler(form(pipe.transformer, 2), ids, noise=noise)
    torch.testing.assert_close(own.tokens, other.tokens, rtol=0, atol=1e-3)
    assert len(drawn) == (2 if name == "fmnist-mar" else 0)  # every token is drawn by the plain head, guided ones too


@pytest.mark.parametrize(
    ("name", "form"), [("fmnist-mar", diffusion_form), ("fmnist-mar", None), ("fmnist-maskgit", None)]
)
def test_a_part_of_the_steps_stands_for_all(name: str, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe: Any = TRUNKS[name].pipe
    sampler = changed(pipe.sampler, ("steps=7", "head.steps=2") if name == "fmnist-mar" else ("steps=7",))
    forward, passes = type(pipe.transformer.trunk).forward, []
    monkeypatch.setattr(type(pipe.transformer.trunk), "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    generator = pipe.transformer if form is None else form(pipe.transformer, 2)
    with torch.inference_mode():
        weights = list(batch_of(pipe, generator, sampler, 2, every=3))
        assert weights == [0, 3.5, 0, 0, 3.5, 0, 0] and len(passes) == 3  # one to learn the width
        assert list(batch_of(pipe, generator, sampler, 2)) == [1.0] * 7 and len(passes) == 10


@pytest.mark.parametrize("name", [name for name, trunk in TRUNKS.items() if trunk.trained])
def test_rows_are_ones_that_the_generator_takes(name: str) -> None:
    for one in TRUNKS[name].rows:
        TRUNKS[name].sampler(one)


@pytest.mark.parametrize("name", [name for name, trunk in TRUNKS.items() if not trunk.trained])
def test_rows_at_paper_size_are_ones_that_the_generator_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(config: dict[str, Any], tokenizer: None) -> Any:
        sizes = {key: 16 for key in config["trunk"] if key.endswith("dim")}
        heads = {key: 2 for key in config["trunk"] if key.endswith("heads")}
        head = config["head"] | ({"width": 16} if config["head"]["type"] == "diffusion" else {})
        return random_pipeline({**config, "trunk": {**config["trunk"], **sizes, **heads}, "head": head}, tokenizer)

    monkeypatch.setattr("tools.less_compute_rows.random_pipeline", small)
    trunk = replace(TRUNKS[name])
    for one in trunk.rows:
        trunk.sampler(one)
    assert trunk.form is not None and BEST in trunk.rows


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "give trunks"),
        (["fmnist-mor"], "fmnist-mar"),
        (["fmnist-mar", "--rows", "best"], "unknown --rows 'best'"),
        (["--render", "--out", "nowhere.json"], "nowhere.json"),
    ],
)
def test_errors_come_first(given: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        less_compute.main(given)
    assert words in capsys.readouterr().err


def test_a_table_needs_its_place(tmp_path: Path) -> None:
    with pytest.raises(MgenError, match="0 places for the table of b"):
        filled(page_of(tmp_path, "a").read_text(), {"a": "x", "b": "y"})
