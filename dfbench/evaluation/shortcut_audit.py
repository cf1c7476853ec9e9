"""Bias audit: how much of a score could image size and file format alone explain?

In DFBench real images are mostly 384x384 to 768x512 and most generators give 1024x1024, so the label can nearly be
read off the file's header. Three looks at that:

- a metadata-only baseline, which sees nothing but width, height, format and bytes per pixel, scored like any detector;
- the detectors' figures with images weighted so that real and fake ones have the same sizes and formats;
- rank correlation of P(fake) with these, on all images and within each class.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dfbench.data.images import read_metadata
from dfbench.errors import InputError
from dfbench.predictions.join import Predictions
from dfbench.predictions.reader import Detector

MATCHED = "equal size and format"
"""Name of the weighting under which real and fake images have the same sizes and formats."""

CORRELATED = ("pixels", "bytes per pixel", "JPEG")

_BUCKETS_AN_OCTAVE = 4
"""Sizes match within a quarter of an octave: sides that differ by less than about 19 %."""


@dataclass
class Audit:
    """What the files' headers say about the images, and what follows for the detectors.

    num_missing: how many images could not be read. baselines: detectors that know the headers alone. weights: (index:
    image) those of `matched_weights`; num_pairs: see there. correlations: rows of `correlations`.
    """

    num_missing: int
    baselines: list[Detector]
    weights: pd.Series
    num_pairs: int
    correlations: pd.DataFrame


def audit(
    predictions: Predictions,
    *,
    image_root: Path,
    features_dir: Path | None = None,
    seed: int = 0,
    quiet: bool = True,
) -> Audit:
    """Audit the answers of detectors; only images with a label are fitted and correlated.

    Metadata come from the feature CSVs in `features_dir` where they have them, from the headers of the images below
    `image_root` otherwise. Raises InputError where no image can be read.
    """
    from dfbench.evaluation.metadata_baseline import metadata_baselines  # brings scikit-learn, which takes a second

    metadata = read_metadata(predictions.images, image_root, features_dir, quiet=quiet)
    num_missing = int(metadata["width"].isna().sum())
    if num_missing == len(metadata):
        raise InputError(
            f"{image_root}: none of the {len(metadata):,} images that the CSVs name is here, such as "
            f"{metadata.index[0]}. Name their folder with --image_root, or leave --audit away."
        )
    weights, num_pairs = matched_weights(predictions.labelled, metadata)
    baselines = metadata_baselines(predictions, metadata, seed)
    return Audit(num_missing, baselines, weights, num_pairs, correlations(predictions.labelled, metadata))


def matched_weights(labelled: Predictions, metadata: pd.DataFrame) -> tuple[pd.Series, int]:
    """Weights (index: image) under which both classes weigh the same in every bucket of format, width and height.

    A bucket with r real and f fake images gets min(r, f) on either side, so a bucket of one class falls away. Also the
    sum of these minima: the number of pairs that a one-to-one matching would have. Weights sum to the images of buckets
    with both classes; all are 0 where no bucket has both.
    """
    rows, is_fake = metadata.loc[labelled.images], labelled.is_fake
    buckets = rows[["format"]].assign(
        **{side: (_BUCKETS_AN_OCTAVE * np.log2(rows[side])).round() for side in ("width", "height")}
    )
    # Images of unknown size are in no bucket: pandas numbers them NaN.
    number = buckets.groupby(["format", "width", "height"], sort=False).ngroup().fillna(-1).to_numpy(int)
    size = max(1, number.max() + 1)
    fake, real = (np.bincount(number[side & (number >= 0)], minlength=size) for side in (is_fake, ~is_fake))
    pairs = np.minimum(real, fake)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(is_fake, (pairs / fake)[number], (pairs / real)[number])
    shares = np.where(number >= 0, np.nan_to_num(shares), 0)
    num_used = int((shares > 0).sum())
    scale = num_used / shares.sum() if num_used else 1
    return pd.Series(shares * scale, labelled.images), int(pairs.sum())


def correlations(labelled: Predictions, metadata: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of P(fake) with CORRELATED: columns detector, metadata, all, real, fake (-1 to 1).

    NaN where one of the two does not vary.
    """
    rows = metadata.loc[labelled.images]
    pixels = rows["width"] * rows["height"]
    is_jpeg = (rows["format"] == "JPEG").astype(float).where(rows["format"] != "")
    parts = {"all": np.ones(len(labelled), bool), "real": ~labelled.is_fake, "fake": labelled.is_fake}
    found = []
    for i, name in enumerate(labelled.names):
        scores = labelled.log_odds[:, i]
        for what, column in zip(CORRELATED, (pixels, rows["bytes"] / pixels, is_jpeg), strict=True):
            values = column.to_numpy()
            by_part = {part: _spearman(scores[chosen], values[chosen]) for part, chosen in parts.items()}
            found.append({"detector": name, "metadata": what, **by_part})
    return pd.DataFrame(found)


def _spearman(scores: np.ndarray, values: np.ndarray) -> float:
    from scipy.stats import spearmanr

    known = ~np.isnan(values)
    scores, values = scores[known], values[known]
    if len(values) < 3 or np.ptp(values) == 0 or len(np.unique(scores)) == 1:
        return math.nan
    return float(spearmanr(scores, values).statistic)
