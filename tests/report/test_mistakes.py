"""The gallery: which mistakes, in which order, and which pictures may be in it."""

import base64
import io
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dfbench.evaluation.evaluate import evaluate
from dfbench.predictions.reader import Detector
from dfbench.report.mistakes import MISTAKES_A_CATEGORY, THUMBNAIL_SIDE, leading_detector, thumbnail, worst_mistakes


def detector(name: str, prob_fake: dict[str, float], info=None) -> Detector:
    """{key below DFBench/: P(fake)}; LIVE is real, all else fake."""
    frame = pd.DataFrame({"image": [f"DFBench/{image}" for image in prob_fake]})
    frame["label"] = ["A" if image.startswith("LIVE") else "B" for image in prob_fake]
    frame["prob_B"] = np.array(list(prob_fake.values()), np.float32)
    frame["prob_A"] = np.float32(1) - frame["prob_B"]
    frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
    return Detector(name, frame, info=info or {})


def test_mistakes_stand_by_category_and_certainty(tmp_path):
    answers = {"LIVE/1.png": 0.9, "LIVE/2.png": 0.99, "LIVE/3.png": 0.1, "edit/1.png": 0.4, "edit/2.png": 0.6}
    many = {f"NOVA/{i}.png": 0.01 * i for i in range(20)}
    found = worst_mistakes(evaluate([detector("x", answers | many)]), tmp_path)
    assert {category: [mistake.image for mistake in mistakes] for category, mistakes in found.items()} == {
        "real distorted": ["DFBench/LIVE/2.png", "DFBench/LIVE/1.png"],
        "AI-edited": ["DFBench/edit/1.png"],
        "AI-generated": [f"DFBench/NOVA/{i}.png" for i in range(MISTAKES_A_CATEGORY)],
    }
    assert not found["real distorted"][0].is_fake
    assert found["AI-edited"][0].prob_fake == (("x", pytest.approx(0.4)),)


def test_a_fusion_leads_and_a_baseline_is_left_out(tmp_path):
    good, bad = {"LIVE/1.png": 0.1, "edit/1.png": 0.9}, {"LIVE/1.png": 0.1, "edit/1.png": 0.1}
    baseline = detector("baseline", good, {"metadata_baseline": "sees sizes"})
    agents = [detector("bad", bad), detector("good", good), baseline]
    assert leading_detector(evaluate(agents)) == 1
    assert worst_mistakes(evaluate(agents), tmp_path) == {}
    fused = [*agents, detector("MoA-DF", bad, {"fusion": "mean_prob"})]
    assert leading_detector(evaluate(fused)) == 3
    mistake = worst_mistakes(evaluate(fused), tmp_path)["AI-edited"][0]
    assert [name for name, _ in mistake.prob_fake] == ["bad", "good", "MoA-DF"]


def decode(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "jpg"), ("RGBA", "png"), ("L", "png"), ("P", "gif")])
def test_thumbnails_are_small_jpegs(tmp_path, mode, suffix):
    Image.new(mode, (800, 400)).save(tmp_path / f"a.{suffix}")
    picture = decode(thumbnail(tmp_path, f"a.{suffix}"))
    assert (picture.format, picture.size) == ("JPEG", (THUMBNAIL_SIDE, THUMBNAIL_SIDE // 2))


def test_what_cannot_or_must_not_be_shown_gives_no_thumbnail(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "text.png").write_text("no image")
    (root / "loop.png").symlink_to("loop.png")
    os.mkfifo(root / "pipe.png")
    for image in (
        "loop.png",
        "pipe.png",
        "missing.png",
        "text.png",
        "../secret.png",
        "link.png",
        str(tmp_path / "secret.png"),
        "a\0b.png",
        ".",
    ):
        assert thumbnail(root, image) == "", image
