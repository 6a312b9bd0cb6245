"""mgen report: results that were edited or damaged, names that would be markup, files that are not its own."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mgen.cli import main
from mgen.reports.data import class_ids, class_name, class_number
from mgen.utils.markdown import words
from tests.system.boundaries.harness import Refused, fifo, row
from tests.system.boundaries.test_eval import bomb
from tests.system.test_report import PAYLOAD, example_result, random_images, written

GOOD = example_result()
DEEP = "[" * 10**5 + "]" * 10**5


def changed(path: str, value: object) -> dict[str, Any]:
    """The result with another value at a dotted path."""
    result = copy.deepcopy(GOOD)
    *above, last = path.split("/")
    place: Any = result
    for key in above:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = value
    return result


def nested(levels: int) -> object:
    found: object = 1
    for _ in range(levels):
        found = [found]
    return found


WRONG: list[tuple[str, object, str]] = [
    *(
        (f"{key} is {value!r}", value, key)
        for key in (
            "metrics",
            "deviations",
            "better",
            "missing",
            "by_class",
            "images",
            "protocol",
            "extractor",
            "versions",
        )
        for value in (None, 3, "x", [])
    ),
    *((f"{key} is {value!r}", value, key) for key in ("title", "command", "created") for value in (None, 3, [], {})),
    *((f"count is {value!r}", value, "count") for value in (None, "5", -1, 1.5, True, [], 10**30)),
    *((f"class_names is {value!r}", value, "class_names") for value in (None, 3, "names", {}, [None], [[]])),
    *((f"reference is {value!r}", value, "reference") for value in (3, "x", [])),
    *((f"cost is {value!r}", value, "cost") for value in (3, "x", [])),
    *((f"bootstrap is {value!r}", value, "bootstrap") for value in (3, "x", [])),
    *(
        (f"nearest is {value!r}", value, "nearest")
        for value in (3, "x", [], {"rows": 3}, {"rows": [3]}, {"rows": [{}]})
    ),
    *((f"published is {value!r}", value, "published") for value in (3, "x", [], {"rows": 3}, {"rows": [3]}, {})),
    *((f"note is {value!r}", value, "note") for value in (3, [], {})),
    *((f"format is {value!r}", value, "mgen") for value in (None, "2", 3, 2.5, [], 10**30)),
]


@pytest.mark.parametrize(("key", "value", "said"), [pytest.param(n.split(" is ")[0], v, w, id=n) for n, v, w in WRONG])
def test_types(refused: Refused, here: Path, key: str, value: object, said: str) -> None:
    (here / "r.json").write_text(json.dumps({**GOOD, key: value}))
    refused(["report", "r.json"], "r.json", said)


NEAR = "nearest/rows/0"
VALUES: list[tuple[str, str, object, str]] = [
    ("metric a text", "metrics/x", "low", "metrics.x"),
    ("metric a list", "metrics/x", [1], "metrics.x"),
    ("metric 10**400", "metrics/x", 10**400, "64 bits"),
    ("deviation negative", "deviations/x", -1.0, "deviations.x"),
    ("better unknown", "better/x", "sideways", "lower"),
    ("column a number", "by_class/x", 3, "by_class.x"),
    ("column of texts", "by_class/x", {"0": "a"}, "by_class.x.0"),
    ("sampler a deep list", "images/sampler", nested(50), "images.sampler"),
    ("sampler a text", "images/sampler", "x", "images.sampler"),
    ("neighbor's distance a text", f"{NEAR}/distance", "near", "distance"),
    ("neighbor's distance negative", f"{NEAR}/distance", -1.0, "distance"),
    ("neighbor's label 10**15", f"{NEAR}/label", 10**15, "label"),
    ("neighbor's label a text", f"{NEAR}/label", "a", "label"),
    ("neighbor's image elsewhere", f"{NEAR}/image", "https://example.org/x.png", "nearest"),
    ("neighbor's image a script", f"{NEAR}/image", "data:text/html;base64,AAAA", "nearest"),
    ("neighbor's image no image", f"{NEAR}/image", "data:image/png;base64,AAAA", "nearest"),
    ("neighbor's image null", f"{NEAR}/image", None, "image"),
    ("neighbors a number", f"{NEAR}/neighbors", 3, "neighbors"),
    ("typical a text", "nearest/typical", "x", "typical"),
    ("nearest count negative", "nearest/count", -1, "count"),
]


@pytest.mark.parametrize(("path", "value", "said"), [pytest.param(p, v, w, id=n) for n, p, v, w in VALUES])
def test_values(refused: Refused, here: Path, path: str, value: object, said: str) -> None:
    (here / "r.json").write_text(json.dumps(changed(path, value)))
    refused(["report", "r.json"], "r.json", said)


@pytest.mark.parametrize("key", [key for key in GOOD if key not in ("format", "metrics")])
def test_missing_keys(refused: Refused, here: Path, key: str) -> None:
    (here / "r.json").write_text(json.dumps({k: v for k, v in GOOD.items() if k != key}))
    refused(["report", "r.json"], f"missing key '{key}'")


TEXTS: list[tuple[str, str]] = [
    *(("null", "null"), ("a number", "3"), ("a text", '"x"'), ("a list", "[]"), ("a mapping", "{}"), ("nothing", "")),
    *(("deep", DEEP), ("cut", json.dumps(GOOD)[:500]), ("NaN", json.dumps({**GOOD, "count": float("nan")}))),
    ("deep in images", json.dumps(GOOD).replace('"kind": "model"', f'"kind": {DEEP}')),
    ("infinite metric", json.dumps(GOOD).replace("4.3", "1e999")),
    ("a bare infinity", json.dumps(GOOD).replace("4.3", "Infinity")),
]


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in TEXTS])
def test_json(refused: Refused, here: Path, text: str) -> None:
    (here / "r.json").write_text(text)
    refused(["report", "r.json"], "r.json")


FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("nothing there", lambda path: None, "no such file"),
    ("a pipe", fifo, "no regular file"),
    ("a device", lambda path: path.symlink_to("/dev/zero"), "no regular file"),
    ("a broken link", lambda path: path.symlink_to("gone"), "broken link"),
    ("an empty folder", lambda path: path.mkdir(), "holds no result.json"),
    ("bytes", lambda path: path.write_bytes(b"\xff\xfe\x00"), "UTF-8"),
]


@pytest.mark.parametrize(("make", "words"), [row(n, m, w) for n, m, w in FILES])
def test_files(refused: Refused, here: Path, make: Callable[[Path], object], words: tuple[str]) -> None:
    make(here / "r.json")
    refused(["report", "r.json"], "r.json", *words)


OPTIONS = [
    row("out empty", ["--out="], "empty"),
    row("out too long", ["--out", "a" * 300 + ".html"], "too long"),
    row("out another suffix", ["--out", "report.txt"], "report.html"),
    row("out a folder", ["--out", "r.html"], "report.html"),
    row("out below a file", ["--out", "r/result.json/x.html"], "a file"),
    row("out over the result", ["--out", "r/result.html"], "would be overwritten"),
    row("title empty", ["--title="], "empty"),
    row("twice", ["r"], "given twice"),
    row("an empty name", [""], "empty"),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_options(refused: Refused, here: Path, options: list[str], words: tuple[str]) -> None:
    written(here / "r", GOOD)
    (here / "r.html").mkdir()
    refused(["report", "r", *options], *words)


@pytest.mark.parametrize("name", ["README.md", "README.json", "README.html"])
def test_files_of_others_are_not_replaced(refused: Refused, here: Path, name: str) -> None:
    written(here / "r", GOOD)
    for text in ("mine", '{"format": 2}', "[]", DEEP):
        (here / name).write_text(text)
        refused(["report", "r", "--out", "README.html"], name, "choose another --out")
    (here / name).unlink()
    (here / name).symlink_to("gone")
    refused(["report", "r", "--out", "README.html"], "choose another")


def test_a_report_replaces_its_own(here: Path) -> None:
    written(here / "r", GOOD)
    for _ in range(2):
        assert main(["report", "r", "--out", "README.html"]) == 0
    assert sorted(os.listdir(here)) == ["README.html", "README.json", "README.md", "r"]


GRIDS: list[tuple[str, Callable[[Path], object]]] = [
    ("text", lambda path: path.write_text("hello")),
    ("empty", lambda path: path.write_bytes(b"")),
    ("claims 60000×60000", bomb),
    ("cut", lambda path: path.write_bytes(path.read_bytes()[:60])),
    # For which Pillow would start another program.
    ("postscript", lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")),
]


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in GRIDS])
def test_grids(refused: Refused, here: Path, damage: Callable[[Path], object]) -> None:
    written(here / "r", GOOD)
    damage(here / "r" / "grid.png")
    refused(["report", "r"], "grid.png", "run mgen eval again")


def test_odd_ids_are_texts(here: Path) -> None:
    """Digits that are no class id: of 5,000 places, of other scripts, superscripts."""
    odd = ["1" * 5000, "²", "٣", "-1", "x", "3.5", "1e3"]
    result: Any = {**GOOD, "by_class": {"images": dict.fromkeys(["10", "2", *odd], 5)}}
    (here / "r.json").write_text(json.dumps(result))
    assert main(["report", "r.json"]) == 0
    assert class_ids(result)[:2] == ["2", "10"] and class_name(result, "²") == "class ²"
    assert [class_number(x) for x in odd] == [None] * len(odd) and class_name(result, "1") == "name 1"


def test_null_metrics_are_shown_as_such(here: Path) -> None:
    """NaN is written as null."""
    (here / "r.json").write_text(json.dumps(changed("metrics/x", None)))
    (here / "s.json").write_text(json.dumps({**changed("metrics/x", 3.0), "title": "other"}))
    assert main(["report", "r.json", "s.json", "--out", "both.html"]) == 0
    assert "| x | – |" in (here / "both.md").read_text()


def test_names_are_no_markup(here: Path) -> None:
    """Pipes, backticks, HTML and line breaks in names of metrics, classes, settings and folders."""
    bad = PAYLOAD + "\n# heading\n\n[link](javascript:alert)"
    result: Any = copy.deepcopy(GOOD)
    result |= {"title": bad, "command": bad, "note": bad, "class_names": [bad] * 3}
    result["metrics"][bad] = result["deviations"][bad] = 1.0
    result["better"][bad] = "lower"
    result["images"] = {"kind": "model", "model": bad, bad: bad, "sampler": {bad: bad}}
    result["bootstrap"] = {"replicates": bad, "seed": bad}
    result["protocol"]["name"] = result["reference"]["name"] = result["missing"][bad] = bad
    result["nearest"] |= {"data": bad, "note": bad}
    result["nearest"]["rows"][0]["neighbors"][0]["name"] = bad
    result["cost"] = {bad: bad}
    folder = here / "a|b`c <i>"
    other = {**copy.deepcopy(result), "count": 400}
    files = [written(folder, result), written(here / "plain", other)]
    assert main(["report", *files, "--out", "all.html", "--allow-mixed", "--title", bad]) == 0
    for file in (here / "all.html", folder / "report.html"):
        text = file.read_text()
        assert "<script>alert" not in text and "<i>" not in text and text.count("<script>") == 1
    for file in (here / "all.md", folder / "report.md"):
        lines = [line for line in file.read_text().splitlines() if not line.startswith("    ")]
        assert not any("<script>" in line or line.startswith("# heading") for line in lines)
        assert not any("[link](" in line for line in lines)
        tables = [line.replace(r"\|", "") for line in lines if line.startswith("|")]
        for above, line in zip(tables, tables[1:]):
            if set(line) <= set("|-: "):
                assert above.count("|") == line.count("|")
        assert not any("`x`" in line for line in lines)
    assert words("a|b`<i>\n*") == r"a\|b\`&lt;i&gt; \*"


def test_a_large_grid_of_a_result_is_read(here: Path) -> None:
    written(here / "r", GOOD)
    Image.new("RGB", (3000, 2000)).save(here / "r" / "grid.png")
    assert main(["report", "r"]) == 0 and random_images(1).shape[0] == 1
