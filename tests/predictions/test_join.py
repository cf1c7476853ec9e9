"""Joins of detectors: on the key, whatever the order; what each side lost; labels that clash."""

import numpy as np
import pandas as pd
import pytest

from dfbench.errors import InputError
from dfbench.predictions.join import join, refuse_copies
from dfbench.predictions.reader import Detector


def detector(name: str, **prob_fake: float) -> Detector:
    """A detector that gives these images (labelled by their first letter: r or f) these probabilities."""
    frame = pd.DataFrame({"image": [f"DFBench/edit/{image}.jpg" for image in prob_fake]})
    frame["label"] = ["A" if image[0] == "r" else "B" if image[0] == "f" else "" for image in prob_fake]
    frame["prob_B"] = np.array(list(prob_fake.values()), np.float32)
    frame["prob_A"] = 1 - frame["prob_B"]
    frame["logit_A"], frame["logit_B"] = np.float32(1), np.float32(2)
    return Detector(name, frame)


def test_join_goes_by_key_whatever_the_order():
    joined = join([detector("a", f1=0.75, r1=0.25), detector("b", r1=0.5, f1=1)])
    assert joined.names == ["a", "b"]
    assert joined.images.tolist() == ["DFBench/edit/f1.jpg", "DFBench/edit/r1.jpg"]
    assert joined.labels.tolist() == ["B", "A"]
    assert joined.prob.tolist() == [[[0.25, 0.75], [0, 1]], [[0.75, 0.25], [0.5, 0.5]]]
    assert joined.logits.tolist() == [[[1, 2], [1, 2]]] * 2
    assert joined.prob.dtype == joined.logits.dtype == np.float32
    assert joined.sources.tolist() == ["edit"] * 2


def test_what_follows_from_the_predictions():
    joined = join([detector("a", f1=0.75, r1=0.25, x1=0.5)])
    assert joined.is_labelled.tolist() == [True, True, False]
    assert joined.is_fake.tolist() == [True, False, False]
    assert joined.predicted_fake.tolist() == [[True], [False], [True]]
    np.testing.assert_allclose(joined.log_odds[:, 0], [np.log(3), -np.log(3), 0])
    assert joined.labelled.images.tolist() == ["DFBench/edit/f1.jpg", "DFBench/edit/r1.jpg"]
    assert joined.take(np.array([2, 0])).prob[:, 0, 1].tolist() == [0.5, 0.75]


def test_join_of_different_images_says_who_lacks_how_many():
    detectors = [detector("a", f1=0.5, r1=0.5, r2=0.5), detector("b", f1=0.5), detector("c", f1=0.5, f9=0.5)]
    with pytest.raises(
        InputError, match=r"\(a lacks 1 of 4, such as \S+/f9\.jpg; b lacks 3 of 4, such as \S+/r1\.jpg; c .*--partial"
    ):
        join(detectors)
    assert join(detectors, partial=True).images.tolist() == ["DFBench/edit/f1.jpg"]


def test_join_without_common_images_is_refused_even_if_partial():
    with pytest.raises(InputError, match="no image in common"):
        join([detector("a", f1=0.5), detector("b", f2=0.5)], partial=True)


def test_join_takes_labels_from_whoever_has_them_and_refuses_a_clash():
    unlabelled, labelled = detector("a", f1=0.5), detector("b", f1=0.5)
    unlabelled.frame["label"] = ""
    assert join([unlabelled, labelled]).labels.tolist() == ["B"]
    wrong = detector("c", f1=0.5)
    wrong.frame["label"] = "A"
    with pytest.raises(InputError, match=r"c: the label of DFBench/edit/f1\.jpg is A, but B in an earlier file"):
        join([unlabelled, labelled, wrong])


def test_join_of_files_with_other_paths_shows_one_of_each():
    here, there = detector("here", f1=0.5), detector("there", f1=0.5)
    there.frame["image"] = "/data/" + there.frame["image"]
    with pytest.raises(InputError, match=r"\(DFBench/edit/f1\.jpg in here; /data/DFBench/edit/f1\.jpg in there\)"):
        join([here, there])
    there.frame.loc[1] = here.frame.loc[0]
    with pytest.raises(InputError, match=r"here lacks 1 of 2, such as /data/DFBench/edit/f1\.jpg\)"):
        join([here, there])


def test_copies_are_found_by_logits_or_probabilities():
    first, other = (detector(name, f1=0.5, f2=0.25, f3=0.125) for name in "ab")
    other.frame["logit_A"] = np.float32([1, 2, 3])
    with pytest.raises(InputError, match="a, b: the same answers to all 3 images"):
        refuse_copies(join([first, other]))
    other.frame.loc[2, ["prob_A", "prob_B"]] = np.float32([0.25, 0.75])
    refuse_copies(join([first, other]))
    first.frame["logit_A"] = np.float32([1, 2, 3])
    with pytest.raises(InputError, match="a, b: the same answers to all 3 images"):
        refuse_copies(join([first, other]))
