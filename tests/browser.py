"""A real Chromium without a window, and what it asked of the network."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
HARMLESS = ("data:", "blob:", "about:", "chrome:")


@contextmanager
def chromium() -> Iterator[Any]:
    """Give selenium's driver of an own browser, or skip where a part of it is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with its chromedriver; apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # A container's root may not open Chromium's sandbox, and its /dev/shm is small.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(driver)
    opened = webdriver.Chrome(options, service)
    try:
        yield opened
    finally:
        opened.quit()


def requested(driver: Any) -> list[str]:
    """Return the addresses that pages asked for since the last call, data and files aside."""
    events = (json.loads(row["message"])["message"] for row in driver.get_log("performance"))
    urls = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith(HARMLESS)]


def complaints(driver: Any) -> list[str]:
    """Return the errors in the browser's console since the last call."""
    return [row["message"] for row in driver.get_log("browser") if row["level"] == "SEVERE"]


def resize(driver: Any, width: int, height: int) -> None:
    """Give the page a size; a window cannot be as narrow as a telephone."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
