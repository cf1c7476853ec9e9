"""Probabilities that keep both tails, and decisions."""

import warnings

import numpy as np

from dfbench.predictions.probabilities import answers, probabilities


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
