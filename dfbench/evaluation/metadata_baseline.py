"""The audit's probe: a classifier that sees only the width, height, file format and bytes per pixel of an image."""

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold

from dfbench.data.sources import FAKE, REAL
from dfbench.errors import InputError
from dfbench.fusion.fitting import deal_sources
from dfbench.predictions.probabilities import answers
from dfbench.predictions.reader import Detector

_NUM_FOLDS = 5
_NUM_TREES = 60


def probe_detectors(joined: pd.DataFrame, facts: pd.DataFrame, seed: int) -> list[Detector]:
    """The probe, fitted on other images of the same sources, and on other sources altogether.

    Either is cross-fitted: no image is scored by a fit that saw it. The second needs two sources of either class.
    """
    table = _probe_table(facts)
    is_fake = (joined["label"] == FAKE).to_numpy()
    labelled = (joined["label"] != "").to_numpy()
    probes = []
    for name, fitted_on, fold in (
        ("probe (same)", "other images of the same sources", _image_folds(joined, seed)),
        ("probe (other)", "images of other sources", _source_folds(joined)),
    ):
        if fold is not None:
            prob_fake = _cross_fit(table, is_fake, labelled, fold, seed)
            story = f"sees only size and format; fitted on {fitted_on}"
            probes.append(_as_detector(name, joined, prob_fake, story))
    return probes


def _probe_table(facts: pd.DataFrame) -> np.ndarray:
    """(N, 5) float64: width, height, aspect ratio, bytes per pixel, number of the format; NaN where not known."""
    pixels = facts["width"] * facts["height"]
    formats = pd.Series(pd.factorize(facts["format"])[0], facts.index, dtype=float).where(facts["format"] != "")
    columns = [facts["width"], facts["height"], facts["width"] / facts["height"], facts["bytes"] / pixels, formats]
    return np.stack([column.to_numpy(np.float64) for column in columns], axis=1)


def _image_folds(joined: pd.DataFrame, seed: int) -> np.ndarray | None:
    """(N,) fold of each image, dealt at random with equal shares of real and fake; None with too few images."""
    rarest = joined.loc[joined["label"] != "", "label"].value_counts().reindex([REAL, FAKE], fill_value=0).min()
    if rarest < 2:
        return None
    folds = np.zeros(len(joined), int)
    splitter = StratifiedKFold(int(min(_NUM_FOLDS, rarest)), shuffle=True, random_state=seed)
    rows = np.flatnonzero(joined["label"] != "")
    for number, (_, held_out) in enumerate(splitter.split(rows, joined["label"].to_numpy()[rows])):
        folds[rows[held_out]] = number
    return folds


def _source_folds(joined: pd.DataFrame) -> np.ndarray | None:
    """(N,) fold of each image's source; None where there are not two sources of either class."""
    try:
        fold_of_source = deal_sources(joined[joined["label"] != ""], _NUM_FOLDS)
    except InputError:
        return None
    return joined["source"].map(fold_of_source).fillna(0).to_numpy(int)


def _cross_fit(table: np.ndarray, is_fake: np.ndarray, labelled: np.ndarray, fold: np.ndarray, seed: int) -> np.ndarray:
    """(N,) P(fake) of each image by boosted trees fitted on the other folds, both classes weighing the same."""
    prob_fake = np.empty(len(table))
    for number in np.unique(fold):
        rows = labelled & (fold != number)
        model = HistGradientBoostingClassifier(
            max_iter=_NUM_TREES, class_weight="balanced", early_stopping=False, random_state=seed
        )
        model.fit(table[rows], is_fake[rows])
        prob_fake[fold == number] = model.predict_proba(table[fold == number])[:, 1]
    return prob_fake


def _as_detector(name: str, joined: pd.DataFrame, prob_fake: np.ndarray, story: str) -> Detector:
    frame = joined[["image", "label", "source", "category"]].copy()
    frame["prob_A"], frame["prob_B"] = np.float32(1 - prob_fake), np.float32(prob_fake)
    frame["answer"] = answers(frame[["prob_A", "prob_B"]].to_numpy())
    frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
    return Detector(name, frame, info={"probe": story})
