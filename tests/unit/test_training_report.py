"""mgen report of trainings: the rule by which a run is called normal, what is not compared, files that are damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from mgen.cli import main
from mgen.reports.training import read_training, smooth, thinned, value_at
from mgen.reports.usual import differences, sentences, summary, verdicts
from mgen.utils.errors import MgenError
from mgen.utils.logged import LOGGED, in_order, logged
from mgen.zoo.trainings import find_training, is_training, shipped_trainings

SHIPPED = "fmnist-maskgit"


def copy_of(name: str, folder: Path, *, factor: float = 1.0, until: int = 10**9, **settings: Any) -> Path:
    """A run like a shipped one, with losses times `factor`, stopped after a step, with other settings (dots as __)."""
    source = shipped_trainings()[name]
    folder.mkdir()
    lines = [json.loads(line) for line in (source / "metrics.jsonl").read_text().splitlines()]
    lines = [
        {key: value * factor if "loss" in key else value for key, value in line.items()}
        for line in lines
        if line["step"] <= until
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = json.loads((source / "training.json").read_text())
    for key, value in settings.items():
        place = config
        *above, last = key.split("__")
        for part in above:
            place = place[part]
        place[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def against(folder: Path, name: str = SHIPPED) -> dict[str, Any]:
    run, other = read_training(folder, "mine"), read_training(shipped_trainings()[name], name)
    return {verdict.metric: verdict for verdict in verdicts(run, other)}


def test_the_shipped_trainings_are_small_and_know_their_settings() -> None:
    names = ["classifier", "cnn", "kl", "mar", "maskgit", "vqgan", "vqgan-decoder"]
    assert list(shipped_trainings()) == [f"fmnist-{name}" for name in names]
    for name, folder in shipped_trainings().items():
        assert (folder / "metrics.jsonl").stat().st_size <= 20 * 1024, name
        run = read_training(folder, name)
        assert {"loss", "val_loss", "lr", "grad_norm", "images_per_second"} <= set(run.curves)
        assert run.batch in (64, 128) and run.seconds > 100
        assert run.about["training images"] == 60000 and run.about["image side, pixels"] == 32
        found = verdicts(run, run)
        assert not differences(run, run) and all(v.usual for v in found if v.metric != "images_per_second"), name


@pytest.mark.parametrize(("factor", "usual"), [(1.0, True), (1.09, True), (0.92, True), (1.11, False), (0.88, False)])
def test_a_loss_is_usual_within_ten_percent(factor: float, usual: bool, tmp_path: Path) -> None:
    found = against(copy_of(SHIPPED, tmp_path / "run", factor=factor))
    for metric in ("loss", "val_loss"):
        assert found[metric].usual is usual and found[metric].difference == pytest.approx(factor - 1, abs=1e-6)
    assert ("in the usual range (±10 %)" in found["loss"].text) == usual
    assert found["lr"].usual and found["accuracy"].usual and found["images_per_second"].usual is None
    said = summary(list(found.values()), SHIPPED)
    assert ("utside: training loss, validation loss." in said) == (not usual)


def test_runs_are_compared_at_the_images_that_both_have_seen(tmp_path: Path) -> None:
    found = against(copy_of(SHIPPED, tmp_path / "half", until=1600))
    assert found["loss"].usual and abs(found["loss"].difference) < 0.02
    assert found["loss"].value > 1.02 * against(copy_of(SHIPPED, tmp_path / "whole"))["loss"].value
    # Twice the batch: the same losses at twice the images.
    source = copy_of(SHIPPED, tmp_path / "large", batch_size=128)
    lines = [json.loads(line) for line in (source / "metrics.jsonl").read_text().splitlines()]
    doubled = [line | ({"images": 2 * line["images"]} if "images" in line else {}) for line in lines]
    (source / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in doubled))
    run = read_training(source, "large")
    assert run.batch == 128 and run.over_images("loss")[0][0] == 50 * 128
    assert against(source)["loss"].difference > 0.02  # it learned less from as many images


def test_too_early_is_said_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    copy_of(SHIPPED, folder, until=50)
    (folder / "metrics.jsonl").write_text('{"step": 5, "loss": 6.0, "lr": 1e-4, "images": 320}\n')
    found = list(against(folder).values())
    assert [v.usual for v in found] == [None, None]
    (only,) = sentences(found)
    assert only.text.startswith("Too early to say: training loss, learning rate (320 images here and 3,200 … 204,800")
    assert summary(found, SHIPPED).startswith("Nothing can be compared")


def test_few_values_of_single_batches_are_too_noisy_to_compare(tmp_path: Path) -> None:
    few, enough = (against(copy_of(SHIPPED, tmp_path / str(step), until=step)) for step in (200, 250))
    assert few["loss"].usual is None and "fewer than 5 values" in few["loss"].text and few["lr"].usual
    assert enough["loss"].usual


def test_losses_of_other_objectives_and_vocabularies_are_not_against(tmp_path: Path) -> None:
    vocabulary = against(copy_of(SHIPPED, tmp_path / "a", **{"about__vocabulary, ids": 1024}))
    assert (
        vocabulary["loss"].usual is None and "not comparable, since vocabulary, ids differs" in vocabulary["loss"].text
    )
    assert vocabulary["accuracy"].usual and vocabulary["lr"].usual
    smoothing = against(copy_of(SHIPPED, tmp_path / "b", objective__label_smoothing=0.1))
    assert smoothing["val_loss"].usual is None and "objective.label_smoothing" in smoothing["grad_norm"].text
    other_task = against(copy_of("fmnist-classifier", tmp_path / "c"))
    assert all(verdict.usual is None for verdict in other_task.values()) and "task differs" in other_task["lr"].text


def test_settings_that_differ_are_listed_and_places_are_not(tmp_path: Path) -> None:
    settings: Any = {"batch_size": 32, "output": "elsewhere", "data__path": "x", "optim__lr": 5e-4, "log__every": 7}
    folder = copy_of(SHIPPED, tmp_path / "run", **settings, **{"about__image side, pixels": 64})
    run, other = read_training(folder, "mine"), read_training(shipped_trainings()[SHIPPED], SHIPPED)
    found = [(d.setting, d.run, d.other) for d in differences(run, other)]
    assert found == [("image side, pixels", 64, 32), ("batch_size", 32, 64), ("optim.lr", 5e-4, 1e-3)]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page_markdown_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    copy_of(SHIPPED, tmp_path / "a", until=2400, seed=3)
    copy_of(SHIPPED, tmp_path / "b", factor=1.2)
    assert main(["report", "a", "b/metrics.jsonl", "--against", SHIPPED, "--out", "both.html"]) == 0
    assert capsys.readouterr().out.split() == ["both.html", "both.md", "both.json"]
    told = json.loads(Path("both.json").read_text())
    assert [t["name"] for t in told["trainings"]] == ["a", "b", SHIPPED] and told["against"] == SHIPPED
    usual = {(v["training"], v["metric"]): v["usual"] for v in told["verdicts"]}
    assert usual["a", "loss"] is True and usual["b", "loss"] is False and usual["a", "images_per_second"] is None
    assert told["differences"] == [{"training": "a", "setting": "seed", "run": 3, "other": 0}]
    over = [(c["metric"], c["over"]) for c in told["curves"]]
    assert over[:4] == [("loss", "images seen"), ("loss", "step"), ("val_loss", "images seen"), ("lr", "images seen")]
    assert {"grad_norm", "images_per_second"} <= {metric for metric, _ in over}
    text = Path("both.md").read_text()
    assert "# a and b against fmnist-maskgit" in text and "outside the usual range (±10 %)" in text
    assert "| seed | 3 | 0 |" in text and "**Training loss, over images seen**" in text and "within ±10 %" in text
    page = Path("both.html").read_text()
    assert page.count("<svg") == len(over) or "pip install" in page
    assert main(["report", "a", "--against", "b", "--out", "both.html"]) == 0, "its own files are replaced"
    assert main(["report", "a", "b", "--out", "curves.html"]) == 0 and "usual" not in Path("curves.md").read_text()


def test_names_in_a_log_are_no_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = "<script>alert(1)</script>|\n# x"
    monkeypatch.chdir(tmp_path)
    folder = copy_of(SHIPPED, tmp_path / "a<b>", **{f"about__{bad}": bad})
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "images": 64, bad: 1.0, "loss": 2.0}) + "\n")
    assert main(["report", "a<b>", "--out", "r.html", "--title", bad]) == 0
    page, text = Path("r.html").read_text(), Path("r.md").read_text()
    assert "<script>alert" not in page and page.count("<script>") == 1
    assert "<script>" not in text and "\n# x" not in text


# -- bad input ---------------------------------------------------------------------------------------------------------

LINE = '{"step": 1, "loss": 2.0, "images": 64}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no values yet"),
        ('{"step": 1}\n', "no values yet"),
        ("[]\n" + LINE, "line 1"),
        ("3\n" + LINE, "line 1"),
        ('{"loss": 2.0}\n' + LINE, "step"),
        ('{"step": -1, "loss": 2.0}\n' + LINE, "step"),
        ('{"step": 1.5, "loss": 2.0}\n' + LINE, "step"),
        ('{"step": 1, "loss": "low"}\n' + LINE, "loss"),
        ('{"step": 1, "loss": [1]}\n' + LINE, "loss"),
        ('{"step": 1, "loss": 1e99}\n' + LINE, "loss"),
        ('{"step": 1, "loss": NaN}\n' + LINE, "line 1"),
        ("{cut\n" + LINE, "line 1 is not valid JSON"),
        ("[" * 10**5 + "\n" + LINE, "line 1"),
        ('{"step": 1, "loss": 2.0}\n', "how many images"),
    ],
)
def test_damaged_logs(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(MgenError, match=said) as error:
        read_training(tmp_path, "x")
    assert "metrics.jsonl" in str(error.value)


def test_a_last_line_that_was_cut_off_is_passed_over_and_null_is_no_value(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(LINE + '{"step": 2, "loss": null, "images": 128}\n{"step": 3, "lo')
    assert read_training(tmp_path, "x").curves == {"loss": [(1.0, 2.0)]}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["a", "--against", "fmnist-maskgt"], "did you mean 'fmnist-maskgit'"),
        (["a", "--against", "nowhere/at-all"], "nowhere/at-all"),
        (["a", "--against", "empty"], "no folder of a training"),
        (["a", "--against", "a"], "given twice"),
        (["a", "a"], "given twice"),
        (["a", "empty"], "no folder of a training"),
        (["a", "empty", "--against", "fmnist-mar"], "no folder of a training"),
        (["a", "--against", "fmnist-mar", "--allow-mixed"], "leave it out"),
        (["a", "other", "--against", "fmnist-maskgit"], "no value in common"),
        (["a", "--out", "a/config.html"], "choose another --out"),
    ],
)
def test_bad_arguments(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    copy_of(SHIPPED, tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text('{"step": 1, "odd": 2.0, "images": 64}\n')
    assert main(["report", *argv]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and said in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "empty", "other"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["config.json", "metrics.jsonl"]


# -- parts -------------------------------------------------------------------------------------------------------------


def test_curves_are_read_between_their_points_and_smoothed_evenly() -> None:
    line = [(float(x), 2.0 * x) for x in range(60)]
    assert value_at(line, 10.5) == 21.0 and value_at(line, 0) == 0.0 and value_at(line, 59) == 118.0
    assert value_at(line, -1) is None and value_at(line, 60) is None and value_at([], 1) is None
    assert [y for _, y in smooth(line, "loss")] == pytest.approx(
        [y for _, y in line]
    )  # a slope stays where it is, also at the ends
    saw = [(float(x), float(x % 2)) for x in range(60)]
    middle = [y for _, y in smooth(saw, "loss")[5:-5]]
    assert 0.3 < min(middle) and max(middle) < 0.7 and smooth(saw, "lr") == saw
    assert len(thinned(line, 7)) == 7 and thinned(line, 7)[0] == line[0] and thinned(line, 7)[-1] == line[-1]


def test_values_have_titles_and_an_order() -> None:
    assert in_order({"zeta", "lr", "val_loss", "loss", "step", "images"}) == ["loss", "val_loss", "lr", "zeta"]
    assert logged("val_psnr").title == "validation: PSNR of reconstructions, dB" and logged("val_psnr").band == 0.05
    assert logged("own_value").title == "own value" and logged("own_value").band is None
    assert all(entry.title[0] != " " for entry in LOGGED.values())
    assert is_training(SHIPPED) and not is_training("nowhere") and find_training(SHIPPED).name == SHIPPED
