"""The labelled answers of several detectors, laid out so that every metric of every group is quick to compute again.

Groups of images: each source, each category, real, fake, and all. Inside, images are counted in cells, one for each
pair of source and label: a count of any group is a sum over a few cells. `measure` takes a weight for each image, so
the same code gives the point estimates (no weights), a bootstrap draw (how often each image was drawn) and figures at
another share of real images.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dfbench.data.sources import CATALOGUE, FAKE, REAL, Category
from dfbench.evaluation import metrics, ranking
from dfbench.evaluation.metrics import Counts
from dfbench.evaluation.ranking import Ranking, Tally, log_odds

MIXED = "mixed"
"""Category of a source that the catalogue does not know and that has real and fake images."""

COUNT_METRICS = ("accuracy", "f1_fake", "f1_real", "f1_macro", "balanced_accuracy")
RANKING_METRICS = ("auroc", "average_precision", "eer", "tpr_at_fpr_1", "tpr_at_fpr_5")
METRICS = (*COUNT_METRICS, *RANKING_METRICS, "auroc_vs_other_class", "brier", "ece")
"""All metrics, in the order of the first axis of `AnswerSheet.measure`; B (fake) is the positive class.

auroc_vs_other_class: of a group of one class, against all images of the other one. tpr_at_fpr_1: share of fake images
found where 1 % of the real ones are called fake. brier: mean squared error of P(fake). ece: expected calibration
error.
"""


@dataclass(frozen=True)
class Group:
    """A set of images: `level` is source, category, class or overall; `cells` (num_cells,) says which belong to it."""

    level: str
    name: str
    category: str
    cells: np.ndarray


class AnswerSheet:
    """Rows of a join (see `detectors.join`), all of them labelled, sorted by source and label.

    joined: the rows in that order. groups: in the order of the second axis of `measure`.
    """

    def __init__(self, joined: pd.DataFrame, num_detectors: int) -> None:
        cell_of_row, self.cells = _cells(joined)
        order = np.argsort(cell_of_row, kind="stable")
        self.joined = joined.iloc[order].reset_index(drop=True)
        self.cell = cell_of_row[order]
        self.is_fake = (self.joined["label"] == FAKE).to_numpy()
        self.num_detectors = num_detectors
        prob_real, prob_fake = (self.probabilities(letter) for letter in "AB")
        self.called_fake = prob_real <= prob_fake
        self.prob_fake = prob_fake.astype(np.float64)
        self.scores = log_odds(prob_real, prob_fake)
        self.groups = list_groups(self.cells)
        self._membership = np.stack([group.cells for group in self.groups]).astype(float)
        self._cell_is_fake = (self.cells["label"] == FAKE).to_numpy()
        self._starts = np.searchsorted(self.cell, np.arange(len(self.cells) + 1))
        self._source_start, self._source_size = self._source_blocks()
        error = self.prob_fake - self.is_fake[:, None]
        self._linear = np.hstack([self.right, error**2, np.abs(error)])
        self._rankings = self._rank_groups()

    def probabilities(self, letter: str) -> np.ndarray:
        """(N, D) float32 probabilities of one letter."""
        return self.joined[[f"prob_{letter}_{i}" for i in range(self.num_detectors)]].to_numpy(np.float32)

    @property
    def right(self) -> np.ndarray:
        """(N, D) whether each detector's answer is the label."""
        return self.called_fake == self.is_fake[:, None]

    def _source_blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) the first row and (N,) the number of rows of each row's source."""
        source = self.cells["source"].factorize()[0][self.cell]
        size = np.bincount(source)
        return (np.cumsum(size) - size)[source], size[source]

    def _rank_groups(self) -> dict[int, tuple[np.ndarray, list[Ranking]]]:
        """{group: (its rows, a ranking for each detector)} of the groups with both classes."""
        rankings = {}
        for number, group in enumerate(self.groups):
            if group.cells[self._cell_is_fake].any() and group.cells[~self._cell_is_fake].any():
                rows = np.flatnonzero(group.cells[self.cell])
                rankings[number] = rows, [self._rank(rows, i) for i in range(self.num_detectors)]
        return rankings

    def _rank(self, rows: np.ndarray, detector: int) -> Ranking:
        return Ranking(self.scores[rows, detector], self.is_fake[rows], self.prob_fake[rows, detector])

    def overall_ranking(self, detector: int) -> Ranking | None:
        """The ranking of all images; None where they are all real or all fake."""
        number = len(self.groups) - 1
        return self._rankings[number][1][detector] if number in self._rankings else None

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(N,) how often each image stands in a bootstrap sample that keeps the size of every source."""
        rows = self._source_start + (rng.random(len(self.cell)) * self._source_size).astype(np.intp)
        return np.bincount(rows, minlength=len(self.cell)).astype(float)

    def counts(self) -> Counts:
        """Images and right answers, each (G, D)."""
        mass, sums = self._sum_cells(np.ones(len(self.cell)))
        return self._group_counts(mass, sums, self._membership)

    def measure(self, weights: np.ndarray | None = None, *, overall_only: bool = False) -> np.ndarray:
        """(M, G, D) METRICS x groups x detectors, NaN where not defined; with `overall_only`, (M, 1, D).

        weights: (N,), at least 0; ones by default.
        """
        weights = np.ones(len(self.cell)) if weights is None else weights
        mass, sums = self._sum_cells(weights)
        membership = self._membership[-1:] if overall_only else self._membership
        counts = self._group_counts(mass, sums, membership)
        values = np.full((len(METRICS), *counts.num_images.shape), np.nan)
        for row, name in enumerate(COUNT_METRICS):
            values[row] = getattr(metrics, name)(counts)
        _, squared, absolute = np.split(membership @ sums, 3, axis=1)
        values[METRICS.index("brier")] = metrics.ratio(squared, counts.num_images)
        # In a group of one class all errors of P(fake) have one sign, so the calibration error is their mean.
        values[METRICS.index("ece")] = metrics.ratio(absolute, counts.num_images)
        skipped = len(self.groups) - len(membership)
        for group, (rows, rankings) in self._rankings.items():
            if group >= skipped:
                for detector, ranked in enumerate(rankings):
                    tally = ranked.tally(weights[rows])
                    _fill_ranking_metrics(values[:, group - skipped, detector], ranked, tally)
                    if group == len(self.groups) - 1 and not overall_only:
                        self._compare_with_other_class(values[:, :, detector], ranked, tally, weights)
        return values

    def _sum_cells(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(C,) weight of each cell, (C, 3 D) its sums of right answers, squared and absolute errors."""
        spans = [slice(*span) for span in zip(self._starts[:-1], self._starts[1:], strict=True)]
        sums = np.stack([weights[span] @ self._linear[span] for span in spans])
        return np.add.reduceat(weights, self._starts[:-1]), sums

    def _group_counts(self, mass: np.ndarray, sums: np.ndarray, membership: np.ndarray) -> Counts:
        right = sums[:, : self.num_detectors]
        images = np.repeat(mass[:, None], self.num_detectors, axis=1)
        sides = ((~self._cell_is_fake)[:, None], self._cell_is_fake[:, None])
        return Counts(*(membership @ (values * side) for side in sides for values in (images, right)))

    def _compare_with_other_class(self, values: np.ndarray, ranked: Ranking, tally: Tally, weights: np.ndarray) -> None:
        """AUROC of each group of one class against all images of the other: the mean placement of its images.

        values: (M, G) to write into; ranked, tally: of all images.
        """
        if tally.has_both:
            one_class = [group not in self._rankings for group in range(len(self.groups))]
            parts = (weights * ranked.placements(tally), weights)
            wins, mass = (self._membership @ np.add.reduceat(part, self._starts[:-1]) for part in parts)
            values[METRICS.index("auroc_vs_other_class"), one_class] = metrics.ratio(wins, mass)[one_class]


def _fill_ranking_metrics(values: np.ndarray, ranked: Ranking, tally: Tally) -> None:
    """Write RANKING_METRICS and the calibration error of one group and detector into `values` (M,)."""
    if not tally.has_both:
        return
    first = METRICS.index(RANKING_METRICS[0])
    values[first : first + len(RANKING_METRICS)] = (
        ranking.auroc(tally),
        ranking.average_precision(tally),
        ranking.equal_error_rate(tally),
        ranking.true_positive_rate(tally, 0.01),
        ranking.true_positive_rate(tally, 0.05),
    )
    values[METRICS.index("ece")] = ranked.calibration_error(tally)


def _cells(joined: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """(cell of each row, one row for each cell: source, label, category), sources in the catalogue's order."""
    place = {source: i for i, source in enumerate(CATALOGUE)}
    cells = joined[["source", "label", "category"]].drop_duplicates()
    cells = cells.sort_values(
        ["source", "label"], key=lambda column: column.map(lambda name: (place.get(name, len(place)), name))
    ).reset_index(drop=True)
    number = {(source, label): i for i, (source, label) in enumerate(zip(cells["source"], cells["label"], strict=True))}
    rows = zip(joined["source"], joined["label"], strict=True)
    return np.fromiter((number[row] for row in rows), dtype=np.intp, count=len(joined)), cells


def list_groups(cells: pd.DataFrame) -> list[Group]:
    """All groups that have images, level by level; all images are the last one."""
    groups = []
    for source, rows in cells.groupby("source", sort=False):
        category = str(rows["category"].iloc[0]) if rows["category"].nunique() == 1 else MIXED
        groups.append(Group("source", str(source), category, (cells["source"] == source).to_numpy()))
    for category in Category:
        members = (cells["category"] == category).to_numpy()
        if members.any():
            groups.append(Group("category", str(category), str(category), members))
    for name, label in (("real", REAL), ("fake", FAKE)):
        members = (cells["label"] == label).to_numpy()
        if members.any():
            groups.append(Group("class", name, "", members))
    groups.append(Group("overall", "all images", "", np.ones(len(cells), bool)))
    return groups
