"""Ranking metrics against scikit-learn, hand-worked cases and samples that really repeat their rows."""

import numpy as np
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from dfbench.evaluation import ranking
from dfbench.evaluation.ranking import Ranking
from dfbench.predictions.probabilities import log_odds


def sample(seed: int, size: int = 300, decimals: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(is_fake, P(fake)); rounding makes ties."""
    rng = np.random.default_rng(seed)
    is_fake = rng.random(size) < 0.7
    prob_fake = rng.beta(np.where(is_fake, 4, 2), 2)
    return is_fake, prob_fake if decimals is None else prob_fake.round(decimals)


CASES = [(seed, decimals) for seed in range(4) for decimals in (None, 1, 0)]


@pytest.mark.parametrize(("seed", "decimals"), CASES)
def test_agrees_with_scikit_learn(seed, decimals):
    is_fake, prob_fake = sample(seed, decimals=decimals)
    tally = Ranking(prob_fake, is_fake, prob_fake).tally()
    false_positives, true_positives, _ = sklearn_roc_curve(is_fake, prob_fake, drop_intermediate=False)
    assert ranking.auroc(tally) == pytest.approx(roc_auc_score(is_fake, prob_fake))
    assert ranking.average_precision(tally) == pytest.approx(average_precision_score(is_fake, prob_fake))
    for rate in (0.01, 0.05, 0.5):
        expected = true_positives[false_positives <= rate].max()
        assert ranking.true_positive_rate(tally, rate) == pytest.approx(expected)
    curve = interp1d(false_positives, true_positives)
    assert ranking.equal_error_rate(tally) == pytest.approx(brentq(lambda x: 1 - x - curve(x), 0, 1))
    found = ranking.roc_curve(tally)
    np.testing.assert_allclose(found, (false_positives, true_positives), atol=1e-12)


@pytest.mark.parametrize(("seed", "decimals"), CASES)
def test_weights_are_repetitions(seed, decimals):
    is_fake, prob_fake = sample(seed, decimals=decimals)
    times = np.random.default_rng(seed).integers(0, 4, len(is_fake))
    weighted = Ranking(prob_fake, is_fake, prob_fake)
    repeated = Ranking(*(np.repeat(values, times) for values in (prob_fake, is_fake, prob_fake)))
    one, other = weighted.tally(times.astype(float)), repeated.tally()
    for metric in (ranking.auroc, ranking.average_precision, ranking.equal_error_rate):
        assert metric(one) == pytest.approx(metric(other))
    assert ranking.true_positive_rate(one, 0.05) == pytest.approx(ranking.true_positive_rate(other, 0.05))
    assert ranking.calibration_error(one) == pytest.approx(ranking.calibration_error(other))
    placements = np.repeat(ranking.placements(one), times)
    np.testing.assert_allclose(placements, ranking.placements(other))


def test_fractional_weights_agree_with_scikit_learn():
    is_fake, prob_fake = sample(9)
    weights = np.random.default_rng(9).random(len(is_fake))
    tally = Ranking(prob_fake, is_fake, prob_fake).tally(weights)
    assert ranking.auroc(tally) == pytest.approx(roc_auc_score(is_fake, prob_fake, sample_weight=weights))
    expected = average_precision_score(is_fake, prob_fake, sample_weight=weights)
    assert ranking.average_precision(tally) == pytest.approx(expected)


def test_placements_average_to_the_auroc_of_a_part_against_the_other_class():
    is_fake, prob_fake = sample(3, decimals=1)
    ranked = Ranking(prob_fake, is_fake, prob_fake)
    placements = ranking.placements(ranked.tally())
    some_fakes = is_fake & (np.arange(len(is_fake)) % 3 == 0)
    chosen = some_fakes | ~is_fake
    assert placements[some_fakes].mean() == pytest.approx(roc_auc_score(is_fake[chosen], prob_fake[chosen]))
    some_reals = ~is_fake & (np.arange(len(is_fake)) % 2 == 0)
    chosen = some_reals | is_fake
    assert placements[some_reals].mean() == pytest.approx(roc_auc_score(is_fake[chosen], prob_fake[chosen]))


def test_perfect_reversed_and_constant_detectors():
    is_fake = np.array([True, True, False, False])
    for scores, expected in (([1, 0.9, 0.1, 0], (1, 0, 1)), ([0, 0.1, 0.9, 1], (0, 1, 0)), ([0.5] * 4, (0.5, 0.5, 0))):
        tally = Ranking(np.array(scores), is_fake, np.array(scores)).tally()
        found = ranking.auroc(tally), ranking.equal_error_rate(tally), ranking.true_positive_rate(tally, 0.05)
        assert found == pytest.approx(expected)


def test_equal_error_rate_by_hand():
    # Falling scores: F R F F R R (F fake). After k images, false alarms and misses: 0/3 2/3, 1/3 2/3, 1/3 1/3: EER 1/3.
    is_fake = np.array([1, 0, 1, 1, 0, 0], bool)
    scores = np.arange(6, 0, -1.0)
    assert ranking.equal_error_rate(Ranking(scores, is_fake, scores / 6).tally()) == pytest.approx(1 / 3)


def test_true_positive_rate_at_exactly_the_allowed_number_of_false_alarms():
    # One of 100 real images above every fake one: at 1 % it may be predicted fake, and all fake ones are found.
    is_fake = np.r_[np.zeros(100, bool), np.ones(10, bool)]
    scores = np.r_[1, np.linspace(0, 0.1, 99), np.linspace(0.5, 0.9, 10)]
    tally = Ranking(scores, is_fake, scores).tally()
    assert ranking.true_positive_rate(tally, 0.01) == 1
    assert ranking.true_positive_rate(tally, 0.0099) == 0


def test_calibration_error_by_hand():
    # Two scores only, so two bins: 10 images at P(fake) .8, 6 of them fake (gap .2); 30 at .1, 6 of them fake (gap .1).
    prob_fake = np.repeat([0.8, 0.1], [10, 30])
    is_fake = np.r_[np.arange(10) < 6, np.arange(30) < 6]
    ranked = Ranking(prob_fake, is_fake, prob_fake)
    assert ranking.calibration_error(ranked.tally()) == pytest.approx((10 * 0.2 + 30 * 0.1) / 40)
    weight, mean_prob, share_fake = ranking.reliability(ranked.tally())
    np.testing.assert_allclose([weight, mean_prob, share_fake], [[0.25, 0.75], [0.8, 0.1], [0.6, 0.2]])


def test_bins_have_equal_mass_without_ties():
    is_fake, prob_fake = sample(0, size=15 * 7)
    ranked = Ranking(prob_fake, is_fake, prob_fake)
    weight, mean_prob, share_fake = ranking.reliability(ranked.tally())
    np.testing.assert_allclose(weight, 1 / 15)
    by_score = np.argsort(-prob_fake).reshape(15, 7)
    np.testing.assert_allclose(mean_prob, prob_fake[by_score].mean(axis=1))
    np.testing.assert_allclose(share_fake, is_fake[by_score].mean(axis=1))
    assert ranking.calibration_error(ranked.tally()) == pytest.approx(np.abs(mean_prob - share_fake).mean())


def test_calibration_does_not_depend_on_the_order_of_rows():
    is_fake, prob_fake = sample(1, decimals=1)
    order = np.random.default_rng(0).permutation(len(is_fake))
    one, other = Ranking(prob_fake, is_fake, prob_fake), Ranking(prob_fake[order], is_fake[order], prob_fake[order])
    assert ranking.calibration_error(one.tally()) == pytest.approx(ranking.calibration_error(other.tally()))


def test_probabilities_of_exactly_zero_and_one():
    is_fake = np.array([True, False, True, False])
    prob_fake = np.float32([1, 0, 1, 1])
    scores = log_odds(np.stack([1 - prob_fake, prob_fake], axis=1))
    ranked = Ranking(scores, is_fake, prob_fake)
    assert ranking.auroc(ranked.tally()) == pytest.approx(0.75)
    assert ranking.calibration_error(ranked.tally()) == pytest.approx(0.75 * (1 / 3))
