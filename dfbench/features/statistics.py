"""Features by source: read what `feature_distribution.py` wrote, summarize it, and say how far it is from real images.

Two distances between a source and the real images, feature by feature:

- wasserstein: how far, in units of the feature, values have to move to turn one distribution into the other.
- ks: Kolmogorov and Smirnov's largest difference of the two distribution functions, 0 to 1.

Their 95 % intervals rest on the triangle inequality: an observed distance is off by no more than the distance of the
samples from their populations. That one is bounded by Dvoretzky, Kiefer and Wolfowitz with Massart's constant (Ann.
Probab. 18, 1990) for ks, whatever the distribution and the number of images, and is bootstrapped for wasserstein.

The reference are the images of all real sources, distorted ones included, but the source's own: so a real source shows
how far apart real sources are from each other, which is the measure for the generators.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from dfbench.data.sources import CATALOGUE, Category
from dfbench.errors import InputError, shorten
from dfbench.evaluation.tables import STAND_IN_MARK, STAND_IN_NOTE
from dfbench.features.schema import COLUMNS, FEATURES, feature_csvs, no_features
from dfbench.table import Table

PAPER_CATEGORIES = (Category.REAL_PRISTINE, Category.REAL_DISTORTED, Category.AI_EDITED, Category.AI_GENERATED)
REAL_CATEGORIES = PAPER_CATEGORIES[:2]

COLUMNS_OF_TABLE = (
    *("feature", "source", "category", "num_images", "num_values", "median", "quartile_1", "quartile_3", "iqr"),
    *("wasserstein", "wasserstein_low", "wasserstein_high", "ks", "ks_low", "ks_high"),
)
"""One row a feature and source. num_values: images that have the feature. iqr = quartile_3 - quartile_1. Empty cells:
no value, no reference, or (for wasserstein's interval) fewer than 20 images on a side."""

CONFIDENCE = 0.95
NUM_RESAMPLES = 200
BOOTSTRAP_CELLS = 512
SMALLEST_BOOTSTRAP = 20
"""Images on a side below which a bootstrap says little, so that no interval is given."""


@dataclass(frozen=True)
class SourceFeatures:
    """The measured images of one source.

    category: one of PAPER_CATEGORIES, or None for a source that the catalogue does not know.
    stand_in: made for the demo.
    values: columns FEATURES, float64, NaN where an image has no such feature; one row an image.
    """

    name: str
    category: Category | None
    stand_in: bool
    values: pd.DataFrame

    @property
    def is_real(self) -> bool:
        return self.category in REAL_CATEGORIES


def pooled(sources: Iterable[SourceFeatures], feature: str) -> np.ndarray:
    """The values of all images of the sources that have the feature, float64 (N,)."""
    return np.concatenate([*(source.values[feature].dropna().to_numpy() for source in sources), np.empty(0)])


def read_features(folder: Path) -> list[SourceFeatures]:
    """All sources of a folder, in the order of the catalogue, unknown ones last; CSVs without a row are left out.

    Raises InputError for a missing folder, one without any measured image, a missing column, a cell that is no number,
    a row longer than the header, and an image that stands in two rows.
    """
    sources = [source for source in map(_read_source, feature_csvs(folder)) if len(source.values)]
    if not sources:
        raise no_features(folder)
    order = list(CATALOGUE)
    return sorted(sources, key=lambda source: order.index(source.name) if source.name in order else len(order))


def _read_source(path: Path) -> SourceFeatures:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise _bad(f"{path} cannot be read as CSV ({error})") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas took the first cells for an index
        raise _long_row(path)
    missing = [column for column in COLUMNS[:5] if column not in table]
    if missing:
        raise _bad(f"{path} has no column {', '.join(missing)}")
    if (twice := table["image"].duplicated()).any():
        raise _bad(f"{path} has the image {table['image'][twice.idxmax()]} in two rows")
    values = pd.DataFrame({feature: _numbers(table, feature, path) for feature in FEATURES})
    known = CATALOGUE.get(path.stem)
    return SourceFeatures(path.stem, known and known.category, bool(known and known.stand_in), values)


def _numbers(table: pd.DataFrame, feature: str, path: Path) -> pd.Series:
    """A column as float64; empty cells, and a spectral slope that an older file does not have, are NaN."""
    if feature not in table:
        return pd.Series(np.nan, index=table.index)
    numbers = pd.to_numeric(table[feature], errors="coerce")
    wrong = ~np.isfinite(numbers) & (table[feature] != "")
    if wrong.any():
        row = wrong.idxmax()
        raise _bad(f"{path}, row {row + 2}, column {feature}: {shorten(table[feature][row])} is no number")
    return numbers.astype(np.float64)


def _long_row(path: Path) -> InputError:
    """The first row with more cells than the header, a trailing comma's empty one included."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        num_columns = len(next(reader))
        num_cells = next((len(row) for row in reader if len(row) > num_columns), num_columns)
        return _bad(f"{path}, line {reader.line_num}: {num_cells} cells under a header of {num_columns}")


def _bad(fault: str) -> InputError:
    return InputError(f"{fault}. Measure the source again with feature_distribution.py --overwrite.")


def feature_table(sources: Sequence[SourceFeatures]) -> Table:
    """Medians, quartiles and distances from the real images; its frame has the columns COLUMNS_OF_TABLE."""
    frame = pd.DataFrame(
        [_row(source, feature, sources) for feature in FEATURES for source in sources], columns=list(COLUMNS_OF_TABLE)
    )
    header = ["feature", "source", "kind", "n", "median", "IQR", "quartiles", "Wasserstein", "KS"]
    stand_ins = {source.name for source in sources if source.stand_in}
    texts = [
        [
            *(row.feature, f"{row.source}{STAND_IN_MARK if row.source in stand_ins else ''}", row.category),
            *(f"{row.num_values:,}", _number(row.median), _number(row.iqr)),
            f"[{_number(row.quartile_1)},{_number(row.quartile_3)}]",
            _with_interval(row.wasserstein, row.wasserstein_low, row.wasserstein_high),
            _with_interval(row.ks, row.ks_low, row.ks_high),
        ]
        for row in frame.itertuples()
    ]
    notes = (
        "Wasserstein (in units of the feature) and KS (0 to 1): distance from the images of all real sources but this "
        "one, with 95 % intervals.",
        *([f"{STAND_IN_MARK} {STAND_IN_NOTE}"] if stand_ins else []),
    )
    sections = tuple(range(len(sources), len(frame), len(sources)))
    title = "Image features by source, and their distance from real images"
    return Table("feature_table", title, header, texts, notes, 3, sections, frame)


def _row(source: SourceFeatures, feature: str, sources: Sequence[SourceFeatures]) -> tuple:
    """One row of the frame, in the order of COLUMNS_OF_TABLE."""
    values = pooled([source], feature)
    reference = pooled((other for other in sources if other.is_real and other is not source), feature)
    counts = (len(source.values), len(values))
    distances = (*wasserstein(values, reference), *kolmogorov_smirnov(values, reference))
    return (feature, source.name, str(source.category or "other"), *counts, *_quartiles(values), *distances)


def _number(value: float) -> str:
    """Three digits; an en dash where there is none."""
    return "–" if np.isnan(value) else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _with_interval(value: float, low: float, high: float) -> str:
    return _number(value) + ("" if np.isnan(low) else f" [{_number(low)},{_number(high)}]")


def _quartiles(values: np.ndarray) -> tuple[float, ...]:
    if len(values) == 0:
        return (np.nan,) * 4
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return median, low, high, high - low


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """(distance, lower end, upper end) of two samples, float64 (N,) and (M,); NaN where one is empty.

    With probability 1 - q, an empirical distribution function is nowhere further than sqrt(ln(2 / q) / (2 N)) from its
    own; q is half of 5 % for each sample, and the two deviations add.
    """
    if len(a) == 0 or len(b) == 0:
        return np.nan, np.nan, np.nan
    distance = float(stats.ks_2samp(a, b, method="asymp").statistic)
    share = (1 - CONFIDENCE) / 2
    deviation = sum(np.sqrt(np.log(2 / share) / (2 * len(sample))) for sample in (a, b))
    return distance, max(0.0, distance - deviation), min(1.0, distance + deviation)


def wasserstein(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """(distance, lower end, upper end) of two samples, float64 (N,) and (M,), in their unit; NaN for an empty cell.

    The bootstrap resamples both, rounded to 512 quantiles of their union, and takes the area between the changes of
    their distribution functions: that far, in 95 % of the resamples at most, the distance is off.
    """
    if len(a) == 0 or len(b) == 0:
        return np.nan, np.nan, np.nan
    distance = float(stats.wasserstein_distance(a, b))
    if min(len(a), len(b)) < SMALLEST_BOOTSTRAP:
        return distance, np.nan, np.nan
    grid = np.unique(np.quantile(np.concatenate([a, b]), np.linspace(0, 1, BOOTSTRAP_CELLS)))
    generator = np.random.default_rng(0)
    change = np.zeros((NUM_RESAMPLES, len(grid)))
    for sample, sign in ((a, 1), (b, -1)):
        nearest = np.searchsorted((grid[1:] + grid[:-1]) / 2, sample)
        shares = np.bincount(nearest, minlength=len(grid)) / len(sample)
        resampled = generator.multinomial(len(sample), shares, size=NUM_RESAMPLES) / len(sample)
        change += sign * (resampled - shares)
    areas = np.abs(change.cumsum(axis=1))[:, :-1] @ np.diff(grid)
    deviation = np.quantile(areas, CONFIDENCE)
    return distance, max(0.0, distance - deviation), distance + deviation
