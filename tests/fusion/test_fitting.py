"""Fitted fusion: numbers found again, and never fitted on the images that they are reported on."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from dfbench.errors import InputError
from dfbench.fusion.fitting import cross_fit, deal_sources, fit, fit_on_files, saved_rule
from dfbench.fusion.rules import Agents, Rule, agents_of, apply_rule, fuse, join_agents, write_fused
from dfbench.predictions.reader import Detector, read_detectors

SOURCES = {"Flick8k": "A", "LIVE": "A", "CSIQ": "A", "edit": "B", "Kolors": "B", "NOVA": "B"}


def simulate(size: int = 4000, temperatures=(1.0, 4.0), biases=(0.0, 2.0), seed: int = 0) -> tuple[Agents, np.ndarray]:
    """Agents whose calibrated log-odds are odds / temperature + bias, and the labels."""
    rng = np.random.default_rng(seed)
    is_fake = rng.random(size) < 0.5
    odds = np.empty((size, len(temperatures)))
    for k, (temperature, bias) in enumerate(zip(temperatures, biases, strict=True)):
        # Normal scores at +-d with variance 2d have log-odds equal to themselves.
        true_odds = np.where(is_fake, 2, -2) + rng.normal(0, 2, size)
        odds[:, k] = (true_odds - bias) * temperature
    return agents_from(odds), is_fake


def agents_from(odds: np.ndarray) -> Agents:
    prob_fake = 1 / (1 + np.exp(-odds))
    return Agents(np.stack([1 - prob_fake, prob_fake], axis=2), odds)


def detectors(
    num_images: int = 60, names: str = "xy", sources=SOURCES, folder: str = "DFBench", seed: int = 0
) -> list[Detector]:
    """Agents of which the first is good and the others are nearly blind."""
    rng = np.random.default_rng(seed)
    images = [f"{folder}/{source}/{i}.jpg" for source in sources for i in range(num_images)]
    labels = np.repeat([sources[source] for source in sources], num_images)
    found = []
    for k, name in enumerate(names):
        odds = np.where(labels == "B", 2, -2) * (1 if k == 0 else 0.1) + rng.normal(0, 1.5, len(images))
        frame = pd.DataFrame({"image": images, "label": labels})
        frame["prob_A"], frame["prob_B"] = (np.float32(1 / (1 + np.exp(sign * odds))) for sign in (1, -1))
        frame["answer"] = np.where(frame["prob_A"] > frame["prob_B"], "A", "B")
        frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
        found.append(Detector(name, frame))
    return found


def saved(tmp_path, agents: list[Detector]) -> list[Detector]:
    """The same agents, written and read again."""
    for agent in agents:
        columns = ["image", "label", "answer", "logit_A", "logit_B", "prob_A", "prob_B"]
        tmp_path.mkdir(exist_ok=True)
        agent.frame[columns].to_csv(tmp_path / f"{agent.name}.csv", index=False)
    return read_detectors([tmp_path / f"{agent.name}.csv" for agent in agents])


def test_calibration_finds_temperatures_and_biases():
    agents, is_fake = simulate()
    found = fit("calibrated", agents, is_fake)
    np.testing.assert_allclose(found["temperature"], [1, 4], rtol=0.1)
    np.testing.assert_allclose(found["bias"], [0, 2], atol=0.15)
    pair = apply_rule("calibrated", found, agents)
    assert pair[is_fake, 1].mean() > 0.7
    np.testing.assert_allclose(pair.sum(axis=1), 1)


def test_stacking_is_logistic_regression_on_the_odds():
    agents, is_fake = simulate()
    found = fit("stacked", agents, is_fake)
    # Two independent agents: the right odds are the sum of their calibrated ones, odds_1 + odds_2 / 4 + 2.
    np.testing.assert_allclose(found["weights"], [1, 0.25], rtol=0.1)
    assert found["bias"] == pytest.approx(2, abs=0.2)
    expected = LogisticRegression(C=1.0).fit(agents.odds, is_fake).predict_proba(agents.odds)
    np.testing.assert_allclose(apply_rule("stacked", found, agents), expected, atol=1e-3)


def test_fitted_weights_are_the_most_likely_of_a_grid():
    agents, is_fake = simulate(500, temperatures=(1.0, 1.5, 3.0), biases=(0.0, 1.0, -1.0))

    def likelihood(weights):
        pair = apply_rule("weighted", {"weights": weights}, agents)
        return np.log(np.where(is_fake, pair[:, 1], pair[:, 0])).mean()

    found = fit("weighted", agents, is_fake)["weights"]
    assert sum(found) == pytest.approx(1)
    assert min(found) >= 0
    grid = [(a, b, 1 - a - b) for a in np.linspace(0, 1, 41) for b in np.linspace(0, 1 - a, 41)]
    assert likelihood(found) >= max(map(likelihood, grid)) - 1e-9


def test_a_useless_agent_gets_no_weight():
    agents, is_fake = simulate(2000)
    reversed_agent = agents_from(np.stack([agents.odds[:, 0], -agents.odds[:, 0]], axis=1))
    np.testing.assert_allclose(fit("weighted", reversed_agent, is_fake)["weights"], [1, 0], atol=1e-6)


def test_an_agent_worse_than_chance_cannot_be_calibrated():
    agents, is_fake = simulate(500)
    with pytest.raises(InputError, match="agent 2 no better than chance"):
        fit("calibrated", agents_from(np.stack([agents.odds[:, 0], -agents.odds[:, 0]], axis=1)), is_fake)


@pytest.mark.parametrize("method", ["weighted", "calibrated", "stacked"])
def test_agents_without_error_give_finite_numbers(method):
    is_fake = np.arange(40) % 2 == 0
    found = fit(method, agents_from(np.where(is_fake, 30.0, -30.0)[:, None]), is_fake)
    assert all(np.isfinite(value).all() for value in found.values())


def test_sources_are_dealt_evenly_and_no_fold_lacks_a_class():
    sizes = {"a": 50, "b": 40, "c": 30, "d": 20, "e": 10}
    rows = [(source, "A") for source, size in sizes.items() for _ in range(size)]
    rows += [(source, "B") for source in "vwxyz" for _ in range(7)]
    found = deal_sources(pd.DataFrame(rows, columns=["source", "label"]), 3)
    # Real: a -> 0, b -> 1, c -> 2, d -> 2 (30 + 20 = 50), e -> 1 (40 + 10 = 50).
    assert {source: found[source] for source in sizes} == {"a": 0, "b": 1, "c": 2, "d": 2, "e": 1}
    assert sorted(found[source] for source in "vwxyz") == [0, 0, 1, 1, 2]


def test_folds_are_no_more_than_the_rarer_class_has_sources():
    rows = pd.DataFrame({"source": list("abwxyz"), "label": list("AABBBB")})
    assert set(deal_sources(rows, 5).values()) == {0, 1}
    with pytest.raises(InputError, match="1 sources of real images"):
        deal_sources(rows[1:], 5)


@pytest.mark.parametrize("method", ["weighted", "calibrated", "stacked"])
def test_cross_fitting_never_fits_on_the_source_it_is_reported_on(method):
    agents = detectors()
    joined = join_agents(agents)
    rule = cross_fit(method, joined, agents, 3)
    assert sorted(source for fold in rule.folds for source in fold["sources"]) == sorted(SOURCES)
    for fold in rule.folds:
        others = joined[~joined["source"].isin(fold["sources"])]
        expected = fit(method, agents_of(others, 2), (others["label"] == "B").to_numpy())
        assert fold["parameters"] == expected
    # Labels of a source do not touch its own fused probabilities.
    flipped = joined.copy()
    nova = flipped["source"] == "NOVA"
    flipped.loc[nova, "prob_B_0"], flipped.loc[nova, "prob_A_0"] = joined["prob_A_0"], joined["prob_B_0"]
    other_rule = cross_fit(method, flipped, agents, 3)
    fold = next(i for i, fold in enumerate(rule.folds) if "NOVA" in fold["sources"])
    assert rule.folds[fold] == other_rule.folds[fold]
    assert rule.parameters != other_rule.parameters


def test_cross_fitting_leaves_unlabelled_images_out_of_the_fit_but_fuses_them():
    agents = detectors()
    for agent in agents:
        agent.frame.loc[:9, "label"] = ""
        agent.frame.loc[len(agent.frame)] = ["mine/1.jpg", "", np.float32(0.1), np.float32(0.9), "B", np.nan, np.nan]
    joined = join_agents(agents)
    fused = fuse(joined, ["x", "y"], cross_fit("stacked", joined, agents))
    assert fused["prob_B"].notna().all()
    assert len(fused) == len(joined)


def test_stacking_beats_the_mean_where_one_agent_is_blind():
    agents = detectors(num_images=200, names="xyz")
    joined = join_agents(agents)
    accuracy = {}
    for method in ("mean_prob", "stacked"):
        rule = Rule() if method == "mean_prob" else cross_fit("stacked", joined, agents)
        fused = fuse(joined, [agent.name for agent in agents], rule)
        accuracy[method] = (fused["answer"] == fused["label"]).mean()
    assert accuracy["stacked"] > accuracy["mean_prob"] + 0.02


def test_fitting_on_validation_files(tmp_path):
    agents, validation = detectors(), saved(tmp_path, detectors(seed=1, folder="val"))
    rule = fit_on_files("stacked", [agent.path for agent in validation], agents)
    joined = join_agents(validation)
    assert rule.parameters == fit("stacked", agents_of(joined, 2), (joined["label"] == "B").to_numpy())
    assert rule.fitted_on.startswith("360 validation images of ")
    assert not rule.folds


def test_validation_files_must_be_of_other_images_and_of_the_same_agents(tmp_path):
    agents = detectors()
    same = saved(tmp_path / "same", detectors(sources={"edit": "B", "LIVE": "A"}, seed=1))
    with pytest.raises(InputError, match=r"120 of the images to be fused, such as DFBench/LIVE/0\.jpg"):
        fit_on_files("stacked", [agent.path for agent in same], agents)
    other = saved(tmp_path / "other", detectors(folder="val"))
    with pytest.raises(InputError, match="found the agents x; expected x, y"):
        fit_on_files("stacked", [other[0].path], agents)
    with pytest.raises(InputError, match="found the agents y, x; expected x, y"):
        fit_on_files("stacked", [other[1].path, other[0].path], agents)
    one_class = saved(tmp_path / "one", detectors(folder="val", sources={"edit": "B"}))
    with pytest.raises(InputError, match="found 60 fake and 0 real images to fit on"):
        fit_on_files("stacked", [agent.path for agent in one_class], agents)


def test_what_was_fitted_is_saved_and_applies_to_other_images_only(tmp_path):
    agents = saved(tmp_path, detectors())
    joined = join_agents(agents)
    rule = cross_fit("calibrated", joined, agents)
    info = write_fused(tmp_path / "moa_df.csv", fuse(joined, ["x", "y"], rule), agents, rule)
    assert info["detector"] == "MoA-DF (calibrated)"
    assert info["fitted_on"] == "images of other sources (3 folds by source)"
    others = detectors(folder="new", seed=3)
    found = saved_rule(tmp_path / "moa_df.json", others)
    assert (found.method, found.parameters) == ("calibrated", rule.parameters)
    with pytest.raises(InputError, match=r"x\.csv: found 360 of the images to be fused"):
        saved_rule(tmp_path / "moa_df.json", agents)
    with pytest.raises(InputError, match="found the agents x, y; expected y, x"):
        saved_rule(tmp_path / "moa_df.json", others[::-1])


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"fusion": "mean_prob", "parameters": {}, "agents": []},
        {"fusion": "stacked", "parameters": {"weights": [1], "bias": 0}, "agents": [{"name": "x"}, {"name": "y"}]},
        {"fusion": "stacked", "parameters": {"weights": [1, "a"], "bias": 0}, "agents": []},
        {"fusion": "stacked", "parameters": {"weights": [1, float("nan")], "bias": 0}, "agents": []},
        {"fusion": "calibrated", "parameters": {"temperature": [1, 0], "bias": [0, 0]}, "agents": []},
        {"fusion": "stacked", "parameters": {"weights": [1, 1], "bias": 0}, "agents": 7},
        {"fusion": "stacked", "parameters": {"weights": [1, 1], "bias": 0}, "agents": [7]},
    ],
)
def test_a_json_without_a_usable_fusion_is_one_line(tmp_path, content):
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"a\.json: found (no fitted fusion of 2 agents|the agents )"):
        saved_rule(tmp_path / "a.json", detectors())
