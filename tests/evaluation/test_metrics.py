"""Metrics against scikit-learn, SciPy and numbers worked by hand."""

import warnings

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score, f1_score

from dfbench.evaluation import metrics
from dfbench.evaluation.metrics import METRICS, Metric, Sample, percent, percentile_interval, register


def count(is_fake: np.ndarray, predicted_fake: np.ndarray) -> Sample:
    return Sample(
        (~is_fake).sum(), (~is_fake & ~predicted_fake).sum(), is_fake.sum(), (is_fake & predicted_fake).sum()
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_count_metrics_agree_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    is_fake, predicted_fake = rng.random(50) < 0.7, rng.random(50) < 0.4
    counts = count(is_fake, predicted_fake)
    assert metrics.accuracy(counts) == pytest.approx(accuracy_score(is_fake, predicted_fake))
    assert metrics.balanced_accuracy(counts) == pytest.approx(balanced_accuracy_score(is_fake, predicted_fake))
    assert metrics.f1_fake(counts) == pytest.approx(f1_score(is_fake, predicted_fake))
    assert metrics.f1_real(counts) == pytest.approx(f1_score(is_fake, predicted_fake, pos_label=False))
    assert metrics.f1_macro(counts) == pytest.approx(f1_score(is_fake, predicted_fake, average="macro"))


def test_one_class_leaves_what_compares_two_undefined():
    # 10 fake images, 8 predicted fake: F1 = 2 * 8 / (2 * 8 + 0 + 2) = 16 / 18.
    counts = Sample(0, 0, 10, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.accuracy(counts) == 0.8
        assert metrics.f1_fake(counts) == pytest.approx(16 / 18)
        for metric in (metrics.f1_real, metrics.f1_macro, metrics.balanced_accuracy):
            assert np.isnan(metric(counts))


def test_f1_of_fakes_where_there_are_none_is_undefined_however_many_are_predicted_fake():
    assert np.isnan(metrics.f1_fake(Sample(5, 3, 0, 0)))
    assert np.isnan(metrics.f1_real(Sample(0, 0, 5, 3)))


def test_f1_of_a_class_that_is_never_named_is_zero():
    assert metrics.f1_fake(Sample(5, 5, 5, 0)) == 0


def test_count_metrics_take_tables():
    counts = Sample(*(np.array(column) for column in ([4, 0], [3, 0], [4, 4], [1, 4])))
    np.testing.assert_allclose(metrics.accuracy(counts), [0.5, 1])
    np.testing.assert_allclose(metrics.balanced_accuracy(counts), [0.5, np.nan])


@pytest.mark.parametrize(("right", "total"), [(0, 7), (7, 7), (1, 2), (90, 100), (9340, 9357), (0, 1)])
def test_wilson_interval_agrees_with_scipy(right, total):
    expected = binomtest(right, total).proportion_ci(method="wilson")
    assert metrics.wilson_interval(right / total, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_of_nothing_is_undefined():
    assert np.isnan(metrics.wilson_interval(np.nan, 0)).all()


def test_mcnemar_by_hand():
    # 6 images that just one got right, split 1 to 5: 2 * (C(6,0) + C(6,1)) / 2^6 = 14 / 64.
    assert metrics.mcnemar_p(1, 5) == pytest.approx(14 / 64)
    assert metrics.mcnemar_p(3, 3) == metrics.mcnemar_p(0, 0) == 1


def test_kappa_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    first = rng.random(200) < 0.8
    second = np.where(rng.random(200) < 0.3, ~first, first)
    assert metrics.cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))


def test_kappa_of_two_constant_answers_is_undefined():
    assert np.isnan(metrics.cohen_kappa(np.ones(5, bool), np.ones(5, bool)))
    assert metrics.cohen_kappa(np.ones(5, bool), np.zeros(5, bool)) == 0


def test_interval_is_empty_where_most_resamples_are_undefined():
    resampled = np.array([[0.1, np.nan, 0.5], [0.3, np.nan, np.nan], [0.2, 0.2, 0.7]])
    low, high = percentile_interval(resampled)
    assert np.isnan([low[1], high[1]]).all()
    assert 0.1 <= low[0] <= high[0] <= 0.3
    assert low[2] == pytest.approx(0.505)


def test_numbers_as_texts():
    assert [percent(0.98414), percent(1), percent(float("nan"))] == ["98.41", "100.00", "–"]
    show = METRICS["accuracy"].show_with_interval
    assert show(0.98414, 0.9812, 0.9867) == "98.41 [98.12,98.67]"
    assert show(0.99964, 0.9995, 1) == "99.96 [99.95,100]"
    assert show(0.5, float("nan"), float("nan")) == "50.00"
    assert show(float("nan"), float("nan"), float("nan")) == "–"


def test_what_needs_both_classes_is_masked_and_intervals_follow_the_record():
    sample = Sample(*(np.array([column]) for column in ([4, 0], [3, 0], [4, 4], [1, 4])))
    metric = Metric("x", "x", "", lambda sample: sample.num_right, needs_both=True, interval="none")
    np.testing.assert_array_equal(metric.measure(sample), [[4, np.nan]])
    assert np.isnan(metric.bounds(metric.measure(sample), np.ones((9, 1, 2)), sample.num_images)).all()


def test_a_key_is_registered_once():
    with pytest.raises(ValueError, match="accuracy is registered already"):
        register(METRICS["accuracy"])


def test_every_record_is_complete():
    for key, metric in METRICS.items():
        assert (metric.key, bool(metric.title)) == (key, True)
        assert metric.definition.endswith(".")
        assert "\n" not in metric.definition
