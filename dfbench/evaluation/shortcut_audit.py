"""Bias audit: how much of a score could image size and file format alone explain?

In DFBench real images are mostly 384x384 to 768x512 and most generators give 1024x1024, so the label can nearly be
read off the file's header. Three looks at that:

- a probe that sees nothing but width, height, format and bytes per pixel, scored like any detector;
- the detectors' figures with images weighted so that real and fake ones have the same sizes and formats;
- rank correlation of P(fake) with each of these facts, on all images and within each class.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from dfbench.data.images import read_metadata
from dfbench.data.sources import FAKE, REAL
from dfbench.errors import InputError
from dfbench.evaluation.ranking import log_odds
from dfbench.predictions.reader import Detector
from dfbench.table import Table

MATCHED = "equal size and format"
"""Name of the weighting under which real and fake images have the same sizes and formats."""

CORRELATED = ("pixels", "bytes per pixel", "JPEG")

_BUCKETS_AN_OCTAVE = 4
"""Sizes match within a quarter of an octave: sides that differ by less than about 19 %."""


@dataclass
class Audit:
    """What the files' headers say about the images, and what follows for the detectors.

    facts: see `dfbench.data.images.read_metadata`; num_missing: how many images could not be read.
    probes: detectors that know nothing else. weights: (index: image) those of `matched_weights`; num_pairs: see there.
    correlations: rows of `correlations`.
    """

    facts: pd.DataFrame
    num_missing: int
    probes: list[Detector]
    weights: pd.Series
    num_pairs: int
    correlations: pd.DataFrame


def audit(
    joined: pd.DataFrame,
    names: Sequence[str],
    *,
    image_root: Path,
    features_dir: Path | None = None,
    seed: int = 0,
    quiet: bool = True,
) -> Audit:
    """Audit the answers of detectors (see `detectors.join`); only images with a label are fitted and correlated.

    Facts come from the feature CSVs in `features_dir` where they have them, from the headers of the images below
    `image_root` otherwise. Raises InputError where no image can be read.
    """
    from dfbench.evaluation.metadata_baseline import (
        probe_detectors,  # brings scikit-learn, which takes a second that others need not wait
    )

    facts = read_metadata(joined["image"], image_root, features_dir, quiet=quiet)
    known = facts["width"].notna()
    if not known.any():
        raise InputError(
            image_root,
            found=f"none of the {len(facts):,} images, such as {facts.index[0]}",
            expected="the images that the CSVs name",
            remedy="name their folder with --image_root, or leave --audit away",
        )
    labelled = joined[joined["label"] != ""]
    weights, num_pairs = matched_weights(labelled, facts)
    return Audit(
        facts,
        int((~known).sum()),
        probe_detectors(joined, facts, seed),
        weights,
        num_pairs,
        correlations(labelled, names, facts),
    )


def matched_weights(labelled: pd.DataFrame, facts: pd.DataFrame) -> tuple[pd.Series, int]:
    """Weights (index: image) under which both classes weigh the same in every bucket of format, width and height.

    A bucket with r real and f fake images gets min(r, f) on either side, so a bucket of one class falls away. Also the
    sum of these minima: the number of pairs that a one-to-one matching would have. Weights sum to the images of buckets
    with both classes; all are 0 where no bucket has both.
    """
    rows = facts.loc[labelled["image"]]
    buckets = pd.DataFrame({side: _bucket(rows[side]) for side in ("width", "height")}).assign(format=rows["format"])
    # Images of unknown size are in no bucket: pandas numbers them NaN.
    number = buckets.groupby(["format", "width", "height"], sort=False).ngroup().fillna(-1).to_numpy(int)
    is_fake = (labelled["label"] == FAKE).to_numpy()
    size = max(1, number.max() + 1)
    fake, real = (np.bincount(number[side & (number >= 0)], minlength=size) for side in (is_fake, ~is_fake))
    pairs = np.minimum(real, fake)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(is_fake, (pairs / fake)[number], (pairs / real)[number])
    shares = np.where(number >= 0, np.nan_to_num(shares), 0)
    num_used = int((shares > 0).sum())
    scale = num_used / shares.sum() if num_used else 1
    return pd.Series(shares * scale, labelled["image"].to_numpy()), int(pairs.sum())


def _bucket(side: pd.Series) -> pd.Series:
    return (_BUCKETS_AN_OCTAVE * np.log2(side)).round()


def correlations(labelled: pd.DataFrame, names: Sequence[str], facts: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of P(fake) with each fact: columns detector, fact, all, real, fake (-1 to 1).

    facts: number of pixels, bytes per pixel, and whether the file is a JPEG. NaN where one of the two does not vary.
    """
    rows = facts.loc[labelled["image"]]
    pixels = rows["width"] * rows["height"]
    jpeg = (rows["format"] == "JPEG").astype(float).where(rows["format"] != "")
    values = dict(
        zip(CORRELATED, (pixels.to_numpy(), (rows["bytes"] / pixels).to_numpy(), jpeg.to_numpy()), strict=True)
    )
    label = labelled["label"].to_numpy()
    parts = {"all": np.ones(len(label), bool), "real": label == REAL, "fake": label == FAKE}
    found = []
    for i, name in enumerate(names):
        scores = log_odds(*(labelled[f"prob_{letter}_{i}"].to_numpy() for letter in "AB"))
        for fact, value in values.items():
            shares = {part: _spearman(scores[chosen], value[chosen]) for part, chosen in parts.items()}
            found.append({"detector": name, "fact": fact, **shares})
    return pd.DataFrame(found)


def _spearman(scores: np.ndarray, values: np.ndarray) -> float:
    known = ~np.isnan(values)
    scores, values = scores[known], values[known]
    if len(values) < 3 or np.ptp(values) == 0 or len(np.unique(scores)) == 1:
        return math.nan
    return float(spearmanr(scores, values).statistic)


def correlation_table(found: Audit) -> Table:
    """Rank correlations for people, and how many images the audit rests on."""
    rows = [
        [
            row.detector,
            row.fact,
            *("–" if math.isnan(value) else f"{value:+.2f}" for value in (row.all, row.real, row.fake)),
        ]
        for row in found.correlations.itertuples()
    ]
    title = "Rank correlation of P(fake) with size and format (-1 to 1)"
    notes = [
        f"{found.num_pairs:,} pairs of a real and a fake image have one format and sides within a quarter of an octave",
        *([f"{found.num_missing:,} images could not be read: their size is not known"] if found.num_missing else []),
    ]
    header = ["detector", "fact", "all images", "real", "fake"]
    return Table("audit_correlations", title, header, rows, tuple(notes), 2, (), found.correlations)
