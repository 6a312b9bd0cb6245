"""A browser without a network for tests of pages.

Needs selenium and Chromium with its driver (Debian: apt-get install chromium chromium-driver); without them these tests are skipped,
unless MGEN_REQUIRE_BROWSER is set.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest

ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1200,900"
).split()


def unavailable(reason: str) -> NoReturn:
    if os.environ.get("MGEN_REQUIRE_BROWSER"):
        pytest.fail(f"MGEN_REQUIRE_BROWSER is set, and {reason}")
    pytest.skip(reason)


def open_browser(profile: Path, *, reaches: str = "") -> Any:
    """A session of Chromium that logs its console and its requests, and finds no host but `reaches`."""
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        unavailable("selenium is not installed: pip install selenium")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not program or not driver:
        unavailable("there is no Chromium with its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND" + (f", EXCLUDE {reaches}" if reaches else ""))
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


def requests(browser: Any) -> list[str]:
    """The addresses that pages have asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
