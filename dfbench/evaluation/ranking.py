"""Numbers from how a detector ranks images: AUROC, average precision, EER, TPR at a given FPR; and calibration.

B (fake) is the positive class, and an image's score is the log-odds of P(fake): the order of P(fake), but without the
ties that float32 makes of everything close to 1. Every number takes a weight for each image and is exact under ties.
Weights that count how often an image was drawn give the number of a bootstrap sample in linear time: the order stays.
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

NUM_BINS = 15
"""Bins of the expected calibration error, of equal mass."""


@dataclass(frozen=True)
class Tally:
    """Weights of real and fake images at each distinct score, highest first; `above_*` are their running sums."""

    ranking: "Ranking"
    real: Array
    fake: Array
    above_real: Array
    above_fake: Array

    @property
    def total_real(self) -> float:
        return self.above_real[-1]

    @property
    def total_fake(self) -> float:
        return self.above_fake[-1]

    @property
    def has_both(self) -> bool:
        return bool(self.total_real > 0 and self.total_fake > 0)


class Ranking:
    """Images in order of falling score, equal scores taken together.

    scores: (N,), any order-preserving function of P(fake); is_fake: (N,) bool; prob_fake: (N,) in [0, 1].
    """

    def __init__(self, scores: Array, is_fake: Array, prob_fake: Array) -> None:
        negative, first, place = np.unique(-np.asarray(scores), return_index=True, return_inverse=True)
        self.num_distinct = len(negative)
        self.prob_fake = np.asarray(prob_fake, np.float64)[first]
        self.slot = place + self.num_distinct * np.asarray(is_fake)
        """(N,) where an image's weight goes in a table (2, num_distinct) of real and fake images."""

    def tally(self, weights: Array | None = None) -> Tally:
        """weights: (N,), ones by default."""
        weights = np.ones(len(self.slot)) if weights is None else weights
        real, fake = np.bincount(self.slot, weights=weights, minlength=2 * self.num_distinct).reshape(2, -1)
        return Tally(self, real, fake, np.cumsum(real), np.cumsum(fake))


def auroc(tally: Tally) -> float:
    """Area under the ROC curve, ties counted half (the Mann-Whitney statistic)."""
    wins = (tally.real * (tally.above_fake - tally.fake / 2)).sum()  # np.dot would wake BLAS threads for so little
    return float(wins / (tally.total_real * tally.total_fake))


def placements(tally: Tally) -> Array:
    """(N,) for each image, the share of the other class that it is on the right side of; ties count half.

    Their mean over all fake images is the AUROC, as is that over all real ones; over the images of one source it is the
    AUROC of that source against all images of the other class.
    """
    of_real = (tally.above_fake - tally.fake / 2) / tally.total_fake
    of_fake = 1 - (tally.above_real - tally.real / 2) / tally.total_real
    return np.concatenate([of_real, of_fake])[tally.ranking.slot]


def average_precision(tally: Tally) -> float:
    """Mean of the precisions at the scores of the fake images, as scikit-learn defines it (no interpolation)."""
    above = tally.above_fake + tally.above_real
    precision = np.divide(tally.above_fake, above, out=np.zeros_like(above), where=above > 0)
    return float((tally.fake * precision).sum() / tally.total_fake)


def equal_error_rate(tally: Tally) -> float:
    """Where the false-positive rate equals the false-negative rate, on the straight-line ROC."""
    false_positives, false_negatives = tally.above_real / tally.total_real, 1 - tally.above_fake / tally.total_fake
    after = int(np.argmax(false_positives >= false_negatives))
    x0, y0 = (false_positives[after - 1], false_negatives[after - 1]) if after else (0.0, 1.0)
    x1, y1 = false_positives[after], false_negatives[after]
    step = (y0 - x0) / ((x1 - x0) + (y0 - y1))
    return float(x0 + step * (x1 - x0))


def true_positive_rate(tally: Tally, false_positive_rate: float) -> float:
    """Largest share of fake images found by a threshold that predicts fake of at most this share of the real ones."""
    allowed = false_positive_rate * tally.total_real * (1 + 1e-12)
    reached = int(np.searchsorted(tally.above_real, allowed, side="right"))
    return float(tally.above_fake[reached - 1] / tally.total_fake) if reached else 0.0


def roc_curve(tally: Tally) -> tuple[Array, Array]:
    """(false-positive rates, true-positive rates), from (0, 0) to (1, 1)."""
    rates = (tally.above_real / tally.total_real, tally.above_fake / tally.total_fake)
    return tuple(np.concatenate([[0.0], rate]) for rate in rates)


def reliability(tally: Tally) -> tuple[Array, Array, Array]:
    """(share of all images, mean P(fake), share of fake images) of up to NUM_BINS bins, highest P(fake) first.

    Bins have equal mass as far as ties allow: images of one score always share a bin, so that the result does not hang
    on the order of rows.
    """
    above = tally.above_real + tally.above_fake
    marks = above[-1] * np.arange(1, NUM_BINS + 1) / NUM_BINS
    last = np.unique(np.searchsorted(above, marks * (1 - 1e-12)))
    above_prob = np.cumsum((tally.real + tally.fake) * tally.ranking.prob_fake)
    mass, prob, fake = (np.diff(sums[last], prepend=0) for sums in (above, above_prob, tally.above_fake))
    filled = mass > 0
    mass, prob, fake = mass[filled], prob[filled], fake[filled]
    return mass / above[-1], prob / mass, fake / mass


def calibration_error(tally: Tally) -> float:
    """Expected calibration error of P(fake): |mean P(fake) - share of fake images|, averaged over bins by mass."""
    weight, mean_prob, share_fake = reliability(tally)
    return float(np.sum(weight * np.abs(mean_prob - share_fake)))
