"""From the two letters to probabilities: token ids of A and B, softmax of their logits, decision."""

from collections.abc import Callable, Sequence

import numpy as np

from dfbench.data.sources import FAKE, LABELS, REAL
from dfbench.errors import InputError


def answer_token_ids(encode: Callable[[str], Sequence[int]], prompt: str, where: object) -> tuple[int, int]:
    """Token ids of A and B as they follow `prompt` under the tokenizer at hand.

    encode: text -> token ids, special tokens in the text understood, none added.
    Raises InputError (its place being `where`) where a letter is not one token or merges with the prompt's last one.
    """
    before = list(encode(prompt))
    found = []
    for letter in LABELS:
        after = list(encode(prompt + letter))
        if len(after) != len(before) + 1 or after[:-1] != before:
            raise InputError(
                where,
                found=f"the answer {letter} as {len(after) - len(before)} tokens after the prompt",
                expected="exactly one token more than the prompt alone",
                remedy="use the tokenizer that belongs to the model",
            )
        found.append(after[-1])
    return found[0], found[1]


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
