"""Bias audit on benchmarks where size gives the label away, or says nothing."""

import numpy as np
import pytest
from builders import fair_detector, metadata_of
from PIL import Image
from scipy.stats import spearmanr

from dfbench.errors import InputError
from dfbench.evaluation.evaluate import evaluate
from dfbench.evaluation.shortcut_audit import MATCHED, audit, correlations, matched_weights
from dfbench.evaluation.tables import make_tables
from dfbench.predictions.join import join


@pytest.fixture
def images():
    return join([fair_detector()])


def test_matched_weights_by_hand():
    images = join([fair_detector(num_images=6, sources={"LIVE": "A", "edit": "B"})])
    # Real: four of 512, two of 256. Fake: one of 512 (500 is in the same bucket), two of 1024, three of 256.
    metadata = metadata_of(images, [512, 512, 512, 512, 256, 256, 500, 1024, 1024, 256, 256, 256])
    weights, num_pairs = matched_weights(images, metadata)
    assert num_pairs == 1 + 2
    # 512: min(4, 1) = 1 a side, so .25 to each real one and 1 to the fake one. 256: min(2, 3) = 2 a side, so 1 and 2/3.
    # They sum to 6 and are scaled to the ten images that have a weight.
    expected = np.array([0.25] * 4 + [1] * 2 + [1, 0, 0] + [2 / 3] * 3) * 10 / 6
    np.testing.assert_allclose(weights, expected)
    real = ~images.is_fake
    assert weights[real].sum() == pytest.approx(weights[~real].sum())


def test_another_format_is_no_match():
    images = join([fair_detector(num_images=2, sources={"LIVE": "A", "edit": "B"})])
    weights, num_pairs = matched_weights(images, metadata_of(images, 512, kind=["JPEG", "PNG", "PNG", "PNG"]))
    assert num_pairs == 1
    assert (weights > 0).tolist() == [False, True, True, True]
    none, num_pairs = matched_weights(images, metadata_of(images, [512, 512, 1024, 1024]))
    assert (none.sum(), num_pairs) == (0, 0)


def test_images_of_unknown_size_match_nothing():
    images = join([fair_detector(num_images=2, sources={"LIVE": "A", "edit": "B"})])
    weights, num_pairs = matched_weights(images, metadata_of(images, [512, np.nan, 512, np.nan]))
    assert num_pairs == 1
    assert weights.tolist() == [1, 0, 1, 0]


def test_a_detector_of_size_falls_to_chance_on_matched_images():
    x = fair_detector(num_images=200)
    images = join([x])
    rng = np.random.default_rng(0)
    wide = rng.random(len(images)) < np.where(images.is_fake, 0.9, 0.1)
    x.frame["prob_B"] = np.where(wide, 0.9, 0.1).astype(np.float32)
    x.frame["prob_A"] = 1 - x.frame["prob_B"]
    weights, _ = matched_weights(images, metadata_of(images, np.where(wide, 1024, 500)))
    found = evaluate([x], weightings={MATCHED: weights}, num_resamples=100)
    assert found.scores.iloc[-1]["balanced_accuracy"] == pytest.approx(0.9, abs=0.03)
    matched = found.reweighted.iloc[0]
    assert matched["balanced_accuracy"] == pytest.approx(0.5)
    assert matched["balanced_accuracy_low"] < 0.5 < matched["balanced_accuracy_high"]


def test_correlations_agree_with_scipy(images):
    rng = np.random.default_rng(1)
    metadata = metadata_of(
        images, rng.integers(300, 900, len(images)), num_bytes=rng.integers(10_000, 90_000, len(images))
    )
    found = correlations(images, metadata).set_index("metadata")
    pixels = (metadata["width"] * metadata["height"]).to_numpy()
    prob_fake, real = images.prob[:, 0, 1], ~images.is_fake
    assert found.loc["pixels", "all"] == pytest.approx(spearmanr(prob_fake, pixels).statistic)
    assert found.loc["pixels", "real"] == pytest.approx(spearmanr(prob_fake[real], pixels[real]).statistic)
    density = metadata["bytes"].to_numpy() / pixels
    assert found.loc["bytes per pixel", "fake"] == pytest.approx(spearmanr(prob_fake[~real], density[~real]).statistic)
    assert found.loc["JPEG"].drop("detector").isna().all()


def test_audit_of_files(tmp_path):
    x = fair_detector(num_images=6, sources={"LIVE": "A", "CSIQ": "A", "edit": "B", "NOVA": "B"})
    for i, row in x.frame.iloc[1:].iterrows():
        path = tmp_path / row["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64 if row["label"] == "B" or i % 3 == 0 else 16, 32)).save(path)
    found = audit(join([x]), image_root=tmp_path)
    assert found.num_missing == 1
    assert len(found.baselines) == 2
    assert found.num_pairs == 3
    table = make_tables(evaluate([x], audit=found))["audit_correlations"]
    assert [row[:2] for row in table.rows] == [["x", "pixels"], ["x", "bytes per pixel"], ["x", "JPEG"]]
    assert table.notes[0].startswith("3 pairs")
    assert table.notes[1].startswith("1 images could not be read")


def test_audit_without_any_image_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"none of the 300 images .* such as DFBench/Flick8k/0\.jpg"):
        audit(join([fair_detector()]), image_root=tmp_path)
