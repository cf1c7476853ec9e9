"""Metrics against scikit-learn, SciPy and numbers worked by hand."""

import warnings

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score, f1_score

from dfbench.evaluation import metrics
from dfbench.evaluation.metrics import Counts


def count(is_fake: np.ndarray, called_fake: np.ndarray) -> Counts:
    return Counts(
        (~is_fake).sum(), (~is_fake & ~called_fake).sum(), is_fake.sum(), (is_fake & called_fake).sum()
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_count_metrics_agree_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    is_fake, called_fake = rng.random(50) < 0.7, rng.random(50) < 0.4
    counts = count(is_fake, called_fake)
    assert metrics.accuracy(counts) == pytest.approx(accuracy_score(is_fake, called_fake))
    assert metrics.balanced_accuracy(counts) == pytest.approx(balanced_accuracy_score(is_fake, called_fake))
    assert metrics.f1_fake(counts) == pytest.approx(f1_score(is_fake, called_fake))
    assert metrics.f1_real(counts) == pytest.approx(f1_score(is_fake, called_fake, pos_label=False))
    assert metrics.f1_macro(counts) == pytest.approx(f1_score(is_fake, called_fake, average="macro"))


def test_one_class_leaves_what_compares_two_undefined():
    # 10 fake images, 8 called fake: F1 = 2 * 8 / (2 * 8 + 0 + 2) = 16 / 18.
    counts = Counts(0, 0, 10, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.accuracy(counts) == 0.8
        assert metrics.f1_fake(counts) == pytest.approx(16 / 18)
        for metric in (metrics.f1_real, metrics.f1_macro, metrics.balanced_accuracy):
            assert np.isnan(metric(counts))


def test_f1_of_fakes_where_there_are_none_is_undefined_however_many_are_called_fake():
    assert np.isnan(metrics.f1_fake(Counts(5, 3, 0, 0)))
    assert np.isnan(metrics.f1_real(Counts(0, 0, 5, 3)))


def test_f1_of_a_class_that_is_never_named_is_zero():
    assert metrics.f1_fake(Counts(5, 5, 5, 0)) == 0


def test_count_metrics_take_tables():
    counts = Counts(*(np.array(column) for column in ([4, 0], [3, 0], [4, 4], [1, 4])))
    np.testing.assert_allclose(metrics.accuracy(counts), [0.5, 1])
    np.testing.assert_allclose(metrics.balanced_accuracy(counts), [0.5, np.nan])


@pytest.mark.parametrize(("right", "total"), [(0, 7), (7, 7), (1, 2), (90, 100), (9340, 9357), (0, 1)])
def test_wilson_interval_agrees_with_scipy(right, total):
    expected = binomtest(right, total).proportion_ci(method="wilson")
    assert metrics.wilson_interval(right, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_of_nothing_is_undefined():
    assert np.isnan(metrics.wilson_interval(0, 0)).all()


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
