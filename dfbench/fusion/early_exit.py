"""The exact cascade: where the agents that have answered settle MoA-DF's decision, the last one need not look.

MoA-DF calls an image real if the sum of its K agents' P(A) exceeds K / 2. Each P(A) lies in [0, 1], so once K - 1 of
them sum to s, the decision is open only for K / 2 - 1 <= s <= K / 2: for three agents, 0.5 <= P1(A) + P2(A) <= 1.5. In
terms of both letters: as long as the sums of P(A) and of P(B) differ by no more than 1.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dfbench.errors import InputError
from dfbench.predictions.reader import Detector, join

_ROUNDING = 2e-5
"""Differences closer than this to 1 count as open, so that no rounding of written values can turn a decision."""


def settled_images(detectors: Sequence[Detector]) -> set[str]:
    """Images that all of these agents answered and whose decision one more agent cannot change."""
    joined = join(detectors, partial=True)
    # Both letters, because upstream's rounded pairs need not sum to 1.
    sums = [sum(joined[f"prob_{letter}_{i}"].to_numpy(np.float64) for i in range(len(detectors))) for letter in "AB"]
    return set(joined["image"][np.abs(sums[0] - sums[1]) > 1 + _ROUNDING])


def is_spared(detector: Detector) -> bool:
    """Whether it ran with `--only_undecided`: it answered the images alone that the others leave open."""
    return bool(detector.info.get("only_undecided"))


def complete(detectors: Sequence[Detector]) -> tuple[list[Detector], set[str]]:
    """The agents with the rows that a cascade spared one of them, and those images.

    An agent that is spared gets, for each image that the others settle, the mean of their pairs: MoA-DF's mean is then
    theirs, and its decision the one that any answer would have given. Other agents, and images that are not settled,
    stay as they are. Raises InputError where more than one agent ran that way.
    """
    spared = [i for i, detector in enumerate(detectors) if is_spared(detector)]
    if not spared:
        return list(detectors), set()
    if len(spared) > 1:
        raise InputError(
            ", ".join(str(detectors[i].path) for i in spared),
            found=f"{len(spared)} agents that ran with --only_undecided",
            expected="one, the last",
            remedy="score the others without it",
        )
    last = detectors[spared[0]]
    others = [detector for detector in detectors if detector is not last]
    early = settled_images(others) - set(last.frame["image"])
    joined = join(others, partial=True)
    joined = joined[joined["image"].isin(early)]
    pairs = {
        f"prob_{letter}": joined[[f"prob_{letter}_{i}" for i in range(len(others))]].mean(axis=1) for letter in "AB"
    }
    rows = joined[["image", "label", "source", "category"]].assign(
        answer=np.where(pairs["prob_A"] > pairs["prob_B"], "A", "B"), logit_A=np.nan, logit_B=np.nan, **pairs
    )
    frame = pd.concat([last.frame, rows[last.frame.columns]], ignore_index=True).astype(last.frame.dtypes)
    completed = Detector(last.name, frame, last.path, last.info, last.num_errors)
    return [completed if detector is last else detector for detector in detectors], early


def mark_early(fused: pd.DataFrame, early: set[str], name: str) -> pd.DataFrame:
    """The fused rows with a column `decided_early` (1 or 0), and no P(B) of the agent `name` where it did not look."""
    marked = fused.assign(decided_early=fused["image"].isin(early).astype(int))
    marked.loc[marked["decided_early"] == 1, f"prob_B_{name}"] = np.nan
    return marked
