"""Several detectors on the same images as one `Predictions`: what flows from the CSVs to fusion and evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd

from dfbench.data.sources import FAKE, source_of
from dfbench.errors import InputError
from dfbench.predictions.probabilities import log_odds, predicts_fake
from dfbench.predictions.reader import Detector
from dfbench.predictions.schema import COLUMNS


@dataclass(frozen=True)
class Predictions:
    """What K detectors say about the same N images.

    images: (N,) keys. labels: (N,) A, B, or "" where unknown; both texts. prob, logits: (N, K, 2) float32, columns A
    and B; logits are NaN where a detector has none. In memory each detector's numbers lie together: that is how they
    are read, and the last bit of sums over them rests on it.
    """

    detectors: tuple[Detector, ...]
    images: np.ndarray
    labels: np.ndarray
    prob: np.ndarray
    logits: np.ndarray

    def __post_init__(self) -> None:
        for name in ("prob", "logits"):
            object.__setattr__(self, name, np.asfortranarray(getattr(self, name)))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> list[str]:
        return [detector.name for detector in self.detectors]

    @cached_property
    def sources(self) -> np.ndarray:
        """(N,) names of the images' sources."""
        folders = [image.rpartition("/")[0] for image in self.images]
        known = {folder: source_of(f"{folder}/x" if folder else "x") for folder in set(folders)}
        return np.array([known[folder] for folder in folders], dtype=object)

    @cached_property
    def is_labelled(self) -> np.ndarray:
        """(N,) bool."""
        return self.labels != ""

    @cached_property
    def is_fake(self) -> np.ndarray:
        """(N,) bool: whether the label is B."""
        return self.labels == FAKE

    @cached_property
    def predicted_fake(self) -> np.ndarray:
        """(N, K) bool: each detector's decision."""
        return predicts_fake(self.prob)

    @cached_property
    def log_odds(self) -> np.ndarray:
        """(N, K) float64 log(P(fake) / P(real)) of the probabilities; infinite where one of them is exactly 0."""
        return log_odds(self.prob)

    def take(self, rows: np.ndarray) -> "Predictions":
        """These images alone, in this order. rows: (N,) bool, or row numbers."""
        return replace(self, **{name: getattr(self, name)[rows] for name in ("images", "labels", "prob", "logits")})

    @property
    def labelled(self) -> "Predictions":
        """The images that have a label."""
        return self.take(self.is_labelled)


def refuse_copies(predictions: Predictions) -> None:
    """Raise InputError where two of the agents are one model, which would count twice.

    By their metadata, whatever its weights were loaded as and from where; or by numbers that are the same for each of
    these images. Answers of two values alone (0 and 1, say) may well be those of two detectors.
    """
    for (i, first), (j, second) in combinations(enumerate(predictions.detectors), 2):
        same = ""
        if (model := _model(first)) and model == _model(second):
            same = "the same model by their metadata"
        elif any(_same_numbers(numbers[:, i], numbers[:, j]) for numbers in (predictions.logits, predictions.prob)):
            same = f"the same answers to all {len(predictions):,} images"
        if same:
            raise InputError(f"{first}, {second}: {same}, which would count twice. Leave one of the two away.")


_MODEL = ("model_fingerprint", "adapter_fingerprint", "protocol", "prompt", "image", "questions")
"""Keys of a scoring run's identity that say which detector it is; the others say how it was run."""


def _model(detector: Detector) -> tuple[object, ...] | None:
    """What the metadata say of a detector's model; None where they do not."""
    identity = detector.info.get("identity")
    if not isinstance(identity, dict) or not identity.get("model_fingerprint"):
        return None
    return tuple(identity.get(key) for key in _MODEL)


def _same_numbers(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether (N, 2) numbers are the same and take more than two values; False where there are none."""
    return np.array_equal(first, second) and len(np.unique(first[:, 0])) > 2


def join(detectors: Sequence[Detector], *, partial: bool = False) -> Predictions:
    """The images that every detector answered, in the first one's order.

    Labels are taken from whichever file has them. Raises InputError where files disagree about a label, share no image,
    or (unless `partial`) where one lacks images that another has.
    """
    keys = [pd.Index(detector.frame["image"]) for detector in detectors]
    common, union = keys[0], keys[0]
    for key in keys[1:]:
        common, union = common.intersection(key, sort=False), union.union(key, sort=False)
    names = ", ".join(map(str, detectors))
    if len(common) == 0:
        examples = "; ".join(f"{key[0]} in {detector}" for detector, key in zip(detectors, keys, strict=True))
        raise InputError(
            f"{names}: these files have no image in common ({examples}). Score the same annotations with each "
            f"detector, and name the images by the same paths."
        )
    if len(common) < len(union) and not partial:
        lost = [
            f"{detector} lacks {len(union) - len(key)} of {len(union)}, such as {union.difference(key, sort=False)[0]}"
            for detector, key in zip(detectors, keys, strict=True)
            if len(key) < len(union)
        ]
        raise InputError(
            f"{names}: different images ({'; '.join(lost)}). Finish the scoring runs, name the images by the same "
            f"paths, or join what is common with --partial."
        )
    images = keys[0][keys[0].isin(common)]
    labels = np.full(len(images), "", dtype=object)
    shape = (len(images), len(detectors), 2)
    prob, logits = np.empty(shape, np.float32, order="F"), np.empty(shape, np.float32, order="F")
    for i, (detector, key) in enumerate(zip(detectors, keys, strict=True)):
        rows = key.get_indexer(images)
        theirs = detector.frame["label"].to_numpy(dtype=object)[rows]
        clash = (labels != "") & (theirs != "") & (labels != theirs)
        if clash.any():
            at = int(clash.argmax())
            raise InputError(
                f"{detector}: the label of {images[at]} is {theirs[at]}, but {labels[at]} in an earlier file. "
                f"Score the same annotations with each detector."
            )
        labels = np.where(labels == "", theirs, labels)
        prob[:, i] = detector.frame[list(COLUMNS[5:])].to_numpy(np.float32)[rows]
        logits[:, i] = detector.frame[list(COLUMNS[3:5])].to_numpy(np.float32)[rows]
    return Predictions(tuple(detectors), images.to_numpy(object), labels, prob, logits)
