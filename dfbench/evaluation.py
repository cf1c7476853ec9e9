"""From joined answers to numbers: which groups of images there are, and every metric of every detector on each.

Groups: each source, each category, real, fake, and all images. Inside, images are counted in cells, one for each pair
of source and label, so that a number of any group is a sum over a few cells and never another pass over 100,000 rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dfbench import metrics
from dfbench.errors import InputError
from dfbench.metrics import Counts
from dfbench.records import Detector, join
from dfbench.sources import CATALOGUE, DFBENCH, FAKE, NUM_TEST, REAL, Category

LEVELS = ("source", "category", "class", "overall")
MIXED = "mixed"
"""Category of a source that the catalogue does not know and that has real and fake images."""


@dataclass(frozen=True)
class Group:
    """A set of images: `level` is one of LEVELS, `cells` (num_cells,) says which cells belong to it."""

    level: str
    name: str
    category: str
    cells: np.ndarray


@dataclass
class Evaluation:
    """All numbers of a set of detectors on the images that they share.

    scores: one row for each group and detector, in that order; counts, and metrics from 0 to 1, NaN where not defined
        (`note` says why). See `SCORE_COLUMNS`.
    joined: the labelled images behind it (see `records.join`).
    """

    detectors: list[Detector]
    joined: pd.DataFrame
    groups: list[Group]
    scores: pd.DataFrame
    num_unlabelled: int
    num_lost: list[int]

    @property
    def names(self) -> list[str]:
        return [detector.name for detector in self.detectors]

    @property
    def stand_ins(self) -> list[str]:
        """Sources that the demo made: figures on these say nothing about DFBench."""
        sources = self.joined["source"].unique()
        return [source for source in sources if source in CATALOGUE and CATALOGUE[source].stand_in]

    @property
    def is_real_test_set(self) -> bool:
        """Whether these are the images of the released test set, a few unreadable ones aside."""
        same_sources = set(self.joined["source"]) == {source.name for source in DFBENCH}
        return same_sources and 0.99 * NUM_TEST <= len(self.joined) <= NUM_TEST


def evaluate(detectors: Sequence[Detector], *, partial: bool = False) -> Evaluation:
    """Every metric of every detector on every group, over the labelled images that all detectors answered.

    Raises InputError as `records.join` does, and where no image has a label.
    """
    joined = join(detectors, partial=partial)
    labelled = joined[joined["label"] != ""].reset_index(drop=True)
    if labelled.empty:
        raise InputError(
            ", ".join(str(detector.path or detector.name) for detector in detectors),
            found="no image with a label",
            expected="labels A (real) or B (fake), to compare the answers with",
            remedy="score annotations that have labels; the answers themselves stand in these files",
        )
    cell_of_row, cells = _cells(labelled)
    groups = list_groups(cells)
    scores = _scores(labelled, cell_of_row, cells, groups, [detector.name for detector in detectors])
    num_lost = [len(detector.frame) - len(joined) for detector in detectors]
    return Evaluation(list(detectors), labelled, groups, scores, len(joined) - len(labelled), num_lost)


def _cells(joined: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """(cell of each row, one row for each cell: source, label, category), sources in the catalogue's order."""
    order = {source: i for i, source in enumerate(CATALOGUE)}
    cells = joined[["source", "label", "category"]].drop_duplicates()
    cells = cells.sort_values(
        ["source", "label"], key=lambda column: column.map(lambda name: (order.get(name, len(order)), name))
    ).reset_index(drop=True)
    number = {(source, label): i for i, (source, label) in enumerate(zip(cells["source"], cells["label"], strict=True))}
    rows = zip(joined["source"], joined["label"], strict=True)
    return np.fromiter((number[row] for row in rows), dtype=np.intp, count=len(joined)), cells


def list_groups(cells: pd.DataFrame) -> list[Group]:
    """All groups that have images, level by level."""
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


def _scores(
    joined: pd.DataFrame, cell_of_row: np.ndarray, cells: pd.DataFrame, groups: list[Group], names: list[str]
) -> pd.DataFrame:
    membership = np.stack([group.cells for group in groups]).astype(float)
    is_fake = (cells["label"] == FAKE).to_numpy()
    num_images = np.bincount(cell_of_row, minlength=len(cells)).astype(float)
    fake_row = (joined["label"] == FAKE).to_numpy()
    columns = []
    for i, name in enumerate(names):
        called_fake = (joined[f"prob_A_{i}"] <= joined[f"prob_B_{i}"]).to_numpy()
        right = np.bincount(cell_of_row, weights=called_fake == fake_row, minlength=len(cells))
        counts = Counts(*(membership @ (value * side) for side in (~is_fake, is_fake) for value in (num_images, right)))
        columns.append(_score_columns(groups, counts, name))
    table = pd.concat(columns)
    # Group by group, the detectors side by side; `concat` has them the other way round.
    return table.sort_index(kind="stable").reset_index(drop=True)


def _score_columns(groups: list[Group], counts: Counts, name: str) -> pd.DataFrame:
    right = counts.right_real + counts.right_fake
    low, high = metrics.wilson_interval(right, counts.num_images)
    return pd.DataFrame(
        {
            "detector": name,
            "level": [group.level for group in groups],
            "group": [group.name for group in groups],
            "category": [group.category for group in groups],
            "n": counts.num_images.astype(int),
            "n_real": counts.num_real.astype(int),
            "n_fake": counts.num_fake.astype(int),
            "count_A": (counts.num_images - counts.num_called_fake).astype(int),
            "count_B": counts.num_called_fake.astype(int),
            "correct": right.astype(int),
            "accuracy": metrics.accuracy(counts),
            "accuracy_low": low,
            "accuracy_high": high,
            "f1_fake": metrics.f1_fake(counts),
            "f1_real": metrics.f1_real(counts),
            "f1_macro": metrics.f1_macro(counts),
            "balanced_accuracy": metrics.balanced_accuracy(counts),
            "note": [_note(*pair) for pair in zip(counts.num_real, counts.num_fake, strict=True)],
        }
    )


def _note(num_real: float, num_fake: float) -> str:
    """Why some metrics of a group are empty."""
    if num_real and num_fake:
        return ""
    return f"only {'real' if num_real else 'fake'} images: metrics that compare the two classes are not defined"
