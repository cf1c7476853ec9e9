"""Numbers of one detector on one group of images: from counts, and intervals for proportions.

B (fake) is the positive class. Every function takes arrays of any shape that broadcast together and gives NaN where a
number is not defined, so one call serves a single group, a table of groups, or all bootstrap draws of both.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import binomtest

Array = np.ndarray


@dataclass(frozen=True)
class Counts:
    """Images of a group by class, and how many of each the detector got right (whole numbers, or sums of weights).

    num_real, num_fake: images; right_real, right_fake: those called A and B, respectively.
    """

    num_real: Array
    right_real: Array
    num_fake: Array
    right_fake: Array

    @property
    def num_images(self) -> Array:
        return self.num_real + self.num_fake

    @property
    def num_called_fake(self) -> Array:
        """How often the answer was B."""
        return self.right_fake + self.num_real - self.right_real


def accuracy(counts: Counts) -> Array:
    """Share of right answers."""
    return ratio(counts.right_real + counts.right_fake, counts.num_images)


def f1_fake(counts: Counts) -> Array:
    """F1 with fake as the positive class, 2 TP / (2 TP + FP + FN); not defined without fake images."""
    return ratio(2 * counts.right_fake, _where(counts.num_fake, counts.num_fake + counts.num_called_fake))


def f1_real(counts: Counts) -> Array:
    """F1 with real as the positive class; not defined without real images."""
    num_called_real = counts.num_images - counts.num_called_fake
    return ratio(2 * counts.right_real, _where(counts.num_real, counts.num_real + num_called_real))


def f1_macro(counts: Counts) -> Array:
    """Mean of both F1; not defined where one class is missing."""
    return (f1_fake(counts) + f1_real(counts)) / 2


def balanced_accuracy(counts: Counts) -> Array:
    """Mean of the accuracies on real and on fake images; not defined where one class is missing."""
    return (ratio(counts.right_real, counts.num_real) + ratio(counts.right_fake, counts.num_fake)) / 2


def wilson_interval(successes: Array, total: Array, level: float = 0.95) -> tuple[Array, Array]:
    """(low, high) of a proportion by Wilson's score method; NaN where `total` is 0.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    z2 = ndtri((1 + level) / 2) ** 2
    share = ratio(successes, total)
    with np.errstate(divide="ignore", invalid="ignore"):
        center = (share + z2 / (2 * total)) / (1 + z2 / total)
        half = np.sqrt(z2 * (share * (1 - share) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    # At 0 and 1 the ends are exact; rounding must not put them a hair inside.
    low, high = np.where(share == 0, 0.0, center - half), np.where(share == 1, 1.0, center + half)
    return low, high


def mcnemar_p(only_first_right: int, only_second_right: int) -> float:
    """Two-sided p-value of McNemar's exact test: would a fair coin split what just one got right so unevenly?"""
    discordant = only_first_right + only_second_right
    return float(binomtest(only_first_right, discordant).pvalue) if discordant else 1.0


def cohen_kappa(first: Array, second: Array) -> float:
    """Cohen's kappa of two boolean arrays: agreement beyond chance; NaN where both give one same answer throughout."""
    agreement = float((first == second).mean())
    share_first, share_second = float(first.mean()), float(second.mean())
    by_chance = share_first * share_second + (1 - share_first) * (1 - share_second)
    return (agreement - by_chance) / (1 - by_chance) if by_chance < 1 else float("nan")


def ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient, NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(numerator, float) / np.where(np.asarray(denominator) == 0, np.nan, denominator)


def _where(condition: Array, values: Array) -> Array:
    return np.where(np.asarray(condition) == 0, np.nan, values)
