"""From the logits of the two letters to probabilities and a decision."""

import numpy as np

from dfbench.data.sources import FAKE, REAL


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the two letters: float32 logits (N, 2) -> float32 probabilities (N, 2), columns A and B.

    Each column is computed on its own as 1 / (1 + exp(-difference)), so neither tail is lost to the other's rounding.
    """
    logits = np.asarray(logits, dtype=np.float32)
    with np.errstate(over="ignore"):  # exp(large) = inf gives the right 0
        return (1 / (1 + np.exp(logits[:, ::-1] - logits))).astype(np.float32)


def answers(probability_pairs: np.ndarray) -> np.ndarray:
    """(N, 2) probabilities of A and B -> (N,) letters: the larger one; a tie is B, as in upstream's `np.where`."""
    return np.where(probability_pairs[:, 0] > probability_pairs[:, 1], REAL, FAKE)
