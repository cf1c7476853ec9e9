"""The labelled answers of several detectors, laid out so that every metric of every group is quick to compute again.

Groups of images: each source, each category, real, fake, and all. Inside, images are counted in cells, one for each
pair of source and label: a count of any group is a sum over a few cells. `measure` takes a weight for each image, so
the same code gives the point estimates (no weights), a bootstrap resample (how often each image was drawn) and figures
at another share of real images.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dfbench.data.sources import CATALOGUE, FAKE, REAL, Category, category_of
from dfbench.evaluation.metrics import METRICS, Sample, ratio
from dfbench.evaluation.ranking import Ranking, placements
from dfbench.predictions.join import Predictions

MIXED = "mixed"
"""Category of a source that the catalogue does not know and that has real and fake images."""


@dataclass(frozen=True)
class Group:
    """A set of images: `level` is source, category, class or overall; `cells` (num_cells,) says which belong to it."""

    level: str
    name: str
    category: str
    cells: np.ndarray


class GroupedPredictions:
    """Predictions on labelled images, sorted by source and label.

    predictions: in that order. cell: (N,) of each image. groups: the first axis of what `measure` returns.
    """

    def __init__(self, predictions: Predictions) -> None:
        cell, self.cells = _cells(predictions)
        order = np.argsort(cell, kind="stable")
        self.predictions = predictions.take(order)
        self.cell = cell[order]
        self.prob_fake = self.predictions.prob[:, :, 1].astype(np.float64)
        self.groups = list_groups(self.cells)
        self._membership = np.stack([group.cells for group in self.groups]).astype(float)
        self._cell_is_fake = (self.cells["label"] == FAKE).to_numpy()
        self._starts = np.searchsorted(self.cell, np.arange(len(self.cells) + 1))
        source = self.cells["source"].factorize()[0][self.cell]
        size = np.bincount(source)
        self._source_start, self._source_size = (np.cumsum(size) - size)[source], size[source]
        error = self.prob_fake - self.predictions.is_fake[:, None]
        self._linear = np.hstack([self.is_right, error**2, np.abs(error)])
        self._rankings = self._rank_groups()

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def is_right(self) -> np.ndarray:
        """(N, D) whether each detector's answer is the label."""
        return self.predictions.predicted_fake == self.predictions.is_fake[:, None]

    def _rank_groups(self) -> dict[int, tuple[np.ndarray, list[Ranking]]]:
        """{group: (its rows, a ranking for each detector)} of the groups with both classes."""
        rankings = {}
        for number, group in enumerate(self.groups):
            if group.cells[self._cell_is_fake].any() and group.cells[~self._cell_is_fake].any():
                rows = np.flatnonzero(group.cells[self.cell])
                columns = zip(self.predictions.log_odds[rows].T, self.prob_fake[rows].T, strict=True)
                is_fake = self.predictions.is_fake[rows]
                rankings[number] = rows, [Ranking(scores, is_fake, prob_fake) for scores, prob_fake in columns]
        return rankings

    def overall_ranking(self, detector: int) -> Ranking | None:
        """The ranking of all images; None where they are all real or all fake."""
        number = len(self.groups) - 1
        return self._rankings[number][1][detector] if number in self._rankings else None

    def resample(self, rng: np.random.Generator) -> np.ndarray:
        """(N,) how often each image stands in a bootstrap sample that keeps the size of every source."""
        rows = self._source_start + (rng.random(len(self)) * self._source_size).astype(np.intp)
        return np.bincount(rows, minlength=len(self)).astype(float)

    def measure(self, weights: np.ndarray | None = None, *, overall_only: bool = False) -> dict[str, np.ndarray]:
        """{metric: (G, D) groups x detectors}, NaN where not defined; with `overall_only`, (1, D).

        weights: (N,), at least 0; ones by default.
        """
        sample = self.sample(weights, overall_only=overall_only)
        return {key: metric.measure(sample) for key, metric in METRICS.items()}

    def sample(self, weights: np.ndarray | None = None, *, overall_only: bool = False) -> Sample:
        """What `measure` computes the metrics from."""
        weights = np.ones(len(self)) if weights is None else weights
        skipped = len(self.groups) - 1 if overall_only else 0
        tallies = {}
        for group, (rows, rankings) in self._rankings.items():
            if group >= skipped:
                of_group = {(group - skipped, i): ranked.tally(weights[rows]) for i, ranked in enumerate(rankings)}
                tallies |= {place: tally for place, tally in of_group.items() if tally.has_both}
        means = np.full((len(self.groups) - skipped, len(self.predictions.detectors)), np.nan)
        if not overall_only:
            one_class = [group not in self._rankings for group in range(len(self.groups))]
            for (group, detector), tally in tallies.items():
                if group == len(self.groups) - 1:
                    parts = (weights * placements(tally), weights)
                    wins, mass = (self._membership @ np.add.reduceat(part, self._starts[:-1]) for part in parts)
                    means[one_class, detector] = ratio(wins, mass)[one_class]
        return Sample(*self._sums(weights, self._membership[skipped:]), placements=means, tallies=tallies)

    def _sums(self, weights: np.ndarray, membership: np.ndarray) -> list[np.ndarray]:
        """The counts of a `Sample`, its first fields."""
        num_detectors = len(self.predictions.detectors)
        mass = np.add.reduceat(weights, self._starts[:-1])
        spans = [slice(*span) for span in zip(self._starts[:-1], self._starts[1:], strict=True)]
        sums = np.stack([weights[span] @ self._linear[span] for span in spans])
        images = np.repeat(mass[:, None], num_detectors, axis=1)
        sides = ((~self._cell_is_fake)[:, None], self._cell_is_fake[:, None])
        _, squared, absolute = np.split(membership @ sums, 3, axis=1)
        by_class = [membership @ (values * side) for side in sides for values in (images, sums[:, :num_detectors])]
        return [*by_class, absolute, squared]


def _cells(predictions: Predictions) -> tuple[np.ndarray, pd.DataFrame]:
    """(cell of each row, one row for each cell: source, label, category), sources in the catalogue's order."""
    place = {source: i for i, source in enumerate(CATALOGUE)}
    rows = list(zip(predictions.sources, predictions.labels, strict=True))
    cells = sorted(set(rows), key=lambda cell: (place.get(cell[0], len(place)), *cell))
    number = {cell: i for i, cell in enumerate(cells)}
    table = pd.DataFrame([(*cell, category_of(*cell)) for cell in cells], columns=["source", "label", "category"])
    return np.array([number[row] for row in rows]), table


def list_groups(cells: pd.DataFrame) -> list[Group]:
    """All groups that have images, level by level; all images are the last one."""
    groups = []
    for source, rows in cells.groupby("source", sort=False):
        category = str(rows["category"].iloc[0]) if rows["category"].nunique() == 1 else MIXED
        groups.append(Group("source", str(source), category, (cells["source"] == source).to_numpy()))
    for category in Category:
        groups.append(Group("category", str(category), str(category), (cells["category"] == category).to_numpy()))
    for name, label in (("real", REAL), ("fake", FAKE)):
        groups.append(Group("class", name, "", (cells["label"] == label).to_numpy()))
    groups.append(Group("overall", "all images", "", np.ones(len(cells), bool)))
    return [group for group in groups if group.cells.any()]
