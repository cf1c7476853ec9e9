"""The page's content: complete, self-contained, and nothing from files gets to be markup."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dfbench.evaluation import tables
from dfbench.evaluation.evaluate import evaluate
from dfbench.evaluation.metrics import METRICS
from dfbench.evaluation.shortcut_audit import audit
from dfbench.features.plots import build_feature_report
from dfbench.predictions.join import join
from dfbench.predictions.reader import Detector
from dfbench.report.page import audit_words, flatten, glossary, headline, renew_features, write_report

SOURCES = {"Flick8k": "A", "LIVE": "A", "edit": "B", "Kolors": "B", "NOVA": "B"}


def detectors(names=("x", "y", "MoA-DF"), sources=SOURCES, num_images: int = 30) -> list[Detector]:
    rng = np.random.default_rng(0)
    images = [f"DFBench/{source}/{i}.png" for source in sources for i in range(num_images)]
    labels = np.repeat(list(sources.values()), num_images)
    found = []
    for name in names:
        prob_fake = rng.beta(np.where(labels == "B", 4, 2), 2).astype(np.float32)
        frame = pd.DataFrame({"image": images, "label": labels, "prob_A": 1 - prob_fake, "prob_B": prob_fake})
        frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
        found.append(
            Detector(name, frame, Path(f"results/{name[:5]}.csv"), {"fusion": "m"} if name == "MoA-DF" else {})
        )
    return found


@pytest.fixture(autouse=True)
def quick_drawings(monkeypatch):
    """Drawing takes a second a page; `test_plots.py` tests it."""
    for name in (
        "radar_of_sources",
        "radar_of_generators",
        "roc_curves",
        "reliability_curves",
        "histograms",
        "agreement",
    ):
        monkeypatch.setattr(f"dfbench.report.plots.{name}", lambda evaluation: "<svg viewBox='0 0 1 1'></svg>")


class Page(HTMLParser):
    """Tags with their attributes, section ids, and the text outside of style and script."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def page_of(tmp_path: Path, evaluation, **options) -> tuple[str, Page]:
    write_report(tmp_path / "out" / "report.html", evaluation, image_root=tmp_path, **options)
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_a_page_has_every_section_and_nothing_from_the_network(tmp_path):
    html, page = page_of(tmp_path, evaluate(detectors(), num_resamples=20, prior=0.5))
    assert html.startswith("<!DOCTYPE html>")
    assert page.open == []
    ids = ["headline", "sources", "categories", "generators", "scores", "agreement", "mistakes", "files", "terms"]
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == ids
    links = page.attributes("href") + page.attributes("src") + page.attributes("xlink:href")
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.findall(r"url\((?!#)", html)
    assert "real prior 50 %" in page.text
    assert "seed 0" in page.text
    assert [tag for tag, _ in page.tags].count("svg") == 6
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]


def test_the_security_policy_names_the_one_script(tmp_path):
    html, page = page_of(tmp_path, evaluate(detectors()))
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", html, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert html.count("<script") == 1


def test_every_cell_of_every_table_is_there(tmp_path):
    evaluation = evaluate(detectors())
    _, page = page_of(tmp_path, evaluation)
    for name in evaluation.names:
        assert page.text.count(name) > 5
    overall = evaluation.scores.iloc[-1]
    assert f"{100 * overall['auroc']:.2f}" in page.text
    assert f"{100 * evaluation.false_negatives['mean'][0]:.2f}" in page.text


def test_hostile_names_and_metadata_stay_text(tmp_path):
    hostile = "<img src=x onerror=alert(1)>\"'</script></style>{{ 7*7 }}"
    found = detectors((hostile, "y"), {hostile: "A", "edit": "B"}, num_images=8)
    found[0].info = {"model": hostile, hostile: [{"deep": hostile}], "fitted_on": hostile}
    html, page = page_of(tmp_path, evaluate(found))
    assert "<img src=x" not in html
    assert "onerror" not in " ".join(name for _, attributes in page.tags for name in attributes)
    assert page.text.count(hostile) > 10
    assert "49" not in re.findall(r"</style>(\S+)", page.text)


def test_the_glossary_explains_what_the_page_shows(tmp_path):
    evaluation = evaluate(detectors(), num_resamples=20)
    terms = dict(glossary(evaluation))
    assert terms["AUROC"] == METRICS["auroc"].definition
    assert {"Intervals", "Brier score", "False-negative rate", "McNemar p", "Both wrong", "–"} < terms.keys()
    assert (
        "Wilson's score interval: accuracy and false-negative rate. All others: percentiles of 20" in terms["Intervals"]
    )
    assert "McNemar p" not in dict(glossary(evaluate(detectors(("x",)))))
    _, page = page_of(tmp_path, evaluation)
    assert all(text in page.text for term in terms.items() for text in term)


def test_a_registered_table_stands_in_its_section(tmp_path, monkeypatch):
    monkeypatch.setattr("dfbench.evaluation.tables.TABLES", known := dict(tables.TABLES))
    monkeypatch.setattr("dfbench.report.page.TABLES", known)
    content = {"header": ["name", "n"], "rows": [["dummy cell", "1"]], "frame": pd.DataFrame()}
    tables.register("dummy", "A dummy table", "scores", terms=(("Dummy term", "Explained."),))(lambda _: content)
    html, _ = page_of(tmp_path, evaluate(detectors()))
    section = html.partition('<section id="scores">')[2].partition("</section>")[0]
    assert "A dummy table" in section
    assert "dummy cell" in section
    assert "<dt>Dummy term</dt><dd>Explained.</dd>" in html


def test_stand_ins_carry_a_banner(tmp_path):
    sources = {"demo_blur": "A", "demo_sampler": "B"}
    _, page = page_of(tmp_path, evaluate(detectors(sources=sources)))
    assert "Sources marked * are stand-ins made for the demo; figures say nothing about DFBench." in page.text
    assert "demo_blur*" in page.text
    _, page = page_of(tmp_path, evaluate(detectors()))
    assert "stand-ins" not in page.text


def test_what_makes_figures_doubtful_stands_at_the_top(tmp_path):
    found = detectors(names=("x", "y"), sources=SOURCES | {"CLIVE": "B"})
    found[1].info["finished"] = False
    write_report(tmp_path / "report.html", evaluate(found), image_root=tmp_path)
    header = (tmp_path / "report.html").read_text().partition("<main>")[0]
    assert re.findall(r'<p class="banner">(.*)</p>', header) == [
        "labels contradict the catalogue of sources: CLIVE (30 labelled B)",
        "y: its run has not finished",
    ]


def test_thumbnails_come_from_the_image_root(tmp_path):
    for source in SOURCES:
        (tmp_path / "DFBench" / source).mkdir(parents=True)
        for i in range(29):
            Image.new("RGB", (64, 48), (9 * i, 0, 99)).save(tmp_path / "DFBench" / source / f"{i}.png")
    _, page = page_of(tmp_path, evaluate(detectors()))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images
    assert all(image["src"].startswith("data:image/jpeg;base64,") and image["alt"] for image in images)


def test_missing_images_are_said_to_be_missing(tmp_path):
    _, page = page_of(tmp_path, evaluate(detectors()))
    assert "image not at hand" in page.text


@pytest.mark.parametrize("sources", [{"LIVE": "A"}, {"edit": "B", "NOVA": "B"}])
def test_images_of_one_class_make_a_page_too(tmp_path, sources):
    evaluation = evaluate(detectors(("x",), sources))
    _, page = page_of(tmp_path, evaluation)
    assert "Images of one class only" in page.text
    assert headline(evaluation)[0].figure == f"{100 * evaluation.scores.iloc[-1]['accuracy']:.2f}"


def test_a_perfect_detector_makes_no_mistakes(tmp_path):
    found = detectors(("x",))
    found[0].frame["prob_B"] = np.where(found[0].frame["label"] == "B", 1, 0).astype(np.float32)
    found[0].frame["prob_A"] = 1 - found[0].frame["prob_B"]
    _, page = page_of(tmp_path, evaluate(found, num_resamples=5))
    assert "x makes none." in page.text


def test_metadata_is_shown_leaf_by_leaf(tmp_path):
    info = {
        "identity": {"model": "m", "dtype": None},
        "agents": [{"csv": "a"}, {"csv": "b"}],
        "sizes": [1, 2],
        "x": "y" * 500,
    }
    assert list(flatten(info)) == [
        ("identity.model", "m"),
        ("identity.dtype", "null"),
        ("agents 1.csv", "a"),
        ("agents 2.csv", "b"),
        ("sizes", "[1, 2]"),
        ("x", "y" * 300 + " …"),
    ]
    found = detectors()
    found[0].info = info
    _, page = page_of(tmp_path, evaluate(found))
    assert "identity.model" in page.text
    assert "There is no metadata beside this file." in page.text


def test_the_audit_is_put_into_words(tmp_path):
    found = detectors(num_images=20)
    for row in found[0].frame.itertuples():
        path = tmp_path / row.image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64 if row.label == "B" or row.Index % 2 else 32, 48)).save(path)
    metadata = audit(join(found), image_root=tmp_path)
    evaluation = evaluate(found, audit=metadata)
    words = audit_words(evaluation)
    assert len(words) == 2 + 3 + 1
    assert words[0].endswith("on other images of sources it was fitted on; 50 % is chance.")
    assert words[-1].startswith("The latter rests on 20 pairs")
    _, page = page_of(tmp_path, evaluation)
    assert "Bias audit" in page.text
    assert "meta (same)" not in [card.detector for card in headline(evaluation)]
    metadata.num_pairs = 0
    assert "No real and fake image share" in audit_words(evaluate(found, audit=metadata))[-1]


def write_features(folder, seed: int):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for source in SOURCES:
        table = pd.DataFrame(rng.uniform(10, 200, (30, 4)), columns=["brightness", "contrast", "colorfulness", "si"])
        table.insert(0, "image", [f"DFBench/{source}/{i}.png" for i in range(30)])
        table.to_csv(folder / f"{source}.csv", index=False)
    return folder


@pytest.mark.slow
def test_features_are_drawn_where_they_were_measured(tmp_path):
    folder = write_features(tmp_path / "features", seed=0)
    html, page = page_of(tmp_path, evaluate(detectors()), features_dir=folder)
    assert [tag for tag, _ in page.tags].count("svg") > 6
    assert 'class="drawing paper"' in html
    (folder / "edit.csv").write_text("image,brightness\nx,1\n")
    _, page = page_of(tmp_path, evaluate(detectors()), features_dir=folder)
    assert "Not shown: " in page.text
    _, page = page_of(tmp_path, evaluate(detectors()), features_dir=tmp_path / "none")
    assert "Image features" not in page.text


@pytest.mark.slow
@pytest.mark.parametrize("before", [None, 1])
def test_features_that_are_drawn_later_enter_the_page(tmp_path, before):
    """A page without features, or with others, becomes the one that is written with them."""
    earlier = write_features(tmp_path / "earlier", before) if before else None
    later = write_features(tmp_path / "later", seed=0)
    path = tmp_path / "page.html"
    expected, _ = page_of(tmp_path, evaluate(detectors()), features_dir=later)
    write_report(path, evaluate(detectors()), image_root=tmp_path, features_dir=earlier)
    assert path.read_text(encoding="utf-8") != expected
    assert renew_features(path, build_feature_report(later))
    assert path.read_text(encoding="utf-8") == expected


def test_another_page_is_left_alone(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<!-- features -->\nmine")
    assert not renew_features(path, build_feature_report(write_features(tmp_path / "features", seed=0)))
    assert path.read_text() == "<!-- features -->\nmine"
