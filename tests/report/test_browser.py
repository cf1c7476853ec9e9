"""The page in a real browser: no console message, sorting works, nothing overflows, at two widths and in both themes.

Headless Chromium is driven through chromedriver's WebDriver protocol (https://www.w3.org/TR/webdriver2/) with plain
HTTP.
"""

import base64
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dfbench.evaluation.evaluate import evaluate
from dfbench.predictions.reader import Detector
from dfbench.report.page import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver (apt: chromium-driver)"
    ),
]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]

PHONE, DESK = 390, 1280
SOURCES = {"Flick8k": "A", "LIVE": "A", "demo_blur": "A", "edit": "B", "Kolors": "B", "NOVA": "B"}


class Browser:
    """One session of chromedriver."""

    def __init__(self, port: int, profile: Path) -> None:
        self._url = f"http://127.0.0.1:{port}"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._url += f"/session/{session['sessionId']}"

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, path: Path, width: int, *, dark: bool = False, print_media: bool = False) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.devtools("Emulation.setEmulatedMedia", media="print" if print_media else "screen", features=features)
        self._call("POST", "/url", {"url": path.resolve().as_uri()})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script: str) -> Any:
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def messages(self) -> list[str]:
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> Image.Image:
        found = self.devtools("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(found["data"]))
        return Image.open(path)

    def close(self) -> None:
        self._call("DELETE", "")


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([CHROMEDRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        session = Browser(port, tmp_path_factory.mktemp("profile"))
        yield session
        session.close()
    finally:
        driver.terminate()
        driver.wait(timeout=20)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report with everything on it: four detectors, stand-ins, thumbnails, long and hostile names."""
    root = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    images = [f"DFBench/{source}/{i:06}.png" for source in SOURCES for i in range(40)]
    labels = np.repeat(list(SOURCES.values()), 40)
    detectors = []
    for name in ("qwen2.5", "internvl2.5", "<script>alert(1)</script>", "MoA-DF"):
        prob_fake = rng.beta(np.where(labels == "B", 4, 2), 2).astype(np.float32)
        frame = pd.DataFrame({"image": images, "label": labels, "prob_A": 1 - prob_fake, "prob_B": prob_fake})
        frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
        info = {"model": "<img src=x onerror=alert(1)>", "path": "/a/very/long/path/" * 10}
        detectors.append(Detector(name, frame, Path("results/x.csv"), info))
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(root / image)
    write_report(root / "report.html", evaluate(detectors, num_resamples=20, prior=0.5), image_root=root)
    return root / "report.html"


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_opens_without_a_message_and_fits(browser, page, tmp_path, width, dark):
    browser.open(page, width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert browser.messages() == []
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert (
        browser.run("return performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).length")
        == 0
    )
    broken = "return [...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
    assert browser.run(broken) == 0
    picture = browser.screenshot(tmp_path / "page.png").convert("L")
    brightness = np.asarray(picture).mean()
    assert brightness < 80 if dark else brightness > 200


def column(browser: Browser, table: int, number: int) -> list[str]:
    return browser.run(
        f"return [...document.querySelectorAll('table.sortable')[{table}].tBodies[0].rows]"
        f".map((row) => row.cells[{number}].textContent)"
    )


def click(browser: Browser, table: int, number: int) -> str:
    return browser.run(
        f"const head = document.querySelectorAll('table.sortable')[{table}].tHead.rows[0].cells[{number}];"
        "head.firstElementChild.click(); return head.getAttribute('aria-sort');"
    )


def numbers(texts: list[str]) -> list[float]:
    return [float(re.sub("[,<+]", "", text.split(" ")[0])) for text in texts if text != "–"]


def test_tables_sort_by_numbers_and_by_texts(browser, page):
    browser.open(page, DESK)
    accuracy = 1
    before = column(browser, accuracy, 3)
    assert click(browser, accuracy, 3) == "descending"
    down = column(browser, accuracy, 3)
    assert numbers(down) == sorted(numbers(before), reverse=True)
    assert sorted(down) == sorted(before)
    assert click(browser, accuracy, 3) == "ascending"
    assert numbers(column(browser, accuracy, 3)) == sorted(numbers(before))
    assert click(browser, accuracy, 1) == "ascending"
    names = column(browser, accuracy, 1)
    assert names == sorted(names, key=str.lower)
    heads = "return [...document.querySelectorAll('table.sortable')[1].tHead.querySelectorAll('[aria-sort]')].length"
    assert browser.run(heads) == 1
    assert browser.messages() == []


def test_cells_without_a_value_sort_last_either_way(browser, page):
    browser.open(page, DESK)
    heads = browser.run(
        "return [...document.querySelectorAll('table.sortable')]"
        ".map((table) => [...table.tHead.rows[0].cells].map((cell) => cell.textContent))"
    )
    table = next(i for i, cells in enumerate(heads) if cells[0] == "group" and "F1 (fake)" in cells)
    number = heads[table].index("F1 (fake)")
    for _ in range(2):
        click(browser, table, number)
        texts = column(browser, table, number)
        missing = texts.count("–")
        assert missing > 0
        assert texts[-missing:] == ["–"] * missing


def test_the_policy_stops_a_script_that_got_in(browser, page, tmp_path):
    html = page.read_text(encoding="utf-8").replace("<main>", "<main><script>document.title = 'broken'</script>", 1)
    (tmp_path / "changed.html").write_text(html, encoding="utf-8")
    browser.open(tmp_path / "changed.html", DESK)
    assert browser.run("return document.title") == "DFBench results"
    assert any("Content Security Policy" in message for message in browser.messages())


def test_on_paper_the_page_is_light_and_unfolded(browser, page, tmp_path):
    browser.open(page, DESK, dark=True, print_media=True)
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("return getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.devtools("Emulation.setEmulatedMedia", media="screen", features=[])
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("return document.querySelectorAll('details:not([open])').length") == 0
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("return document.querySelectorAll('details[open]').length") == 0
    found = browser.devtools("Page.printToPDF", printBackground=True)
    (tmp_path / "page.pdf").write_bytes(base64.b64decode(found["data"]))
    assert (tmp_path / "page.pdf").stat().st_size > 50_000
    assert browser.messages() == []
