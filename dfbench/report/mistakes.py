"""The most confident mistakes of a detector, with thumbnails and what every other detector said."""

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfbench.data.images import ImageError, load_image
from dfbench.evaluation.evaluate import Evaluation, judged_numbers

MISTAKES_A_CATEGORY = 6
THUMBNAIL_SIDE = 192
"""Pixels of a thumbnail's longer side."""


@dataclass(frozen=True)
class Mistake:
    """One image that was misclassified.

    prob_fake: (name, P(fake)) of every detector but baselines. thumbnail: a data URI, empty where the image cannot be
    shown.
    """

    image: str
    is_fake: bool
    prob_fake: tuple[tuple[str, float], ...]
    thumbnail: str


def leading_detector(evaluation: Evaluation) -> int:
    """The detector whose mistakes are shown: the first fusion, or else the one with the highest balanced accuracy."""
    for i, detector in enumerate(evaluation.detectors):
        if detector.is_fusion:
            return i
    accuracy = evaluation.overall["balanced_accuracy"].fillna(evaluation.overall["accuracy"]).to_numpy()
    return max(judged_numbers(evaluation.detectors), key=lambda i: accuracy[i])


def worst_mistakes(evaluation: Evaluation, image_root: Path) -> dict[str, list[Mistake]]:
    """The leading detector's wrong answers by category, the most certain first, at most MISTAKES_A_CATEGORY each."""
    grouped, leading = evaluation.grouped, leading_detector(evaluation)
    wrong = np.flatnonzero(~grouped.is_right[:, leading])
    certainty = np.abs(grouped.predictions.log_odds[wrong, leading])
    by_certainty = wrong[np.argsort(-certainty, kind="stable")]
    mistakes = {}
    for group in grouped.groups:
        if group.level == "category":
            rows = by_certainty[group.cells[grouped.cell[by_certainty]]][:MISTAKES_A_CATEGORY]
            if len(rows):
                mistakes[group.name] = [_mistake(evaluation, int(row), image_root) for row in rows]
    return mistakes


def _mistake(evaluation: Evaluation, row: int, image_root: Path) -> Mistake:
    grouped = evaluation.grouped
    image = grouped.predictions.images[row]
    return Mistake(
        image,
        bool(grouped.predictions.is_fake[row]),
        tuple((evaluation.names[i], float(grouped.prob_fake[row, i])) for i in judged_numbers(evaluation.detectors)),
        thumbnail(image_root, image),
    )


def thumbnail(image_root: Path, image: str) -> str:
    """A small JPEG as a data URI; empty for an image that cannot be decoded or does not lie below `image_root`.

    The key comes from a file of others, and a report gets passed on: it must not carry pictures from elsewhere.
    """
    root = Path(os.path.realpath(image_root))  # Path.resolve fails at a loop of links before Python 3.13
    try:
        path = Path(os.path.realpath(root / image))
        if not path.is_relative_to(root):
            return ""
        picture = load_image(path).rgb
    except (ImageError, OSError, ValueError):  # ValueError: a NUL in the key
        return ""
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
