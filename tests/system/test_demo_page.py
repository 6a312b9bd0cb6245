"""mgen demo in a real browser: sample, watch, mask tokens and sample them again, compare, download; see tests/system/browser.py."""

import base64
import io
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import yaml
from PIL import Image

import mgen
from mgen.cli import main
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.samplers import ParallelSampler
from tests.helpers import tiny_net, tiny_tokenizer, tiny_tokens
from tests.system.browser import open_browser, requests

pytest.importorskip("gradio")
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60  # seconds, on a machine that does other things too
CAUSAL = "row-by-row"
BAG = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[str], Path]]:
    """The address of `mgen demo` with the embedded models and a causal one, its process and its folder."""
    folder = tmp_path_factory.mktemp("demo")
    net = tiny_net("causal", tokens=tiny_tokens(side=8, vocab_size=64))
    made = MaskedPipeline(tokenizer=tiny_tokenizer(), transformer=net, sampler=ParallelSampler.suited(net))
    made.save_pretrained(folder / CAUSAL)
    (folder / "temporary").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "TMPDIR": str(folder / "temporary"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mgen",
            "demo",
            "--model",
            "fmnist-maskgit",
            CAUSAL,
            "--device",
            "cpu",
            "--port",
            str(port),
        ],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()  # written when the page is ready
    assert line.startswith("http://127.0.0.1:"), process.stderr.read()
    yield line.split()[0], process, folder
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, server: Any) -> Iterator[Any]:
    session = open_browser(tmp_path_factory.mktemp("profile"), reaches="127.0.0.1")
    yield session
    session.quit()


class Page:
    """The page as a visitor uses it."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url = browser, url
        self.errors: list[dict[str, Any]] = []

    def open(self, width: int = 1280, scheme: str = "light") -> None:
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.collect_errors()
        self.browser.get("about:blank")
        self.browser.get_log(
            "browser"
        )  # leaving a page ends its event stream, and gradio's client logs that as an error
        self.browser.get(self.url)
        self.until(lambda: self.all("#sample"))

    def collect_errors(self) -> None:
        self.errors += [entry for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]

    def until(self, ready: Callable[[], Any]) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(
            self.browser, PATIENCE, 0.05, ignored_exceptions=[StaleElementReferenceException, IndexError]
        )
        return wait.until(lambda _: ready())

    def all(self, css: str) -> list[Any]:
        return self.browser.find_elements("css selector", css)

    def text(self, css: str) -> str:
        return self.browser.execute_script(
            "return document.querySelector(arguments[0])?.textContent ?? ''", css
        ).strip()

    def click(self, css: str) -> None:
        element = self.until(lambda: next((e for e in self.all(css) if e.is_displayed() and e.is_enabled()), None))
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def choose(self, box: str, name: str) -> None:
        """Choose an entry of a list."""
        self.click(f"{box} input")
        self.until(lambda: [e for e in self.all("ul[role=listbox] li") if e.text.strip("✓ \n") == name])[0].click()

    def write(self, box: str, text: str) -> None:
        """Write into a field of numbers."""
        field = self.all(f"{box} input[type=number]")[0]
        field.send_keys("\ue009a\ue000", text, "\ue004")  # Ctrl-A, the text, the tab key

    def tab(self, number: int) -> None:
        self.all("button[role=tab]")[number].click()

    def images(self, board: str = "#board") -> list[np.ndarray[Any, Any]]:
        """The pictures of a board, as they come from the server."""
        script = "return [...document.querySelectorAll(arguments[0] + ' .mg-tile img')].map((image) => image.src)"
        return [decoded(url) for url in self.browser.execute_script(script, board)]

    def sample(self) -> set[str]:
        """Press Sample and wait for the end; returns the lines below the images that were seen."""
        seen: set[str] = set()
        self.click("#sample")
        self.until(lambda: not self.all("#links a"))

        def ended() -> bool:
            seen.add(self.text("#caption"))
            return bool(self.all("#links a")) and self.all("#sample")[0].is_enabled()

        self.until(ended)
        seen.add(self.text("#caption"))  # the last line may have come just after the last look
        return seen


def decoded(url: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def expected(classes: list[int], **settings: Any) -> list[np.ndarray[Any, Any]]:
    pipe = mgen.load("fmnist-maskgit").optimize()
    images = pipe(classes, seed=5, progress=False, sampler=pipe.sampler.override(**settings)).images
    return [np.asarray(image) for image in images]


def same(a: list[np.ndarray[Any, Any]], b: list[np.ndarray[Any, Any]]) -> bool:
    """Equal but for the rounding of sums, which differs between processes with other numbers of threads."""
    return len(a) == len(b) and all(np.abs(x.astype(int) - y.astype(int)).max() <= 1 for x, y in zip(a, b))


@pytest.fixture(scope="module")
def page(browser: Any, server: Any) -> Page:
    """A page on which four bags were sampled in five steps from seed 5."""
    made = Page(browser, server[0])
    made.open()
    made.choose("#class", "bag")
    made.write("#count", "4")
    made.write("#seed", "5")
    made.write("#a-steps", "5")
    seen = made.sample()
    assert any("step 5 of 5: 64 of 64 tokens known" in line for line in seen)
    assert any(f"step {n} of 5" in line for line in seen for n in range(1, 5)), seen
    return made


def test_the_page_shows_the_images_of_the_pipeline_and_every_step(page: Page) -> None:
    last = page.images()
    assert same(last, expected([BAG] * 4, steps=5))
    slider = page.all("#step input[type=range]")[0]
    slider.send_keys("\ue012\ue012\ue012")  # three steps back
    page.until(lambda: "step 2 of 5" in page.text("#caption"))
    early = page.images()
    assert all((image == 127).any() for image in early[:1]) and not same(early, last)  # gray where nothing is known
    slider.send_keys("\ue014\ue014\ue014")
    page.until(lambda: "step 5 of 5" in page.text("#caption"))
    assert same(page.images(), last)
    assert "5 steps" in page.text("#facts") and "10 forward passes per image" in page.text("#facts")
    page.until(lambda: "TFLOPs per image" in page.text("#facts"))


def test_downloads_make_the_same_images_again(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = {link.get_attribute("download"): link.get_attribute("href") for link in page.all("#links a")}
    assert set(links) == {"grid.png", "images.zip", "recipe.yaml"}
    assert decoded(links["grid.png"]).shape[1] > 4 * 64
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_bytes(base64.b64decode(links["recipe.yaml"].partition(",")[2]))
    recipe = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["sampler"]["steps"] == 5 and "--classes bag --num-images 4 --seed 5" in recipe["run"]
    assert main([*shlex.split(recipe["run"])[1:], "--device", "cpu"]) == 0
    again = [np.asarray(Image.open(file)) for file in sorted(Path("samples").glob("0*.png"))]
    assert same(page.images(), again)


def test_painted_tokens_alone_are_sampled_again(page: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    before = page.images()
    page.click("#board button[data-index='1']")
    page.until(lambda: [cell for cell in page.all("#editor [data-cell]") if cell.is_displayed()])
    cells = page.all("#editor [data-cell]")
    assert len(cells) == 64
    drag = ActionChains(page.browser).move_to_element(cells[0]).click_and_hold()
    for place in (1, 2, 10):
        drag = drag.move_to_element(cells[place])
    drag.release().perform()
    ActionChains(page.browser).click(cells[63]).click(cells[2]).perform()  # a click masks, another one unmasks
    page.until(lambda: page.text("#editor .mg-count") == "4 of 64 masked")
    masked = [int(cell.get_attribute("data-cell")) for cell in page.all("#editor i.on")]
    assert masked == [0, 1, 10, 63]
    page.click("#editor [data-do=invert]")
    page.choose("#edit-class", "ankle boot")
    page.click("#resample")
    page.until(lambda: "60 tokens sampled again" in page.text("#edit-facts"))
    assert "4 of the 4 others are the same as before" in page.text("#edit-facts")
    assert same(page.images("#before"), before[1:2])
    page.until(lambda: page.all("#undo")[0].is_enabled())
    page.tab(0)
    after = page.images()
    assert same([after[0], *after[2:]], [before[0], *before[2:]]) and not same(after[1:2], before[1:2])
    assert "ankle boot" in page.all("#board .mg-tile span")[1].text
    page.tab(1)
    page.click("#undo")
    page.until(lambda: not page.all("#undo")[0].is_enabled())
    page.tab(0)
    page.until(lambda: same(page.images(), before))


def test_two_settings_are_compared_from_the_same_noise(page: Page) -> None:
    page.tab(2)
    page.click("#copy")
    page.until(lambda: page.all("#b-steps input[type=number]")[0].get_attribute("value") == "5")
    page.write("#b-steps", "8")
    page.click("#compare")
    page.until(lambda: "tokens that differ" in page.text("#table") and "…" not in page.text("#table"))
    assert same(page.images("#board-a"), expected([BAG] * 4, steps=5))
    assert same(page.images("#board-b"), expected([BAG] * 4, steps=8))
    rows = {row.text.rsplit(" ", 2)[0]: row.text.split()[-2:] for row in page.all("#table tbody tr")}
    assert rows["steps"] == ["5", "8"] and rows["forward passes per image"] == ["10", "16"]
    assert all(float(number) > 0 for name in ("seconds for 4 images", "TFLOPs per image") for number in rows[name])
    assert "steps: 5 in A, 8 in B" in page.text("#table")
    page.tab(0)


def test_an_error_is_one_line_and_the_page_goes_on(page: Page) -> None:
    page.write("#a-guidance", "1e9")
    page.until(lambda: "guidance" in page.text("#status") and "allowed is" in page.text("#status"))
    page.click("#sample")
    page.until(lambda: page.all("#sample")[0].is_enabled() and "allowed is" in page.text("#status"))
    assert "Traceback" not in page.browser.page_source
    page.write("#a-guidance", "3.5")
    page.until(lambda: page.text("#status") == "")
    page.sample()


def test_controls_that_a_model_cannot_use_are_off_and_editing_says_why(page: Page) -> None:
    page.choose("#model", CAUSAL)
    page.until(lambda: "trunk causal" in page.text("#model"))
    assert not page.all("#a-steps input[type=range]")[0].is_enabled()
    assert not [e for e in page.all("#a-schedule") if e.is_displayed()]
    page.write("#count", "2")
    page.sample()
    page.click("#board button[data-index='0']")
    page.until(lambda: "one token after the other" in page.text("#editor"))
    page.tab(0)


def test_vectors_are_sampled_and_edited_too(page: Page) -> None:
    page.choose("#model", "fmnist-mar")
    page.until(lambda: "vectors of 4 numbers" in page.text("#model"))
    page.write("#count", "1")
    page.write("#a-steps", "3")
    page.sample()
    before = page.images()
    page.click("#board button[data-index='0']")
    page.until(lambda: [cell for cell in page.all("#editor [data-cell]") if cell.is_displayed()])
    grid = page.all("#editor .mg-cells")[0]
    grid.send_keys(" ", "\ue015", " ")  # space masks, the arrow goes down
    page.until(lambda: page.text("#editor .mg-count") == "2 of 64 masked")
    page.click("#resample")
    page.until(lambda: "62 of the 62 others are the same as before" in page.text("#edit-facts"))
    assert not np.array_equal(page.images()[0], before[0])


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (400, "light")])
def test_the_page_fits_its_screen_and_follows_the_color_scheme(page: Page, width: int, scheme: str) -> None:
    page.open(width, scheme)
    red, *_ = page.browser.execute_script("return getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g)")
    assert (int(red) > 200) == (scheme == "light")
    for number in range(3):
        page.tab(number)
        inner, scrolled = page.browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
        assert scrolled <= inner == width
    page.tab(0)
    page.click("#sample")
    page.until(lambda: page.all("#links a"))
    tile = page.all("#board .mg-tile img")[0]
    assert tile.size["width"] % 32 == 0 and tile.value_of_css_property("image-rendering") == "pixelated"


def test_nothing_but_this_machine_was_asked(page: Page, server: Any) -> None:
    asked = {urlsplit(url)[:2] for url in requests(page.browser)}
    assert ("http", urlsplit(server[0]).netloc) in asked
    assert {scheme for scheme, _ in asked} <= {"http", "data", "blob", "chrome"}
    assert {host for scheme, host in asked if scheme == "http"} == {urlsplit(server[0]).netloc}
    page.collect_errors()
    assert not page.errors


def test_ctrl_c_ends_it_with_one_line(page: Page, server: Any) -> None:
    """While a page is open. Comes last."""
    _, process, folder = server
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and time.monotonic() - began < 20
    assert err.splitlines()[-1] == "mgen: interrupted: the page is closed" and "Traceback" not in err
    assert not list((folder / "temporary").glob("mgen-demo-*"))
