"""The metadata-only baseline: a classifier that sees width, height, file format and bytes per pixel of an image."""

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold

from dfbench.errors import InputError
from dfbench.fusion.fitting import deal_sources
from dfbench.predictions.join import Predictions
from dfbench.predictions.probabilities import answers
from dfbench.predictions.reader import Detector

_NUM_FOLDS = 5
_NUM_TREES = 60


def metadata_baselines(predictions: Predictions, metadata: pd.DataFrame, seed: int) -> list[Detector]:
    """The baseline, fitted on other images of the same sources, and on other sources altogether.

    Either is cross-fitted: no image is scored by a fit that saw it. The second needs two sources of either class.
    """
    inputs = _inputs(metadata)
    baselines = []
    for name, fitted_on, fold in (
        ("meta (same)", "other images of the same sources", _image_folds(predictions, seed)),
        ("meta (other)", "images of other sources", _source_folds(predictions)),
    ):
        if fold is not None:
            prob_fake = _cross_fit(inputs, predictions, fold, seed)
            pair = np.stack([1 - prob_fake, prob_fake], axis=1).astype(np.float32)
            frame = pd.DataFrame(
                {"image": predictions.images, "label": predictions.labels, "answer": answers(pair)}
            ).assign(logit_A=np.float32(np.nan), logit_B=np.float32(np.nan), prob_A=pair[:, 0], prob_B=pair[:, 1])
            info = {"metadata_baseline": f"metadata-only baseline: sees size and format alone; fitted on {fitted_on}"}
            baselines.append(Detector(name, frame, info=info))
    return baselines


def _inputs(metadata: pd.DataFrame) -> np.ndarray:
    """(N, 5) float64: width, height, aspect ratio, bytes per pixel, number of the format; NaN where not known."""
    width, height, num_bytes = metadata["width"], metadata["height"], metadata["bytes"]
    formats = pd.Series(pd.factorize(metadata["format"])[0], metadata.index, dtype=float)
    columns = [width, height, width / height, num_bytes / (width * height), formats.where(metadata["format"] != "")]
    return np.stack([column.to_numpy(np.float64) for column in columns], axis=1)


def _image_folds(predictions: Predictions, seed: int) -> np.ndarray | None:
    """(N,) fold of each image, dealt at random with equal shares of real and fake; None with too few images."""
    rows = np.flatnonzero(predictions.is_labelled)
    is_fake = predictions.is_fake[rows]
    rarest = min(is_fake.sum(), (~is_fake).sum())
    if rarest < 2:
        return None
    folds = np.zeros(len(predictions), int)
    splitter = StratifiedKFold(int(min(_NUM_FOLDS, rarest)), shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(rows, predictions.labels[rows])):
        folds[rows[held_out]] = number
    return folds


def _source_folds(predictions: Predictions) -> np.ndarray | None:
    """(N,) fold of each image's source; None where there are not two sources of either class."""
    try:
        fold_of_source = deal_sources(predictions.labelled, _NUM_FOLDS)
    except InputError:
        return None
    return np.array([fold_of_source.get(source, 0) for source in predictions.sources])


def _cross_fit(inputs: np.ndarray, predictions: Predictions, fold: np.ndarray, seed: int) -> np.ndarray:
    """(N,) P(fake) of each image by boosted trees fitted on the other folds, both classes weighing the same."""
    prob_fake = np.empty(len(inputs))
    for number in np.unique(fold):
        rows = predictions.is_labelled & (fold != number)
        model = HistGradientBoostingClassifier(
            max_iter=_NUM_TREES, class_weight="balanced", early_stopping=False, random_state=seed
        )
        model.fit(inputs[rows], predictions.is_fake[rows])
        prob_fake[fold == number] = model.predict_proba(inputs[fold == number])[:, 1]
    return prob_fake
