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
    """Softmax over the two letters: float32 logits (N, 2) -> float32 probabilities (N, 2), columns A and B.

    Each column is computed on its own as 1 / (1 + exp(-difference)), so neither tail is lost to the other's rounding.
    """
    logits = np.asarray(logits, dtype=np.float32)
    with np.errstate(over="ignore"):  # exp(large) = inf gives the right 0
        return (1 / (1 + np.exp(logits[:, ::-1] - logits))).astype(np.float32)


def answers(probability_pairs: np.ndarray) -> np.ndarray:
    """(N, 2) probabilities of A and B -> (N,) letters: the larger one; a tie is B, as in upstream's `np.where`."""
    return np.where(probability_pairs[:, 0] > probability_pairs[:, 1], REAL, FAKE)
