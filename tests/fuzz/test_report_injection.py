"""Hostile names, keys and metadata in the report: no markup of theirs, no script, no link, nothing loaded."""

import base64
import hashlib
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
from fuzz import workplaces
from fuzz.mutations import HOSTILE_TEXTS, HOSTILE_VALUES, NOT_FOR_TERMINALS

from dfbench.evaluation.evaluate import evaluate
from dfbench.evaluation.tables import result_lines, write_tables
from dfbench.predictions.reader import Detector
from dfbench.report.page import write_report

MARKUP = (
    *(text for text in HOSTILE_TEXTS if text.strip() and text != "\ud800"),
    "<svg onload=alert(1)>",
    "<style>*{background:url(http://x)}</style>",
    "</script><script>alert(1)</script>",
    "<!-- features -->",
    "<a href=javascript:alert(1)>x</a>",
    "<meta http-equiv=refresh content=0>",
    "' autofocus onfocus='alert(1)",
    "<![CDATA[<x>]]>",
    "{% include 'x' %}",
)


class Page(HTMLParser):
    """The tags of a page, and all of their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def write_page(folder: Path, name, seed: int) -> str:
    """A page whose detectors, sources, images and metadata are called what `name()` gives."""
    rng = np.random.default_rng(seed)
    labels = {name(): "A", name(): "B", "edit": "B", "LIVE": "A"}
    images = [f"DFBench/{source}/{i} {name()}.png" for source in labels for i in range(4)]
    letters = np.repeat(list(labels.values()), 4)
    detectors = []
    for number in range(2):
        prob = rng.beta(np.where(letters == "B", 3, 2), 2).astype(np.float32)
        frame = pd.DataFrame({"image": images, "label": letters, "prob_A": 1 - prob, "prob_B": prob})
        frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
        info = {"model": name(), name(): [{"deep": name()}, {name(): HOSTILE_VALUES[seed % len(HOSTILE_VALUES)]}]}
        detectors.append(Detector(f"{number}{name()}", frame, Path(f"results/{number}.csv"), info))
    evaluation = evaluate(detectors, num_resamples=0, quiet=True)
    write_report(folder / "report.html", evaluation, image_root=folder)
    write_tables(evaluation, folder / "tables")
    for line in result_lines(evaluation):
        assert not NOT_FOR_TERMINALS.search(line), repr(line)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_reports(fuzz, monkeypatch, tmp_path):
    workplaces.without_drawings(monkeypatch)
    counter = iter(range(10**9))
    harmless = Page(write_page(tmp_path, lambda: f"name{next(counter)}", seed=0))

    def fuzz_reports(rng: random.Random, folder: Path) -> None:
        def name() -> str:
            return "".join(rng.choice(MARKUP) for _ in range(rng.choice((1, 1, 2)))) + f" {rng.randrange(10**9)}"

        html = write_page(folder, name, rng.randrange(1000))
        page = Page(html)
        assert page.tags <= harmless.tags, page.tags - harmless.tags
        names = {attribute for attribute, _ in page.attributes}
        assert names <= {attribute for attribute, _ in harmless.attributes}
        assert not any(attribute.startswith("on") for attribute in names)
        links = [value for attribute, value in page.attributes if attribute in ("href", "src", "xlink:href", "action")]
        assert all(link.startswith(("#", "data:image/jpeg;base64,")) or link == "data:," for link in links), links
        assert html.count("<script") == 1
        assert not re.findall(r"<[a-z][^>]*url\((?!#)", html)
        script = re.search(r"<script>(.*?)</script>", html, re.S).group(1)
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in html
        tables = folder / "tables"
        assert {path.parent for path in folder.rglob("*")} == {folder, tables, tables / "sources"}

    fuzz(fuzz_reports, cases=4)
