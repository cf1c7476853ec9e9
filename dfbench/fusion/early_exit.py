"""The exact early exit: where the agents that have answered settle MoA-DF's decision, the last one need not look.

MoA-DF predicts real if the sum of its K agents' P(A) exceeds K / 2. Each P(A) lies in [0, 1], so once K - 1 of them sum
to s, the decision is open only for K / 2 - 1 <= s <= K / 2: for three agents, 0.5 <= P1(A) + P2(A) <= 1.5. In terms of
both letters: as long as the sums of P(A) and of P(B) differ by no more than 1.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from dfbench.errors import InputError
from dfbench.predictions.join import Predictions, join, refuse_copies
from dfbench.predictions.probabilities import answers
from dfbench.predictions.reader import Detector

_ROUNDING = 2e-5
"""Differences closer than this to 1 count as open, so that no rounding of written values can turn a decision."""


def settled_images(detectors: Sequence[Detector]) -> set[str]:
    """Images that all of these agents answered and whose decision one more agent cannot change.

    Raises InputError as `join` and `refuse_copies` do.
    """
    predictions = join(detectors, partial=True)
    refuse_copies(predictions)
    return set(predictions.images[_is_settled(predictions)])


def _is_settled(predictions: Predictions) -> np.ndarray:
    # Both letters, because upstream's rounded pairs need not sum to 1.
    sums = predictions.prob.astype(np.float64).sum(axis=1)
    return np.abs(sums[:, 0] - sums[:, 1]) > 1 + _ROUNDING


def complete(detectors: Sequence[Detector]) -> tuple[list[Detector], set[str]]:
    """The agents with the rows that the early-exited one of them lacks, and those images.

    For each image that the others settle, it gets the mean of their pairs: MoA-DF's mean is then theirs, and its
    decision the one that any answer would have given. Other agents, and images that are not settled, stay as they are.
    Raises InputError where more than one agent ran that way.
    """
    exited = [detector for detector in detectors if detector.is_early_exited]
    if not exited:
        return list(detectors), set()
    if len(exited) > 1:
        raise InputError(
            f"{', '.join(map(str, exited))}: {len(exited)} agents ran with --only_undecided, and only the last "
            f"one can. Score the others without it."
        )
    last = exited[0]
    others = join([detector for detector in detectors if detector is not last], partial=True)
    early = others.take(_is_settled(others) & ~np.isin(others.images, last.frame["image"]))
    if not len(early):
        return list(detectors), set()
    pair = early.prob.mean(axis=1)
    rows = pd.DataFrame({"image": early.images, "label": early.labels, "answer": answers(pair)})
    rows[["logit_A", "logit_B"]], rows[["prob_A", "prob_B"]] = np.float32(np.nan), pair
    completed = replace(last, frame=pd.concat([last.frame, rows.astype(last.frame.dtypes)], ignore_index=True))
    return [completed if detector is last else detector for detector in detectors], set(early.images)


def mark_early(fused: pd.DataFrame, early: set[str], name: str) -> pd.DataFrame:
    """The fused rows with a column `decided_early` (1 or 0), and no P(B) of the agent `name` where it did not look."""
    is_early = fused["image"].isin(early)
    marked = fused.assign(decided_early=is_early.astype(int))
    marked.loc[is_early, f"prob_B_{name}"] = np.nan
    return marked
