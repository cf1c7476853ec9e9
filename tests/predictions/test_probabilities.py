"""Probabilities that keep both tails, and decisions."""

import warnings

import numpy as np
import pytest

from dfbench.predictions.probabilities import answers, log_odds, probabilities, sigmoid


def test_probabilities_are_the_softmax_in_float32():
    logits = np.array([[0, 0], [1, 0], [-3.5, 2.25]], dtype=np.float32)
    exponentials = np.exp(logits.astype(np.float64))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    found = probabilities(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-7)


def test_neither_tail_of_a_pair_is_lost():
    # softmax by subtraction from 1 would give 0; e^-40 is 4.248e-18.
    found = probabilities(np.array([[40, 0], [0, 40]]))
    np.testing.assert_allclose([found[0, 1], found[1, 0]], 4.248354e-18, rtol=1e-6)
    assert found[0, 0] == found[1, 1] == 1


def test_huge_differences_give_exact_zero_and_one_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = probabilities(np.array([[3e38, -3e38], [-500, 500]]))
    assert found.tolist() == [[1, 0], [0, 1]]


def test_the_larger_wins_and_a_tie_is_b():
    assert answers(np.array([[0.6, 0.4], [0.4, 0.6], [0.5, 0.5]])).tolist() == ["A", "B", "B"]


def test_log_odds_keep_an_order_that_float32_probabilities_lose():
    pairs = np.float32([[1e-9, 1], [1e-12, 1], [0, 1], [1, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = log_odds(pairs)
    assert found[0] == pytest.approx(9 * np.log(10))
    assert found[0] < found[1] < found[2] == np.inf
    assert found[3] == -np.inf
    # A floor of 1e-10 counts for the second and the third pair, and for the real half of the fourth.
    np.testing.assert_allclose(log_odds(pairs, floor=1e-10) / np.log(10), [9, 10, 10, -10])


def test_the_sigmoid_reverses_the_log_odds_and_does_not_warn():
    values = np.array([-1e4, -30, 0, 2, 1e4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sigmoid(values)
    assert found.tolist()[0::4] == [0, 1]
    np.testing.assert_allclose(log_odds(np.stack([sigmoid(-values), found], axis=1))[1:4], values[1:4], rtol=1e-12)
