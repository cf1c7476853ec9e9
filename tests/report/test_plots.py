"""Figures: valid SVG that takes the page's colours and never runs what a name says."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from dfbench.evaluation.evaluate import Evaluation, evaluate
from dfbench.predictions.reader import Detector
from dfbench.report import plots

SOURCES = {"Flick8k": "A", "LIVE": "A", "edit": "B", "Kolors": "B", "NOVA": "B"}
ALL = (
    plots.radar_of_sources,
    plots.radar_of_generators,
    plots.roc_curves,
    plots.reliability_curves,
    plots.histograms,
    plots.agreement,
)


def random_evaluation(names=("x", "y", "z"), sources=SOURCES, num_images: int = 30) -> Evaluation:
    rng = np.random.default_rng(0)
    images = [f"DFBench/{source}/{i}.jpg" for source in sources for i in range(num_images)]
    labels = np.repeat(list(sources.values()), num_images)
    detectors = []
    for name in names:
        prob_fake = rng.beta(np.where(labels == "B", 4, 2), 2).astype(np.float32)
        frame = pd.DataFrame({"image": images, "label": labels, "prob_A": 1 - prob_fake, "prob_B": prob_fake})
        frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
        detectors.append(Detector(name, frame))
    return evaluate(detectors)


@pytest.mark.parametrize("draw", ALL, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("names", [("x", "y"), tuple("abcdefghij")], ids=["two", "ten"])
def test_every_figure_is_svg_in_the_colours_of_the_page(draw, names):
    svg = draw(random_evaluation(names))
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert "currentColor" in svg
    assert "var(--c0)" in svg
    placeholders = {plots._TEXT, plots._GRID, *plots._COLOURS}
    assert not placeholders & set(re.findall("#[0-9a-f]{6}", svg))


@pytest.mark.parametrize("draw", ALL, ids=lambda draw: draw.__name__)
def test_a_figure_is_the_same_each_time(draw):
    assert draw(random_evaluation()) == draw(random_evaluation())


@pytest.mark.parametrize("draw", ALL, ids=lambda draw: draw.__name__)
@pytest.mark.filterwarnings("error")
def test_names_of_others_are_drawn_and_never_parsed(draw):
    hostile = "</svg><script>alert(1)</script>--> $\\frac{1}{"
    names = (hostile, "$\\frac{1}{$", "\x1b[31m 模型 😀")
    sources = {hostile: "A", "edit": "B", "LIVE": "A", "a_b$c$": "B"}
    svg = draw(random_evaluation(names, sources))
    ElementTree.fromstring(svg)
    assert "<script" not in svg
    assert svg.count("</svg>") == 1


def test_two_spokes_become_bars():
    svg = plots.radar_of_generators(random_evaluation(("x", "y")))
    assert "<path" in svg
    assert "PolarAxes" not in svg


def test_first_28_lines_differ_in_colour_or_dashes():
    styles = [plots._line_style(i) for i in range(28)]
    assert len({str(style) for style in styles}) == 28
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in pairwise(styles[:7]))


def test_thinned_curves_keep_their_ends_and_their_shape():
    values = np.linspace(1e-4, 1, 50_000)
    chosen = plots._thinned(values, logarithmic=True)
    assert len(chosen) < 500
    assert chosen[0] == 0
    assert chosen[-1] == 49_999
    assert np.diff(np.log(values[chosen])).max() < 0.2
    assert plots._thinned(np.array([0.5, 0.5]), logarithmic=True).tolist() == [0, 1]
