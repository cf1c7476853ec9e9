"""The metadata-only baseline on benchmarks where size or format gives the label away, or says nothing."""

import numpy as np
import pandas as pd
import pytest
from builders import fair_detector, metadata_of

from dfbench.evaluation.metadata_baseline import metadata_baselines
from dfbench.predictions.join import join
from dfbench.predictions.reader import Detector


@pytest.fixture
def images():
    return join([fair_detector()])


def accuracy(baseline: Detector) -> float:
    return (baseline.frame["answer"] == baseline.frame["label"]).mean()


def test_a_baseline_sees_what_size_gives_away(images):
    sizes = np.where(images.is_fake, 1024, 500)
    baselines = metadata_baselines(images, metadata_of(images, sizes), seed=0)
    assert [baseline.name for baseline in baselines] == ["meta (same)", "meta (other)"]
    assert [accuracy(baseline) for baseline in baselines] == [1, 1]


@pytest.mark.parametrize("column", ["height", "num_bytes", "kind"])
def test_a_baseline_sees_the_other_metadata_too(images, column):
    low_high = ("PNG", "JPEG") if column == "kind" else (300, 800)
    values = np.where(images.is_fake, low_high[1], low_high[0])
    baseline = metadata_baselines(images, metadata_of(images, 512, **{column: values}), seed=0)[0]
    assert accuracy(baseline) == 1


def test_a_baseline_without_anything_to_see_is_at_chance(images):
    baselines = metadata_baselines(
        images, metadata_of(images, np.random.default_rng(0).integers(300, 900, len(images))), seed=0
    )
    for baseline in baselines:
        assert accuracy(baseline) == pytest.approx(0.5, abs=0.12)


def test_sizes_that_tell_sources_apart_do_not_help_on_other_sources(images):
    # Each source has a width of its own, in no order: known sources are told apart, new ones are not.
    width = pd.Series(images.sources).map(
        {"Flick8k": 300, "Kolors": 400, "LIVE": 500, "edit": 600, "CSIQ": 700, "NOVA": 800}
    )
    same, other = metadata_baselines(images, metadata_of(images, width.to_numpy()), seed=0)
    assert accuracy(same) == 1
    assert accuracy(other) < 0.7


def test_no_baseline_is_fitted_on_what_it_scores(images):
    # Every image has a width of its own: only a fit that saw the image could know its label.
    width = np.random.default_rng(0).permutation(len(images)) + 1000
    same, _ = metadata_baselines(images, metadata_of(images, width), seed=0)
    assert accuracy(same) < 0.65


def test_missing_metadata_and_labels_leave_an_answer_for_every_image(images):
    metadata = metadata_of(images, np.where(images.is_fake, 1024, 500))
    metadata.iloc[::7, :3], metadata.iloc[::7, 3] = np.nan, ""
    images.labels[:21] = ""
    for baseline in metadata_baselines(images, metadata, seed=0):
        assert baseline.frame["prob_B"].between(0, 1).all()


def test_too_few_sources_leave_out_the_baseline_for_other_sources():
    images = join([fair_detector(sources={"LIVE": "A", "edit": "B", "NOVA": "B"})])
    assert [baseline.name for baseline in metadata_baselines(images, metadata_of(images, 512), seed=0)] == [
        "meta (same)"
    ]
