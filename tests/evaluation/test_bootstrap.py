"""Every metric of every group, weighted or not, against scikit-learn on the rows of that group."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, roc_auc_score

from dfbench.evaluation.bootstrap import GroupedPredictions
from dfbench.evaluation.ranking import Ranking, calibration_error
from dfbench.predictions.join import Predictions
from dfbench.predictions.reader import Detector

LABELS = {"LIVE": "A", "CSIQ": "A", "edit": "B", "Kolors": "B", "NOVA": "B", "mine": "AB"}


def predictions(seed: int = 0, num_images: int = 40, labels: dict[str, str] = LABELS) -> Predictions:
    """Of two detectors that are right more often than not, with ties, on shuffled images."""
    rng = np.random.default_rng(seed)
    sources = np.repeat(list(labels), num_images)
    label = np.array([labels[source][i % len(labels[source])] for i, source in enumerate(sources)], object)
    prob_fake = rng.beta(np.where(label == "B", 4, 2)[:, None], 2, (len(label), 2)).round(2).astype(np.float32)
    prob = np.stack([1 - prob_fake, prob_fake], axis=2)
    images = np.array([f"DFBench/{source}/{i}.jpg" for i, source in enumerate(sources)], object)
    detectors = tuple(Detector(name, pd.DataFrame()) for name in "xy")
    made = Predictions(detectors, images, label, prob, np.full_like(prob, np.nan))
    return made.take(rng.permutation(len(images)))


def value(values, grouped, metric, group, detector=0):
    number = next(i for i, candidate in enumerate(grouped.groups) if candidate.name == group)
    return values[metric][number, detector]


@pytest.fixture
def grouped():
    return GroupedPredictions(predictions())


@pytest.mark.parametrize("detector", [0, 1])
@pytest.mark.parametrize("group", ["all images", "mine"])
def test_groups_of_both_classes(grouped, group, detector):
    rows = grouped.predictions
    rows = rows if group == "all images" else rows.take(rows.sources == group)
    is_fake, prob_fake = rows.is_fake, rows.prob[:, detector, 1].astype(float)
    predicted_fake = rows.predicted_fake[:, detector]
    expected = {
        "balanced_accuracy": balanced_accuracy_score(is_fake, predicted_fake),
        "f1_macro": f1_score(is_fake, predicted_fake, average="macro"),
        "auroc": roc_auc_score(is_fake, prob_fake),
        "brier": brier_score_loss(is_fake, prob_fake),
    }
    values = grouped.measure()
    found = {metric: value(values, grouped, metric, group, detector) for metric in expected}
    assert found == pytest.approx(expected)


def test_groups_of_one_class(grouped):
    values = grouped.measure()
    rows, prob_fake = grouped.predictions, grouped.prob_fake[:, 0]
    nova, live = rows.sources == "NOVA", rows.sources == "LIVE"
    assert value(values, grouped, "accuracy", "NOVA") == pytest.approx(rows.predicted_fake[nova, 0].mean())
    assert value(values, grouped, "ece", "NOVA") == pytest.approx(rows.prob[nova, 0, 0].mean())
    for name, chosen in (("NOVA", nova | ~rows.is_fake), ("LIVE", live | rows.is_fake)):
        expected = roc_auc_score(rows.is_fake[chosen], prob_fake[chosen])
        assert value(values, grouped, "auroc_vs_other_class", name) == pytest.approx(expected)
    for metric in ("auroc", "average_precision", "eer", "tpr_at_fpr_1", "balanced_accuracy", "f1_macro", "f1_real"):
        assert np.isnan(value(values, grouped, metric, "NOVA")), metric


def test_the_calibration_error_of_one_class_needs_no_bins():
    one_class = GroupedPredictions(predictions(labels={"NOVA": "B"}))
    expected = calibration_error(
        Ranking(one_class.prob_fake[:, 0], np.ones(40, bool), one_class.prob_fake[:, 0]).tally()
    )
    assert value(one_class.measure(), one_class, "ece", "NOVA") == pytest.approx(expected)


def test_one_class_alone_has_no_ranking():
    values = GroupedPredictions(predictions(labels={"NOVA": "B", "edit": "B"})).measure()
    assert np.isnan(values["auroc"]).all()
    assert np.isnan(values["auroc_vs_other_class"]).all()
    assert np.isfinite(values["brier"]).all()


def test_a_single_row():
    grouped = GroupedPredictions(predictions(labels={"NOVA": "B"}, num_images=1))
    assert value(grouped.measure(), grouped, "accuracy", "all images") in (0, 1)


def test_weights_are_repetitions(grouped):
    times = np.random.default_rng(0).integers(0, 3, len(grouped))
    repeated = GroupedPredictions(grouped.predictions.take(np.repeat(np.arange(len(grouped)), times))).measure()
    for metric, values in grouped.measure(times.astype(float)).items():
        np.testing.assert_allclose(values, repeated[metric], rtol=1e-9, err_msg=metric)


def test_overall_only_is_the_last_group(grouped):
    weights = np.random.default_rng(0).random(len(grouped))
    whole, last = grouped.measure(weights), grouped.measure(weights, overall_only=True)
    for metric, values in last.items():
        np.testing.assert_allclose(values, whole[metric][-1:], err_msg=metric)


def test_a_resample_keeps_the_size_of_every_source(grouped):
    drawn = grouped.resample(np.random.default_rng(0))
    assert drawn.min() == 0
    assert pd.Series(drawn).groupby(grouped.predictions.sources).sum().tolist() == [40] * 6
    # The chance to be drawn at least once is 1 - (1 - 1/40)^40 = .637.
    means = np.mean([grouped.resample(np.random.default_rng(seed)) > 0 for seed in range(50)], axis=0)
    assert means.mean() == pytest.approx(0.637, abs=0.01)
    assert means.min() > 0.35
