"""From the logits of the two letters to probabilities and a decision."""

import numpy as np

from dfbench.data.sources import FAKE, REAL


def probabilities(logits: np.ndarray) -> np.ndarray:
    """(..., 2) logits of A and B -> (..., 2) float32 softmax.

    Each column is a sigmoid of its own, so neither tail is lost to the other's rounding.
    """
    logits = np.asarray(logits, dtype=np.float32)
    with np.errstate(over="ignore"):
        return sigmoid(logits - logits[..., ::-1])


def sigmoid(log_odds: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in the type of its argument; exactly 0 or 1 far out, without a warning."""
    with np.errstate(over="ignore"):  # exp(large) = inf gives the right 0
        return 1 / (1 + np.exp(-log_odds))


def log_odds(prob: np.ndarray, *, floor: np.ndarray | float = 0.0) -> np.ndarray:
    """(..., 2) probabilities of A and B -> (...) float64 log(P(B) / P(A)); infinite where one of them is exactly 0.

    Unlike P(B), they keep the order of images that float32 puts at exactly 1. floor: what smaller probabilities count
    as, to keep log-odds finite.
    """
    with np.errstate(divide="ignore"):
        logarithms = np.log(np.maximum(prob.astype(np.float64), floor))
    return logarithms[..., 1] - logarithms[..., 0]


def predicts_fake(prob: np.ndarray) -> np.ndarray:
    """(..., 2) probabilities of A and B -> (...) bool: the decision; a tie is B, as in upstream's `np.where`."""
    return ~(prob[..., 0] > prob[..., 1])


def answers(prob: np.ndarray) -> np.ndarray:
    """(..., 2) probabilities of A and B -> (...) letters of the decision."""
    return np.where(predicts_fake(prob), FAKE, REAL)
