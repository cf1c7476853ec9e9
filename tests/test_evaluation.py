"""Groups and their scores on a benchmark small enough to count by hand."""

import numpy as np
import pandas as pd
import pytest

from dfbench.errors import InputError
from dfbench.evaluation import evaluate
from dfbench.records import Detector


def detector(name: str, answers: dict[str, str], labels: dict[str, str]) -> Detector:
    """answers: {source: the answers on its images, such as "ABB"}; labels: {source: their labels, or one for all}."""
    rows = []
    for source, letters in answers.items():
        for i, letter in enumerate(letters):
            label = labels[source] if len(labels[source]) <= 1 else labels[source][i]
            prob_fake = np.float32(0.75 if letter == "B" else 0.25)
            rows.append((f"DFBench/{source}/{i}.jpg", label, letter, 0, 0, 1 - prob_fake, prob_fake))
    frame = pd.DataFrame(rows, columns=["image", "label", "answer", "logit_A", "logit_B", "prob_A", "prob_B"])
    return Detector(name, frame)


LABELS = {"Flick8k": "A", "LIVE": "A", "edit": "B", "Kolors": "B", "mine": "AB"}
ANSWERS = {"Kolors": "BBBA", "Flick8k": "AAB", "mine": "AA", "edit": "AB", "LIVE": "A"}


@pytest.fixture
def evaluation():
    never_fake = {source: "A" * len(letters) for source, letters in ANSWERS.items()}
    return evaluate([detector("x", ANSWERS, LABELS), detector("never", never_fake, LABELS)])


def row(evaluation, name, level, group):
    scores = evaluation.scores
    return scores[(scores["detector"] == name) & (scores["level"] == level) & (scores["group"] == group)].iloc[0]


def test_groups_stand_in_the_order_of_the_catalogue(evaluation):
    assert [(group.level, group.name, group.category) for group in evaluation.groups] == [
        ("source", "Flick8k", "real pristine"),
        ("source", "LIVE", "real distorted"),
        ("source", "edit", "AI-edited"),
        ("source", "Kolors", "AI-generated"),
        ("source", "mine", "mixed"),
        ("category", "real pristine", "real pristine"),
        ("category", "real distorted", "real distorted"),
        ("category", "AI-edited", "AI-edited"),
        ("category", "AI-generated", "AI-generated"),
        ("category", "other real", "other real"),
        ("category", "other fake", "other fake"),
        ("class", "real", ""),
        ("class", "fake", ""),
        ("overall", "all images", ""),
    ]


@pytest.mark.parametrize(
    ("level", "group", "n", "count_a", "count_b", "correct"),
    [
        ("source", "Kolors", 4, 1, 3, 3),
        ("source", "mine", 2, 2, 0, 1),
        ("category", "real pristine", 3, 2, 1, 2),
        ("category", "other fake", 1, 1, 0, 0),
        ("class", "real", 5, 4, 1, 4),
        ("class", "fake", 7, 3, 4, 4),
        ("overall", "all images", 12, 7, 5, 8),
    ],
)
def test_counts_by_hand(evaluation, level, group, n, count_a, count_b, correct):
    found = row(evaluation, "x", level, group)
    assert found[["n", "count_A", "count_B", "correct"]].tolist() == [n, count_a, count_b, correct]
    assert found["accuracy"] == pytest.approx(correct / n)


def test_overall_metrics_by_hand(evaluation):
    # TP 4, FN 3, TN 4, FP 1.
    found = row(evaluation, "x", "overall", "all images")
    assert found["balanced_accuracy"] == pytest.approx((4 / 7 + 4 / 5) / 2)
    assert found["f1_fake"] == pytest.approx(8 / (8 + 1 + 3))
    assert found["f1_real"] == pytest.approx(8 / (8 + 3 + 1))
    never = row(evaluation, "never", "overall", "all images")
    assert never["f1_fake"] == 0
    assert never["balanced_accuracy"] == 0.5


def test_an_empty_metric_says_why(evaluation):
    found = row(evaluation, "x", "source", "edit")
    assert np.isnan(found["balanced_accuracy"])
    assert found["note"].startswith("only fake images")
    assert row(evaluation, "x", "source", "mine")["note"] == ""


def test_images_without_a_label_are_counted_and_left_out():
    found = evaluate([detector("x", {"mine": "ABB", "edit": "B"}, {"mine": "", "edit": "B"})])
    assert found.num_unlabelled == 3
    assert row(found, "x", "overall", "all images")["n"] == 1


def test_no_label_at_all_is_an_error():
    with pytest.raises(InputError, match="x: found no image with a label"):
        evaluate([detector("x", {"mine": "AB"}, {"mine": ""})])


def test_partial_evaluation_counts_what_each_lost():
    detectors = [detector("x", {"edit": "ABB"}, LABELS), detector("y", {"edit": "A"}, LABELS)]
    with pytest.raises(InputError, match="y lacks 2"):
        evaluate(detectors)
    assert evaluate(detectors, partial=True).num_lost == [2, 0]


def test_stand_ins_are_known():
    found = evaluate([detector("x", {"demo_blur": "A", "LIVE": "A"}, {"demo_blur": "A", "LIVE": "A"})])
    assert found.stand_ins == ["demo_blur"]
    assert not found.is_real_test_set
