"""The page of a report in a real browser: opened from the disk, without a network, on a wide and a narrow screen, by day and night.

Needs a browser: see tests/system/browser.py.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mgen.reports.write import write_page, write_report, write_trainings
from mgen.zoo.trainings import find_training
from tests.system.browser import open_browser, requests
from tests.system.test_report import ACCURACY, example_result, random_images, written

CLASSES = 40
# The least contrast of a page's text with what is behind it, and where (WCAG 2.2, relative luminance).
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const known = new Map();
const rgb = (color) => {
  if (known.has(color)) return known.get(color);
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  known.set(color, [...canvas.getImageData(0, 0, 1, 1).data]);
  return known.get(color);
};
const light = (color) => {
  const [r, g, b] = color.slice(0, 3).map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const color = rgb(getComputedStyle(e).backgroundColor);
    if (color[3] === 255) return color;
  }
  return [255, 255, 255, 255];
};
let least = [99, ""];
for (const element of document.querySelectorAll("main *")) {
  if (![...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || element.closest("title, style")) continue;
  const style = getComputedStyle(element);
  const [a, b] = [light(rgb(element.closest("svg") ? style.fill : style.color)), light(behind(element))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < least[0]) least = [contrast, element.outerHTML.slice(0, 200)];
}
return least;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    session = open_browser(tmp_path_factory.mktemp("profile"))
    yield session
    session.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    many = example_result(classes=CLASSES)
    many["by_class"][ACCURACY].pop("7")  # no accuracy of one class: it sorts last
    many["images"]["sampler"]["a.long.key.without.an.end." * 4] = "x" * 300
    one = write_report(folder / "one", many, random_images(60), list(range(30)) * 2)[-1]
    paths = [
        written(folder / f"{order}-{steps}", example_result(steps=steps, order=order, distance=20.0 / steps + 9))
        for order in ("random", "halton")
        for steps in (4, 8, 16)
    ]
    runs, against = (
        [find_training(name) for name in ("fmnist-vqgan", "fmnist-kl")],
        find_training("fmnist-vqgan-decoder"),
    )
    trainings = write_trainings(runs, folder / "trainings.html", against=(against, "fmnist-vqgan-decoder"))[0]
    return {"one": one, "several": write_page(paths, folder / "several.html")[0], "trainings": trainings}


Show = Callable[..., None]


@pytest.fixture
def show(browser: Any, pages: dict[str, Path]) -> Iterator[Show]:
    """Opens a page, at a width, in a color scheme."""

    def opened(name: str, *, width: int = 1200, scheme: str = "light", media: str = "") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        browser.get(pages[name].as_uri())

    yield opened
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def column(browser: Any, table: str, index: int) -> list[str]:
    """The visible cells of a column."""
    rows = "[...document.querySelectorAll(arguments[0] + ' tbody tr')].filter((row) => !row.hidden)"
    script = f"return {rows}.map((row) => row.cells[arguments[1]].textContent)"
    return browser.execute_script(script, table, index)


@pytest.mark.parametrize(("name", "least"), [("one", 8), ("several", 8), ("trainings", 0)])
def test_a_page_is_whole_and_fetches_nothing(name: str, least: int, browser: Any, show: Show) -> None:
    browser.get_log("browser"), browser.get_log("performance")
    show(name)
    images = browser.execute_script("return [...document.images].map((i) => [i.complete, i.naturalWidth, i.alt])")
    assert len(images) >= least and all(complete and width > 0 and alt for complete, width, alt in images)
    assert browser.get_log("browser") == []
    sent = requests(browser)
    assert any(url.startswith("file:") for url in sent)
    assert not [url for url in sent if not url.startswith(("file:", "data:"))]
    entries = browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert not [url for url in entries if not url.startswith("data:")]


def test_a_click_sorts_numbers_both_ways(browser: Any, show: Show) -> None:
    show("one")
    table, accuracy = "#classes-1", 3
    heads = browser.find_elements("css selector", f"{table} thead th")
    given = column(browser, table, accuracy)
    assert len(given) == CLASSES and given[7] == "–"
    heads[accuracy].find_element("tag name", "button").click()
    up = column(browser, table, accuracy)
    numbers = [float(text) for text in up[:-1]]
    assert numbers == sorted(numbers) and up[-1] == "–" and sorted(up) == sorted(given) and up != given
    assert [head.get_attribute("aria-sort") for head in heads] == ["none", "none", "none", "ascending"]
    heads[accuracy].find_element("tag name", "button").send_keys("\ue007")  # the Enter key
    down = column(browser, table, accuracy)
    assert [float(text) for text in down[:-1]] == numbers[::-1] and down[-1] == "–"
    assert heads[accuracy].get_attribute("aria-sort") == "descending"
    heads[0].find_element("tag name", "button").click()
    assert column(browser, table, 0) == [f"name {c}" for c in range(CLASSES)]  # not name 1, name 10, …


def test_a_comparison_sorts_by_its_values(browser: Any, show: Show) -> None:
    show("several")
    heads = browser.find_elements("css selector", "table.compare thead th")
    distance = [head.text.startswith("Fréchet") for head in heads].index(True)
    heads[distance].find_element("tag name", "button").click()
    assert column(browser, "table.compare", distance)[0] == "10.25 ± 0.21"
    assert [text.split()[0] for text in column(browser, "table.compare", 0)] == ["3", "6", "2", "5", "1", "4"]


def test_the_filter_leaves_the_classes_asked_for(browser: Any, show: Show) -> None:
    show("one")
    field = browser.find_element("css selector", ".filter input")
    field.send_keys("NAME 3")
    assert column(browser, "#classes-1", 1) == ["3", *map(str, range(30, 40))]
    assert browser.find_element("css selector", ".filter output").text == f"11 of {CLASSES} classes"
    field.clear()
    field.send_keys("nothing")
    assert column(browser, "#classes-1", 1) == []
    show("several")
    assert not browser.find_elements("css selector", ".filter")  # three classes need none


@pytest.mark.parametrize("name", ["one", "several", "trainings"])
def test_a_narrow_screen_needs_no_sideways_scrolling(name: str, browser: Any, show: Show) -> None:
    show(name, width=400)
    browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [400, 400]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "several", "trainings"])
def test_text_stands_out_by_day_and_night(name: str, scheme: str, browser: Any, show: Show) -> None:
    show(name, scheme=scheme)
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    contrast, where = browser.execute_script(CONTRAST)
    assert contrast >= 4.5, where


def test_without_scripts_everything_is_there_and_nothing_is_dead(browser: Any, show: Show) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    show("one")
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    told = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]
    text = {name for role, name in told if role == "StaticText"}
    for words in (
        "11.90 ± 0.21",
        "name 39",
        "0.370",
        "guidance.end",
        "precision: ",
        "Nearest training images: a check for copies",
    ):
        assert words in text, words
    assert not [role for role, _ in told if role in ("button", "searchbox")]  # what only a script could answer
    assert (
        ("heading", "fmnist-maskgit") in told and ("columnheader", "class") in told and ("rowheader", "name 39") in told
    )


def test_the_command_can_be_copied(browser: Any, show: Show) -> None:
    show("one")
    button = browser.find_element("css selector", ".command button")
    assert button.accessible_name == "Copy the command"
    button.click()
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 5, 0.05).until(lambda _: button.text in ("Copied", "Selected"))


def test_points_of_curves_tell_their_values(browser: Any, show: Show) -> None:
    pytest.importorskip("matplotlib")
    show("several")
    titles = browser.execute_script(
        "return [...document.querySelectorAll('.curves svg .point title')].map((t) => t.textContent)"
    )
    assert "steps 16, order halton: 10.25 ± 0.21 (run 6)" in titles and len(titles) == 3 * 6
    box = browser.find_element("css selector", ".curves svg").rect
    assert box["width"] > 300 and box["height"] > 150


def test_print_is_dark_on_white_and_leaves_nothing_folded(browser: Any, show: Show) -> None:
    show("several", scheme="dark", media="print")
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not browser.find_element("css selector", ".copy").is_displayed()
    assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") == 18
    browser.execute_cdp_cmd("Page.printToPDF", {"pageRanges": "1"})
    assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") == 0


def test_a_page_of_trainings_draws_every_value_and_says_what_is_unusual(browser: Any, show: Show) -> None:
    pytest.importorskip("matplotlib")
    show("trainings")
    titles = browser.execute_script("return [...document.querySelectorAll('.curves h4')].map((h) => h.textContent)")
    assert titles[:3] == [
        "Training loss, over images seen",
        "Training loss, over step",
        "Validation loss, over images seen",
    ]
    boxes = [plot.rect for plot in browser.find_elements("css selector", ".curves svg[role=img]")]
    assert len(boxes) == len(titles) and all(box["width"] > 300 and box["height"] > 150 for box in boxes)
    heads = [h.text for h in browser.find_elements("css selector", "section > h2")]
    assert heads == ["fmnist-vqgan", "fmnist-kl"]
    bold = [item.text for item in browser.find_elements("css selector", "section li strong")]
    assert any(text.startswith("PSNR") and "outside the usual range" in text for text in bold)
    points = browser.execute_script(
        "return [...document.querySelectorAll('.curves svg .point title')].map((t) => t.textContent)"
    )
    assert any(text.startswith("fmnist-kl, images seen 96,000: ") for text in points)
