"""The exact early exit: bounds by hand, and decisions equal to those of a full run on every image."""

import numpy as np
import pandas as pd
import pytest

from dfbench.errors import InputError
from dfbench.fusion.early_exit import complete, settled_images
from dfbench.fusion.fuse import fuse
from dfbench.predictions.probabilities import answers
from dfbench.predictions.reader import Detector


def detector(name: str, prob_a: np.ndarray, images: list[str], **info) -> Detector:
    pair = np.stack([prob_a, 1 - prob_a], axis=1).astype(np.float32)
    frame = pd.DataFrame({"image": images, "label": "A", "answer": answers(pair)})
    frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
    frame["prob_A"], frame["prob_B"] = pair[:, 0], pair[:, 1]
    return Detector(name, frame, info=info)


def images(count: int) -> list[str]:
    return [f"DFBench/x/{i}.png" for i in range(count)]


def test_an_image_is_open_while_the_third_agent_can_turn_it():
    # P1 + P2: 0.375 and 1.625 are settled (the third adds at most 1, at least 0; 1.5 decides); 0.5, 1.0, 1.5 are open.
    first, second = np.array([0.125, 0.875, 0.25, 0.5, 0.75]), np.array([0.25, 0.75, 0.25, 0.5, 0.75])
    names = images(5)
    settled = settled_images([detector("a", first, names), detector("b", second, names)])
    assert settled == {names[0], names[1]}


def test_of_two_agents_the_first_settles_only_certain_images():
    # K = 2: real if the sum exceeds 1. A first answer of 0 can still meet a 1 and tie: the bounds are 0 and 1.
    names = images(3)
    assert settled_images([detector("a", np.array([0.0, 0.5, 1.0]), names)]) == set()


def test_pairs_that_do_not_quite_sum_to_one():
    """Upstream rounds to four digits. Against a third (0, 1): A 1.5001 and B 1.5001 tie, so the image is open."""
    agents = [detector(name, np.array([0.75]), images(1)) for name in "ab"]
    agents[0].frame["prob_A"], agents[0].frame["prob_B"] = np.float32(0.7501), np.float32(0.2500)
    agents[1].frame["prob_A"], agents[1].frame["prob_B"] = np.float32(0.7500), np.float32(0.2501)
    assert settled_images(agents) == set()


def test_decisions_equal_the_full_run_on_every_image():
    rng = np.random.default_rng(0)
    count = 4000
    names = images(count)
    # Many values on a coarse grid, so that sums meet the bounds and ties exactly.
    values = np.where(rng.random((3, count)) < 0.5, rng.integers(0, 9, (3, count)) / 8, rng.random((3, count)))
    agents = [detector(name, values[i], names) for i, name in enumerate("abc")]
    full = fuse(agents).frame

    settled = settled_images(agents[:2])
    open_rows = [i for i, name in enumerate(names) if name not in settled]
    assert 0.2 < len(open_rows) / count < 0.9
    last = detector("c", values[2][open_rows], [names[i] for i in open_rows], only_undecided=["a.csv", "b.csv"])
    assert complete([*agents[:2], last])[1] == settled
    exited = fuse([*agents[:2], last]).frame

    assert list(exited["image"]) == list(full["image"])
    assert list(exited["answer"]) == list(full["answer"])
    assert exited.loc[exited["decided_early"] == 1, "prob_B_c"].isna().all()
    assert exited["decided_early"].sum() == len(settled)


def test_an_open_image_that_the_last_agent_lacks_is_still_missing():
    names = images(2)
    both = np.array([0.5, 0.9])
    last = detector("c", np.array([0.5]), ["DFBench/x/9.png"], only_undecided=["a.csv", "b.csv"])
    agents = [detector("a", both, names), detector("b", both, names), last]
    assert complete(agents)[1] == {names[1]}
    with pytest.raises(InputError, match="different images"):
        fuse(agents)


def test_the_bounds_hold_for_the_mean_of_the_probabilities_alone():
    last = detector("c", np.array([0.5]), images(1), only_undecided=["a.csv", "b.csv"])
    agents = [*(detector(name, np.array([0.5, 0.9]), images(2)) for name in "ab"), last]
    assert fuse(agents).frame["decided_early"].tolist() == [0, 1]
    with pytest.raises(InputError, match="--fusion vote: an agent ran with --only_undecided"):
        fuse(agents, "vote")


def test_files_without_an_early_exit_stay_as_they_are():
    agents = [detector(name, np.array([0.5]), images(1)) for name in "abc"]
    completed, early = complete(agents)
    assert completed == agents
    assert early == set()


def test_only_one_agent_can_be_the_last():
    agents = [detector(name, np.array([0.5]), images(1), only_undecided=["a.csv"]) for name in "abc"]
    with pytest.raises(InputError, match="3 agents ran with --only_undecided"):
        complete(agents)


def test_a_copy_does_not_settle_what_another_agent_would_not():
    agents = [detector(name, np.array([0.2, 0.8, 0.25]), images(3)) for name in "ab"]
    with pytest.raises(InputError, match="a, b: the same answers to all 3 images"):
        settled_images(agents)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_pandas_has_nothing_to_say_about_the_completed_rows():
    agents = [detector(name, np.array([0.5, 0.9]), images(2)) for name in "ab"]
    last = detector("c", np.array([0.5]), images(1), only_undecided=["a.csv", "b.csv"])
    last.frame[["logit_A", "logit_B"]] = np.float32([0, 0])
    completed, _ = complete([*agents, last])
    assert completed[2].frame["logit_A"].tolist()[0] == 0
    assert completed[2].frame.dtypes.equals(last.frame.dtypes)
