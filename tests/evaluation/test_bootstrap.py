"""Every metric of every group, weighted or not, against scikit-learn on the rows of that group."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, roc_auc_score

from dfbench.evaluation.bootstrap import METRICS, AnswerSheet
from dfbench.predictions.join import categories_of

LABELS = {"LIVE": "A", "CSIQ": "A", "edit": "B", "Kolors": "B", "NOVA": "B", "mine": "AB"}


def joined(seed: int = 0, num_images: int = 40, num_detectors: int = 2, labels=LABELS) -> pd.DataFrame:
    """Shuffled rows of a join; detectors that are right more often than not, with ties."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({"source": np.repeat(list(labels), num_images)})
    rows["label"] = [labels[source][i % len(labels[source])] for i, source in enumerate(rows["source"])]
    rows["image"] = [f"DFBench/{source}/{i}.jpg" for i, source in enumerate(rows["source"])]
    rows["category"] = categories_of(rows["source"], rows["label"])
    for i in range(num_detectors):
        prob_fake = rng.beta(np.where(rows["label"] == "B", 4, 2), 2).round(2).astype(np.float32)
        rows[f"prob_A_{i}"], rows[f"prob_B_{i}"] = 1 - prob_fake, prob_fake
    return rows.sample(frac=1, random_state=seed).reset_index(drop=True)


def value(values, sheet, metric, group, detector=0):
    number = next(i for i, candidate in enumerate(sheet.groups) if candidate.name == group)
    return values[METRICS.index(metric), number, detector]


@pytest.fixture
def sheet():
    return AnswerSheet(joined(), 2)


@pytest.mark.parametrize("detector", [0, 1])
@pytest.mark.parametrize("group", ["all images", "mine"])
def test_groups_of_both_classes(sheet, group, detector):
    rows = sheet.joined if group == "all images" else sheet.joined[sheet.joined["source"] == group]
    is_fake, prob_fake = rows["label"] == "B", rows[f"prob_B_{detector}"].astype(float)
    called_fake = rows[f"prob_A_{detector}"] <= rows[f"prob_B_{detector}"]
    expected = {
        "balanced_accuracy": balanced_accuracy_score(is_fake, called_fake),
        "f1_macro": f1_score(is_fake, called_fake, average="macro"),
        "auroc": roc_auc_score(is_fake, prob_fake),
        "brier": brier_score_loss(is_fake, prob_fake),
    }
    values = sheet.measure()
    found = {metric: value(values, sheet, metric, group, detector) for metric in expected}
    assert found == pytest.approx(expected)


def test_groups_of_one_class(sheet):
    values = sheet.measure()
    rows = sheet.joined
    nova, real = rows["source"] == "NOVA", rows["label"] == "A"
    called_fake = rows["prob_B_0"] >= rows["prob_A_0"]
    assert value(values, sheet, "accuracy", "NOVA") == pytest.approx(called_fake[nova].mean())
    assert value(values, sheet, "ece", "NOVA") == pytest.approx(rows.loc[nova, "prob_A_0"].mean())
    chosen = rows[nova | real]
    expected = roc_auc_score(chosen["label"] == "B", chosen["prob_B_0"])
    assert value(values, sheet, "auroc_vs_other_class", "NOVA") == pytest.approx(expected)
    chosen = rows[(rows["source"] == "LIVE") | (rows["label"] == "B")]
    expected = roc_auc_score(chosen["label"] == "B", chosen["prob_B_0"])
    assert value(values, sheet, "auroc_vs_other_class", "LIVE") == pytest.approx(expected)
    for metric in ("auroc", "average_precision", "eer", "tpr_at_fpr_1", "balanced_accuracy", "f1_macro", "f1_real"):
        assert np.isnan(value(values, sheet, metric, "NOVA")), metric


def test_the_calibration_error_of_one_class_needs_no_bins():
    one_class = AnswerSheet(joined(labels={"NOVA": "B"}), 1)
    binned = one_class._rank(np.arange(40), 0)
    expected = binned.calibration_error(binned.tally())
    assert value(one_class.measure(), one_class, "ece", "NOVA") == pytest.approx(expected)


def test_one_class_alone_has_no_ranking():
    values = AnswerSheet(joined(labels={"NOVA": "B", "edit": "B"}), 2).measure()
    assert np.isnan(values[METRICS.index("auroc")]).all()
    assert np.isnan(values[METRICS.index("auroc_vs_other_class")]).all()
    assert np.isfinite(values[METRICS.index("brier")]).all()


def test_a_single_row():
    sheet = AnswerSheet(joined(labels={"NOVA": "B"}, num_images=1), 1)
    assert value(sheet.measure(), sheet, "accuracy", "all images") in (0, 1)


def test_weights_are_repetitions(sheet):
    times = np.random.default_rng(0).integers(0, 3, len(sheet.joined))
    repeated = AnswerSheet(sheet.joined.loc[np.repeat(sheet.joined.index, times)].reset_index(drop=True), 2)
    np.testing.assert_allclose(sheet.measure(times.astype(float)), repeated.measure(), rtol=1e-9)


def test_overall_only_is_the_last_group(sheet):
    weights = np.random.default_rng(0).random(len(sheet.joined))
    whole, last = sheet.measure(weights), sheet.measure(weights, overall_only=True)
    np.testing.assert_allclose(last[:, 0], whole[:, -1])


def test_a_draw_keeps_the_size_of_every_source(sheet):
    drawn = sheet.draw(np.random.default_rng(0))
    assert drawn.min() == 0
    assert pd.Series(drawn).groupby(sheet.joined["source"]).sum().tolist() == [40] * 6
    # The chance to be drawn at least once is 1 - (1 - 1/40)^40 = .637.
    means = np.mean([sheet.draw(np.random.default_rng(seed)) > 0 for seed in range(50)], axis=0)
    assert means.mean() == pytest.approx(0.637, abs=0.01)
    assert means.min() > 0.35
