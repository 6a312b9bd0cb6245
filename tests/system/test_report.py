"""Reports say what the results say, escape everything, and never put numbers side by side that cannot be compared."""

import base64
import copy
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mgen.cli import main
from mgen.reports.compare import Group, difference, differing
from mgen.reports.curves import find_curves, plot
from mgen.reports.data import column_numbers, number, plus_minus
from mgen.reports.read import ReportRun, read_result
from mgen.reports.write import summary, write_page, write_report
from mgen.utils.errors import MgenError
from mgen.utils.files import write_json

DISTANCE, SCORE, ACCURACY = (
    "Fréchet distance (fmnist-cnn)",
    "classifier score (fmnist-cnn)",
    "class accuracy (fmnist-classifier)",
)
PAYLOAD = "<script>alert(1)</script>|`x`"


def random_images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def data_uri(image: torch.Tensor) -> str:
    stream = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def example_result(*, classes: int = 3, distance: float = 11.9, **sampler: Any) -> dict[str, Any]:
    """A result as mgen eval writes it."""
    ids = [str(c) for c in range(classes)]
    shown = [data_uri(image) for image in random_images(6)]
    neighbors = [{"image": uri, "distance": 3.0 + i, "label": i % classes} for i, uri in enumerate(shown[2:])]
    near = [{"image": shown[2], "distance": 0.5, "label": 1}]
    return {
        "format": 2,
        "title": "fmnist-maskgit",
        "command": "mgen eval fmnist-maskgit --num-images 500",
        "created": "2026-11-22T20:00:00+00:00",
        "metrics": {DISTANCE: distance, SCORE: 4.3, f"{SCORE}, deviation over 10 splits": 0.05, ACCURACY: 0.914},
        "deviations": {DISTANCE: 0.21, ACCURACY: 0.0123},
        "better": {DISTANCE: "lower", SCORE: "higher", ACCURACY: "higher"},
        "missing": {"precision": "fmnist train has no features of single images"},
        "by_class": {"images": dict.fromkeys(ids, 50), ACCURACY: {c: (int(c) * 37 % 100) / 100 for c in ids}},
        "class_names": [f"name {c}" for c in ids],
        "count": 500,
        "images": {
            "kind": "model",
            "model": "fmnist-maskgit",
            "weights_sha256": "a" * 64,
            "seed": 0,
            "sampler": {
                "steps": 8,
                "order": "random",
                "guidance": {"start": 1.0, "end": 3.0},
                "reuse": None,
                **sampler,
            },
            "quantization": "round",
        },
        "protocol": {"name": "fmnist-cnn", "id": "3f2a91c0", "extractor": "fmnist-cnn", "image_size": None},
        "extractor": {"name": "fmnist-cnn", "sha256": "b" * 64, "resize": "own"},
        "reference": {"name": "fmnist train", "count": 60000, "sha256": "c" * 64},
        "classifier": {"name": "fmnist-classifier", "sha256": "d" * 64},
        "bootstrap": {"replicates": 200, "seed": 0},
        "cost": {"parameters": 4345856, "seconds_per_image": 0.03, "hardware": "some CPU, 1 thread"},
        "nearest": {
            "data": "fmnist train",
            "count": 60000,
            "rows": [
                {"image": shown[0], "label": 0, "distance": 3.0, "neighbors": neighbors},
                {"image": shown[1], "label": 1, "distance": 0.5, "neighbors": near},
            ],
            "typical": 4.0,
            "note": "",
        },
        "note": "measured in the features of fmnist-cnn: not an FID",
        "versions": {"torch": "2.6.0"},
    }


def written(folder: Path, result: dict[str, Any]) -> str:
    """The result with its report in `folder`; the folder's name, as a command takes it."""
    write_report(folder, result, random_images(6), [i % 3 for i in range(6)])
    return str(folder)


def runs(*results: dict[str, Any]) -> Group:
    return Group(runs=[ReportRun(number=i, result=result) for i, result in enumerate(results, 1)])


def test_one_result_says_all_it_holds(tmp_path: Path) -> None:
    files = write_report(tmp_path / "out", example_result(), random_images(6), [0, 1, 2, 0, 1, -1])
    assert [file.name for file in files] == ["grid.png", "result.json", "report.md", "report.html"]
    assert sorted(tmp_path.joinpath("out").iterdir()) == sorted(files)
    assert json.loads(files[1].read_text()) == example_result()
    text = files[2].read_text()
    for words in (
        f"| {DISTANCE} | 11.90 ± 0.21 | lower |",
        f"| {SCORE} | 4.3 | higher |",
        f"| {ACCURACY} | 0.914 ± 0.012 | higher |",
        "| name 1 | 1 | 50 | 0.370 |",
        "| Sampler: guidance.end | 3 |",
        "| Reference: sha256 | cccc",
        "| seconds per image | 0.03 |",
        "| parameters | 4,345,856 |",
        "not an FID.",
        "below 50,000",
        "- precision: fmnist train has no",
        "typically 4 apart",
        "| name 1 | 0.5, near |",
        "200 replicates, seed 0",
        "    mgen eval fmnist-maskgit --num-images 500",
        "![grid of samples](<grid.png>)",
    ):
        assert words in text, words
    page = files[3].read_text()
    for words in (
        "11.90 ± 0.21",
        "guidance.end",
        "not an FID",
        "no features of single",
        "0.5, near",
        "c" * 64,
        "0.370",
    ):
        assert words in page, words
    assert page.count("<img") == 1 + 2 + 5 and "http" not in page.replace("http-equiv", "")


def test_numbers_are_written_for_readers() -> None:
    assert [plus_minus(11.9, 0.21), plus_minus(143.2, 12.3), plus_minus(0.5, None), plus_minus(0.5, 0.0)] == [
        "11.90 ± 0.21",
        "143 ± 12",
        "0.5",
        "0.5",
    ]
    assert [number(x) for x in (None, 0, 0.0, 5000, 12345.67, 0.00012, True, float("nan"))] == [
        *("–", "0", "0", "5,000", "12,345.7", "0.00012", "yes", "nan")
    ]
    assert column_numbers([0.9, 0.25, None]) == ["0.900", "0.250", "–"] and column_numbers([11.9, 3.0]) == [
        "11.90",
        "3.00",
    ]


def test_words_of_results_are_never_markup(tmp_path: Path) -> None:
    result = example_result()
    result |= {"title": PAYLOAD, "command": f'mgen eval "{PAYLOAD}"', "note": PAYLOAD, "class_names": [PAYLOAD] * 3}
    result["missing"], result["versions"] = {PAYLOAD: PAYLOAD}, {PAYLOAD: PAYLOAD}
    result["images"]["model"], result["images"]["sampler"] = PAYLOAD, {PAYLOAD: 1, "odd\ud800\x00": "\x1b"}
    result["metrics"][PAYLOAD], result["by_class"][PAYLOAD] = 1.0, {PAYLOAD: 1.0}
    other = copy.deepcopy(result)
    other["images"]["sampler"][PAYLOAD] = 2
    paths = [written(tmp_path / "a", result), written(tmp_path / "b", other)]
    files = write_page(paths, tmp_path / "c.html", title=PAYLOAD)
    for file in (tmp_path / "a" / "report.html", files[0]):
        text = file.read_text()
        assert text.count("<script>") == 1 and "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    for file in (tmp_path / "a" / "report.md", files[1]):
        text = "\n".join(line for line in file.read_text().splitlines() if not line.startswith("    "))
        assert "<script>" not in text and r"\|\`x\`" in text


def test_images_of_a_result_come_from_nowhere_else(tmp_path: Path) -> None:
    for image in (
        "https://example.org/x.png",
        "data:image/svg+xml;base64,AAAA",
        'data:image/png;base64,"',
        "x.png",
        None,
    ):
        result = example_result()
        result["nearest"]["rows"][1]["neighbors"][0]["image"] = image
        with pytest.raises(MgenError, match="nearest"):
            write_report(tmp_path / "out", result, random_images(2), [0, 1])
    assert not list(tmp_path.iterdir())


def test_several_results_stand_in_one_table_with_what_differs(tmp_path: Path) -> None:
    steps = {4: 14.0, 8: 11.9, 16: 12.5}
    paths = [written(tmp_path / str(n), example_result(distance=fd, steps=n)) for n, fd in steps.items()]
    files = write_page(paths, tmp_path / "page" / "all.html", title="Steps")
    assert [file.name for file in files] == ["all.html", "all.md", "all.json"]
    data = json.loads(files[2].read_text())
    table = {column["column"]: column for column in data["groups"][0]["table"]}
    assert list(table) == ["steps", DISTANCE, SCORE, ACCURACY, "seconds per image"]
    assert table["steps"]["values"] == [4, 8, 16] and table[DISTANCE]["values"] == [14.0, 11.9, 12.5]
    assert table[DISTANCE]["text"][2] == "12.50 ± 0.21"
    curve = data["groups"][0]["curves"][0]
    assert (curve["metric"], curve["setting"]) == (DISTANCE, "steps")
    assert [(p["x"], p["y"], p["run"]) for p in curve["lines"][0]["points"]] == [
        (4, 14.0, 1),
        (8, 11.9, 2),
        (16, 12.5, 3),
    ]
    assert [result["run"] for result in data["results"]] == [1, 2, 3]
    text = files[1].read_text()
    assert "| 3 fmnist-maskgit | 16 | 12.50 ± 0.21 | 4.3 | 0.914 ± 0.012 | 0.0300 |" in text
    assert f"- {DISTANCE} **11.90 ± 0.21** (lower is better), run 2 (steps 8)" in text and "(<../4/grid.png>)" in text
    page = files[0].read_text()
    assert page.count("<svg") == 3 and "steps 16: 12.50 ± 0.21 (run 3)" in page and 'id="run-3"' in page
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    again = write_page(paths, tmp_path / "page" / "all.html", title="Steps")
    assert [file.read_text() for file in again] == [page, text, json.dumps(data, indent=2, ensure_ascii=False) + "\n"]


def test_results_measured_otherwise_are_an_error_or_kept_apart(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "protocol": {"name": "custom", "id": "0000"},
        "reference": None,
        "count": 1000,
        "extractor": {"name": "fmnist-cnn", "sha256": "e"},
        "classifier": {"name": "fmnist-classifier", "sha256": "e"},
    }
    words = {
        "protocol": "3f2a91c0",
        "reference": "none",
        "count": "500 and of 1000",
        "extractor": "extractors",
        "classifier": "classifiers",
    }
    first = written(tmp_path / "first", {**example_result(), "title": "the first"})
    for key, value in changes.items():
        other = {**example_result(), key: value, "title": "the other"}
        path = written(tmp_path / key, other)
        with pytest.raises(MgenError, match=f"'the first'.*'the other'.*{words[key]}.*--allow-mixed"):
            write_page([first, path], tmp_path / "no.html")
        assert not (tmp_path / "no.html").exists()
        files = write_page([first, path], tmp_path / f"{key}.html", allow_mixed=True)
        groups = json.loads(files[2].read_text())["groups"]
        assert [group["runs"] for group in groups] == [[1], [2]] and not any(group["curves"] for group in groups)
        assert "not between tables" in files[0].read_text()
    other = {**example_result(), "classifier": {"name": "another", "sha256": "e"}}
    assert difference(example_result(), other) is None  # the metrics have other names
    numbers = {**example_result(), "metrics": {SCORE: 4.0}, "count": 1000}
    assert difference(example_result(), numbers) is None  # a score is no distance


def test_curves_are_over_what_differs() -> None:
    def of(*results: dict[str, Any]) -> tuple[list[tuple[str, list[tuple[str, list[float]]]]], str]:
        curves, reason = find_curves(runs(*results))
        return [(c.setting, [(name, [p.x for p in points]) for name, points in c.lines]) for c in curves[:1]], reason

    two = [example_result(steps=n, order=o) for n in (16, 4, 8) for o in ("random", "halton")]
    assert of(*two) == ([("steps", [("order random", [4, 8, 16]), ("order halton", [4, 8, 16])])], "")
    guidance = [example_result(guidance={"start": 1.0 + g, "end": 3.0 + g}) for g in (0.0, 1.0)]
    assert of(*guidance)[0] == [("guidance.start (with guidance.end)", [("", [1.0, 2.0])])]
    trained = [example_result() for _ in range(3)]
    for result, step in zip(trained, (200, 100, 300)):
        result["images"] |= {"model": f"runs/a/checkpoint-{step:07d}", "weights_sha256": str(step)}
    assert of(*trained)[0] == [("training step", [("", [100, 200, 300])])]
    assert "order" in of(example_result(), example_result(order="halton"))[1]
    assert "no setting" in of(example_result(), example_result())[1]
    three = [example_result(steps=4 + i, order=str(i), temperature=i) for i in range(2)]
    assert of(*three) == ([], "No curves: more than two settings differ (steps, order, temperature).")
    seeds = [example_result(), example_result()]
    seeds[1]["images"]["seed"] = 1
    assert of(*seeds)[0] == [] and list(differing(seeds)) == ["seed"]


def test_a_drawing_is_text_in_the_colors_of_the_page_and_the_same_each_time() -> None:
    pytest.importorskip("matplotlib")
    results = [example_result(steps=n, order=o) for n in (4, 8) for o in ("$a_", "_<b>")]
    curve = find_curves(runs(*results))[0][0]
    svg = plot(curve, "curve-7")
    assert svg and svg == plot(curve, "curve-7") and svg != plot(curve, "curve-8")
    assert svg.startswith("<svg") and "http" not in svg and "<metadata" not in svg and "var(--series-2)" in svg
    assert "#000000" not in svg and "#0" not in svg.replace("#curve-7", "") and "order $a_</text>" in svg
    assert svg.count("<title>") == 4 and "steps 8, order _&lt;b&gt;: 11.90 ± 0.21 (run 4)" in svg


def test_without_matplotlib_the_page_has_the_table_and_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    paths = [written(tmp_path / str(n), example_result(steps=n, distance=n + 0.5)) for n in (4, 8)]
    page = write_page(paths, tmp_path / "all.html")[0].read_text()
    assert "pip install &#x27;mgen[plots]&#x27;" in page and "<svg" not in page and "8.50 ± 0.21" in page


def test_what_is_no_result_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good = example_result()
    cases: dict[str, tuple[str | None, str]] = {
        "empty": (None, "holds no result.json"),
        "broken": ('{"format": 2,', "not valid JSON"),
        "list": ("[]", "not a result"),
        "old": (
            json.dumps({key: value for key, value in good.items() if key != "format"}),
            "older version.*mgen eval again",
        ),
        "new": (json.dumps({**good, "format": 3}), "update mgen"),
        "cut": (json.dumps({k: v for k, v in good.items() if k not in ("protocol", "cost")}), "missing key 'protocol'"),
        "kind": (json.dumps({**good, "by_class": []}), "'by_class' takes a mapping"),
        "count": (json.dumps({**good, "count": True}), "'count' takes a whole number, got True"),
        "text": (json.dumps({**good, "metrics": {"x": "low"}}), "'metrics.x' takes .*number.*, got 'low'"),
        "column": (json.dumps({**good, "by_class": {"x": 3}}), "'by_class.x' takes a mapping, got 3"),
        "typical": (json.dumps({**good, "nearest": {"rows": [], "typical": "x"}}), "nearest"),
    }
    for name, (text, words) in cases.items():
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "result.json").write_text(text)
        with pytest.raises(MgenError, match=words):
            read_result(tmp_path / name)
        assert main(["report", str(tmp_path / name), "--out", str(tmp_path / "out" / "report.html")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(MgenError, match="no such file"):
        read_result(tmp_path / "nowhere")


def test_command_writes_three_files_and_harms_no_result(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = written(tmp_path / "a", example_result())
    before = (tmp_path / "a" / "result.json").read_bytes()
    assert main(["report", path, "--out", str(tmp_path / "page.html"), "--title", "A <title>"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f"page.{kind}") for kind in ("html", "md", "json")]
    assert "<h1>A &lt;title&gt;</h1>" in (tmp_path / "page.html").read_text()
    wrong = {
        ("report", path, path): "given twice",
        ("report", path, str(tmp_path / "a" / "result.json")): "given twice",
        ("report", path, "--out", str(tmp_path / "a" / "result.html")): "overwritten",
        ("report", path, "--out", str(tmp_path / "page.txt")): "report.html",
        ("report", path, "--out", str(tmp_path / "page.html" / "x.html")): "is a file",
    }
    for arguments, words in wrong.items():
        assert main(list(arguments)) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "a" / "result.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "page.html", "page.json", "page.md"]


def test_a_failure_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mgen.reports.write as report

    monkeypatch.setattr(report, "page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path / "out", example_result(), random_images(2), [0, 1])
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    with pytest.raises(MgenError, match="cannot write"):
        write_report(tmp_path / "file" / "out", example_result(), random_images(2), [0, 1])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_page_without_grid_or_anything_optional(tmp_path: Path) -> None:
    bare = example_result() | {key: {} for key in ("deviations", "better", "missing", "by_class", "cost")}
    bare |= {key: None for key in ("reference", "classifier", "bootstrap", "nearest")} | {"note": "", "class_names": []}
    path = written(tmp_path / "a", bare)
    (tmp_path / "a" / "grid.png").unlink()
    html, md, _ = write_page([path], tmp_path / "page.html")
    assert "no grid.png" in html.read_text() and "<img" not in html.read_text() and "![" not in md.read_text()
    assert "No deviations were computed." in html.read_text()


def test_a_large_grid_goes_in_as_jpeg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mgen.reports.write.INLINE", 100)
    files = write_report(tmp_path, example_result(), random_images(6), [0, 1, 2, 0, 1, 2])
    assert "data:image/jpeg;base64," in files[-1].read_text() and Image.open(files[0]).format == "PNG"


def test_summary_keeps_the_order_of_the_runs() -> None:
    a, b, c = (ReportRun(number=i, result=example_result(steps=i)) for i in (1, 2, 3))
    told = summary("t", [Group(runs=[a, c]), Group(runs=[b])])
    assert [group["runs"] for group in told["groups"]] == [[1, 3], [2]]
    assert [result["run"] for result in told["results"]] == [1, 2, 3]


def test_the_example_in_the_documentation_is_of_this_version() -> None:
    folder = Path(__file__).parents[2] / "docs" / "report" / "fmnist-maskgit"
    result, _ = read_result(folder / "result.json")
    assert result["title"] == "fmnist-maskgit" and result["count"] == 2000
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert number(result["metrics"][DISTANCE]) in page and result["command"] in page


@pytest.mark.parametrize(
    ("published", "words"),
    [
        ("x", "'published' takes a mapping"),
        ({"rows": [1]}, "'published.rows.0' takes a mapping"),
        ({"rows": "x"}, "'published.rows' takes a list"),
    ],
)
def test_damaged_published_metrics_are_explained(published: Any, words: str, tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {**example_result(), "published": published})
    with pytest.raises(MgenError, match=words):
        read_result(tmp_path / "result.json")


def test_published_metrics_stand_beside_the_measured_ones(tmp_path: Path) -> None:
    row = {
        "metric": "FID",
        "published": 1.78,
        "tolerance": 0.1,
        "measured": 1.8123,
        "verdict": "off by +0.03, within <it>",
    }
    published = {"recipe": "mar-l", "rows": [row], "note": "measured & compared"}
    made = {**example_result(), "published": published}
    images = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    write_report(tmp_path, made, images, [0])
    text, html = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert "| FID | 1.78 ± 0.1 | 1.812 |" in text and "measured &amp; compared" in text
    assert "1.78 ± 0.1" in html and "within &lt;it&gt;" in html and "measured &amp; compared" in html
