"""The rules of MoA-DF and its kin on hand-worked numbers."""

import numpy as np
import pandas as pd
import pytest

from dfbench.errors import InputError
from dfbench.fusion.fitting import Fusion
from dfbench.fusion.fuse import fuse, fused_frame
from dfbench.fusion.rules import RULES, Calibrated, FusionRule, Stacked, Weighted, register
from dfbench.predictions.join import join
from dfbench.predictions.reader import Detector


def detector(name: str, prob_fake: list[float]) -> Detector:
    """Images 0.jpg, 1.jpg ... of source edit, all of them fake, with these P(fake)."""
    frame = pd.DataFrame({"image": [f"DFBench/edit/{i}.jpg" for i in range(len(prob_fake))]})
    frame["label"] = "B"
    frame["prob_B"] = np.array(prob_fake, np.float32)
    frame["prob_A"] = np.float32(1) - frame["prob_B"]
    frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
    return Detector(name, frame)


def fuse_by(rule: FusionRule, detectors: list[Detector]) -> pd.DataFrame:
    return fused_frame(join(detectors), Fusion(rule))


def test_mean_prob_on_hand_worked_numbers():
    # Image 0: (.9 + .2 + .25) / 3 = .45 -> A, though the most certain agent says B. Image 1: (.5 + .25 + .75) / 3 = .5,
    # a tie -> B. Image 2: (1 + 1 + 0) / 3 -> B.
    agents = [detector("x", [0.9, 0.5, 1]), detector("y", [0.2, 0.25, 1]), detector("z", [0.25, 0.75, 0])]
    fused = fuse(agents).frame
    np.testing.assert_allclose(fused["prob_B"], [0.45, 0.5, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(fused["prob_A"] + fused["prob_B"], 1, rtol=1e-6)
    assert fused["answer"].tolist() == ["A", "B", "B"]
    assert fused[["logit_A", "logit_B"]].isna().all(axis=None)
    assert fused["prob_B_y"].tolist() == agents[1].frame["prob_B"].tolist()


@pytest.mark.parametrize("num_agents", [1, 2, 5])
def test_any_number_of_agents(num_agents):
    fused = fuse([detector(f"agent{i}", [0.1 * i, 0.9]) for i in range(num_agents)]).frame
    np.testing.assert_allclose(fused["prob_B"], [0.05 * (num_agents - 1), 0.9], rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.is_fitted])
def test_one_agent_alone_keeps_its_answers(name):
    fused = fuse([detector("x", [0.9, 0.5, 0.1, 1, 0])], name).frame
    assert fused["answer"].tolist() == ["B", "B", "A", "B", "A"]


def test_the_small_tail_survives_the_mean():
    agents = [detector("x", [1]), detector("y", [1])]
    for agent in agents:
        agent.frame["prob_A"] = np.float32(1e-30)
    assert fuse(agents).frame["prob_A"][0] == np.float32(1e-30)
    assert fuse(agents, "mean_logit").frame["prob_A"][0] == pytest.approx(1e-30)


def test_mean_logit_by_hand():
    # Logit differences (B - A) of image 0: 4 and -2, mean 1, P(B) = 1 / (1 + e^-1) = .731059. The mean of the
    # probabilities, (.982014 + .119203) / 2 = .550608, is not that.
    x, y = detector("x", [0.982014]), detector("y", [0.119203])
    x.frame["logit_A"], x.frame["logit_B"] = np.float32(10), np.float32(14)
    y.frame["logit_A"], y.frame["logit_B"] = np.float32(-1), np.float32(-3)
    assert fuse([x, y], "mean_logit").frame["prob_B"][0] == pytest.approx(0.731059, rel=1e-5)
    assert fuse([x, y]).frame["prob_B"][0] == pytest.approx(0.550608, rel=1e-5)


def test_mean_logit_without_logits_takes_the_probabilities():
    # ln(.8 / .2) = ln 4 and ln(.5 / .5) = 0: mean ln 2, P(B) = 2 / 3.
    agents = [detector("x", [0.8]), detector("y", [0.5])]
    assert fuse(agents, "mean_logit").frame["prob_B"][0] == pytest.approx(2 / 3)


def test_a_probability_of_exactly_zero_has_finite_odds():
    # Upstream's four digits: 0.0000 counts as half of 0.0001, the smallest one in the file. Image 0: ln(.00005 / 1) =
    # -9.9; with the other agent at ln(.99 / .01) = 4.6 the mean is below 0.
    agents = [detector("x", [0, 1, 0.0001]), detector("y", [0.99, 0.5, 0.5])]
    fused = fuse(agents, "mean_logit").frame
    odds = (np.log(0.00005) + np.log(99)) / 2
    np.testing.assert_allclose(fused["prob_B"][0], 1 / (1 + np.exp(-odds)), rtol=1e-4)
    assert np.isfinite(fused["prob_B"]).all()
    assert fused["answer"].tolist() == ["A", "B", "A"]


def test_votes_count_heads_and_a_tie_is_b():
    x, y, z = detector("x", [0.99, 0.4]), detector("y", [0.4, 0.4]), detector("z", [0.4, 0.5])
    fused = fuse([x, y, z], "vote").frame
    np.testing.assert_allclose(fused["prob_B"], [1 / 3, 1 / 3], rtol=1e-6)
    assert fused["answer"].tolist() == ["A", "A"]
    assert fuse([x, y], "vote").frame["answer"].tolist() == ["B", "A"]


def test_weights_are_scaled_to_one():
    fused = fuse([detector("x", [0.8]), detector("y", [0.4])], "weighted", weights=[3, 1])
    assert fused.info["parameters"] == {"weights": [0.75, 0.25]}
    assert fused.frame["prob_B"][0] == pytest.approx(0.7)


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, float("nan")], [1, 1, 1]])
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(InputError, match=r"--weights are .* expected 2 numbers"):
        Weighted.given(weights, 2)


def test_calibrated_and_stacked_by_hand():
    # Odds ln 4 and ln(1/4). Calibrated: 2 ln 4 / 2 + ... = with temperature 2, bias 0: P = 2 / 3; with temperature 1,
    # bias ln 4: P = 1 / 2; mean 7 / 12. Stacked: 2 ln 4 + 1 * -ln 4 - ln 2 = ln 2, P = 2 / 3.
    agents = [detector("x", [0.8]), detector("y", [0.2])]
    calibrated = fuse_by(Calibrated([2, 1], [0, np.log(4)]), agents)
    assert calibrated["prob_B"][0] == pytest.approx(7 / 12)
    stacked = fuse_by(Stacked([2, 1], -np.log(2)), agents)
    assert stacked["prob_B"][0] == pytest.approx(2 / 3)


def test_parameters_survive_json_and_others_are_refused():
    rule = Calibrated([2, 1], [0, 0.5])
    assert Calibrated.from_parameters(rule.parameters(), 2) == rule
    for parameters, num_agents in (({}, 2), (rule.parameters(), 3), ({"temperature": [0, 1], "bias": [0, 0]}, 2)):
        with pytest.raises(ValueError, match="temperature"):
            Calibrated.from_parameters(parameters, num_agents)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="vote is registered already"):
        register(RULES["vote"])
