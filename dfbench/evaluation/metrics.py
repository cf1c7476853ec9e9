"""The metrics: one registered function each, from which the bootstrap, the tables, the report and its glossary follow.

B (fake) is the positive class. Every function takes a `Sample` and gives NaN where a number is not defined.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dfbench.evaluation import ranking
from dfbench.evaluation.ranking import Tally

Array = np.ndarray

LEVEL = 0.95
"""Of all intervals."""


def percent(share: float) -> str:
    """0.98414 -> "98.41"; an en dash where the number is not defined."""
    return "–" if np.isnan(share) else f"{100 * share:.2f}"


@dataclass(frozen=True)
class Sample:
    """G groups of images under one weighting, as D detectors answer them: what metrics are computed from.

    All arrays are (G, D), whole numbers or sums of weights. num_real, num_fake: images; right_real, right_fake: those
    predicted A and B, respectively. absolute_error, squared_error: sums of P(fake) - label (1 fake, 0 real).
    placements: mean of `ranking.placements` over a group's images, ranked among all images; NaN in groups of both
    classes. tallies: {(group, detector): tally} of the groups of both classes.
    """

    num_real: Array
    right_real: Array
    num_fake: Array
    right_fake: Array
    absolute_error: Array | float = np.nan
    squared_error: Array | float = np.nan
    placements: Array | float = np.nan
    tallies: Mapping[tuple[int, int], Tally] = field(default_factory=dict)

    @property
    def num_images(self) -> Array:
        return self.num_real + self.num_fake

    @property
    def num_right(self) -> Array:
        return self.right_real + self.right_fake

    @property
    def num_predicted_fake(self) -> Array:
        """How often the answer was B."""
        return self.right_fake + self.num_real - self.right_real

    def each_tally(self, function: Callable[[Tally], float]) -> Array:
        """(G, D) values of a function of one ranking, NaN in groups of one class."""
        values = np.full(np.shape(self.num_images), np.nan)
        for place, tally in self.tallies.items():
            values[place] = function(tally)
        return values


@dataclass(frozen=True)
class Metric:
    """One number of a group of images and a detector.

    key: names its columns. title: what tables call it. definition: for the glossary, a sentence or two.
    function: `Sample` -> (G, D). needs_both: only defined for groups with images of both classes; NaN elsewhere.
    interval: "wilson" for a share of all the group's images, "bootstrap" for percentiles of the resamples, or "none".
    show: value -> text. short_title: where four detectors must fit into a terminal. is_compared: detectors are
    compared by their difference in it.
    """

    key: str
    title: str
    definition: str
    function: Callable[[Sample], Array]
    needs_both: bool = False
    interval: Literal["wilson", "bootstrap", "none"] = "bootstrap"
    show: Callable[[float], str] = percent
    short_title: str = ""
    is_compared: bool = False

    def measure(self, sample: Sample) -> Array:
        """(G, D) values, NaN where not defined."""
        defined = (sample.num_real > 0) & (sample.num_fake > 0) if self.needs_both else True
        return np.where(defined, self.function(sample), np.nan)

    def bounds(self, values: Array, resampled: Array, num_images: Array) -> tuple[Array, Array]:
        """(low, high) of unweighted values (G, D), given those of the resamples (R, G, D)."""
        return wilson_interval(values, num_images) if self.interval == "wilson" else self.percentiles(resampled)

    def percentiles(self, resampled: Array) -> tuple[Array, Array]:
        """(low, high) of the resamples' values (R, ...)."""
        return percentile_interval(resampled[:0] if self.interval == "none" else resampled)

    def show_with_interval(self, value: float, low: float, high: float) -> str:
        """ "98.41 [98.20,98.62]"; only the number where it has no interval."""
        if np.isnan(low):
            return self.show(value)
        # Without the zeros, four detectors fit a terminal.
        low_text, high_text = (self.show(bound).replace("100.00", "100") for bound in (low, high))
        return f"{self.show(value)} [{low_text},{high_text}]"


METRICS: dict[str, Metric] = {}
"""All metrics by key, in the order of the tables."""


def register(metric: Metric) -> None:
    """Make a metric known to the bootstrap, the tables and the report. Raises ValueError where its key is taken."""
    if metric.key in METRICS:
        raise ValueError(f"the metric {metric.key} is registered already")
    METRICS[metric.key] = metric


def metric(title: str, **options):
    """Decorator that registers a function under its name; its docstring is the definition. options: see `Metric`."""

    def add(function: Callable[[Sample], Array]) -> Callable[[Sample], Array]:
        register(Metric(function.__name__, title, " ".join((function.__doc__ or "").split()), function, **options))
        return function

    return add


@metric("accuracy", interval="wilson", is_compared=True)
def accuracy(sample: Sample) -> Array:
    """Share of right answers."""
    return ratio(sample.num_right, sample.num_images)


@metric("balanced accuracy", needs_both=True, short_title="balanced acc.", is_compared=True)
def balanced_accuracy(sample: Sample) -> Array:
    """Mean of the accuracies on real and on fake images; the share of real images does not matter."""
    return (ratio(sample.right_real, sample.num_real) + ratio(sample.right_fake, sample.num_fake)) / 2


@metric("F1 (fake)")
def f1_fake(sample: Sample) -> Array:
    """Harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN), with fake as the positive class. It hangs on the
    share of real images."""
    return ratio(2 * sample.right_fake, _where(sample.num_fake, sample.num_fake + sample.num_predicted_fake))


@metric("F1 (real)")
def f1_real(sample: Sample) -> Array:
    """The same with real as the positive class."""
    num_predicted_real = sample.num_images - sample.num_predicted_fake
    return ratio(2 * sample.right_real, _where(sample.num_real, sample.num_real + num_predicted_real))


@metric("F1 (macro)", needs_both=True)
def f1_macro(sample: Sample) -> Array:
    """Mean of F1 (fake) and F1 (real)."""
    return (f1_fake(sample) + f1_real(sample)) / 2


@metric("AUROC", needs_both=True, is_compared=True)
def auroc(sample: Sample) -> Array:
    """Chance that a fake image has a higher P(fake) than a real one, ties counted half; the threshold does not
    matter."""
    return sample.each_tally(ranking.auroc)


@metric("AUROC vs other class")
def auroc_vs_other_class(sample: Sample) -> Array:
    """Of a source or category with one class: its images against all images of the other class."""
    return sample.placements


@metric("average precision", needs_both=True, short_title="avg. precision")
def average_precision(sample: Sample) -> Array:
    """Mean of the precisions at the scores of the fake images. It hangs on the share of real images."""
    return sample.each_tally(ranking.average_precision)


@metric("EER", needs_both=True)
def eer(sample: Sample) -> Array:
    """Equal error rate: where as large a share of real images is predicted fake as of fake ones real."""
    return sample.each_tally(ranking.equal_error_rate)


@metric("TPR at 1 % FPR", needs_both=True)
def tpr_at_fpr_1(sample: Sample) -> Array:
    """Share of fake images found by a threshold that predicts fake of at most 1 % of the real ones. With few hundred
    real images it hangs on a handful of them, and its interval is too narrow."""
    return sample.each_tally(lambda tally: ranking.true_positive_rate(tally, 0.01))


@metric("TPR at 5 % FPR", needs_both=True)
def tpr_at_fpr_5(sample: Sample) -> Array:
    """The same at 5 % of the real images."""
    return sample.each_tally(lambda tally: ranking.true_positive_rate(tally, 0.05))


@metric("Brier score")
def brier(sample: Sample) -> Array:
    """Mean squared difference of P(fake) and the label (1 fake, 0 real)."""
    return ratio(sample.squared_error, sample.num_images)


@metric("calibration error", short_title="calibration err.")
def ece(sample: Sample) -> Array:
    """Mean of |mean P(fake) − share of fake images| over 15 bins of equal size. It is biased upwards on few images."""
    of_both = sample.each_tally(ranking.calibration_error)
    # In a group of one class all errors of P(fake) have one sign, so the calibration error is their mean.
    return np.where(np.isnan(of_both), ratio(sample.absolute_error, sample.num_images), of_both)


def ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient, NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(numerator, float) / np.where(np.asarray(denominator) == 0, np.nan, denominator)


def _where(condition: Array, values: Array) -> Array:
    return np.where(np.asarray(condition) == 0, np.nan, values)


def wilson_interval(share: Array, total: Array) -> tuple[Array, Array]:
    """(low, high) of a proportion of `total` by Wilson's score method; NaN where `total` is 0.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    from scipy.special import ndtri

    total, z2 = np.asarray(total, float), ndtri((1 + LEVEL) / 2) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        center = (share + z2 / (2 * total)) / (1 + z2 / total)
        half = np.sqrt(z2 * (share * (1 - share) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    # At 0 and 1 the ends are exact; rounding must not put them a hair inside.
    low, high = np.where(share == 0, 0.0, center - half), np.where(share == 1, 1.0, center + half)
    return low, high


def percentile_interval(resampled: Array) -> tuple[Array, Array]:
    """(low, high) percentiles over the first axis. NaN where a number is not defined in most of the resamples."""
    if len(resampled) == 0:
        return np.full(resampled.shape[1:], np.nan), np.full(resampled.shape[1:], np.nan)
    defined = np.isfinite(resampled).mean(axis=0) > 0.5
    filled = np.where(defined, resampled, 0)
    low, high = np.nanquantile(filled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.where(defined, low, np.nan), np.where(defined, high, np.nan)


def mcnemar_p(only_first_right: int, only_second_right: int) -> float:
    """Two-sided p-value of McNemar's exact test: would a fair coin split what just one got right so unevenly?"""
    from scipy.stats import binomtest

    discordant = only_first_right + only_second_right
    return float(binomtest(only_first_right, discordant).pvalue) if discordant else 1.0


def cohen_kappa(first: Array, second: Array) -> float:
    """Cohen's kappa of two boolean arrays: agreement beyond chance; NaN where both give one same answer throughout."""
    agreement = float((first == second).mean())
    share_first, share_second = float(first.mean()), float(second.mean())
    by_chance = share_first * share_second + (1 - share_first) * (1 - share_second)
    return (agreement - by_chance) / (1 - by_chance) if by_chance < 1 else float("nan")
