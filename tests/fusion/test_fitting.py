"""Fitted fusion: parameters found again, and never fitted on the images that they are reported on."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from dfbench.errors import InputError
from dfbench.fusion.fitting import cross_fit, deal_sources, fit_on_files, saved_fusion
from dfbench.fusion.fuse import fuse, fused_frame
from dfbench.fusion.rules import AgentOutputs, Calibrated, Stacked, Weighted, agent_outputs
from dfbench.predictions.join import Predictions, join
from dfbench.predictions.probabilities import sigmoid
from dfbench.predictions.reader import Detector, read_detectors, write_detector

SOURCES = {"Flick8k": "A", "LIVE": "A", "CSIQ": "A", "edit": "B", "Kolors": "B", "NOVA": "B"}


def simulate(
    size: int = 4000, temperatures=(1.0, 4.0), biases=(0.0, 2.0), seed: int = 0
) -> tuple[AgentOutputs, np.ndarray]:
    """Agents whose calibrated log-odds are log_odds / temperature + bias, and the labels."""
    rng = np.random.default_rng(0)
    is_fake = rng.random(size) < 0.5
    log_odds = np.empty((size, len(temperatures)))
    for k, (temperature, bias) in enumerate(zip(temperatures, biases, strict=True)):
        # Normal scores at +-d with variance 2d have log-odds equal to themselves.
        true_odds = np.where(is_fake, 2, -2) + rng.normal(0, 2, size)
        log_odds[:, k] = (true_odds - bias) * temperature
    return agents_from(log_odds), is_fake


def agents_from(log_odds: np.ndarray) -> AgentOutputs:
    prob_fake = sigmoid(log_odds)
    return AgentOutputs(np.stack([1 - prob_fake, prob_fake], axis=2), log_odds)


def labelled_images(sizes: dict[tuple[str, str], int]) -> Predictions:
    """sizes: {(source, label): number of images}, as one detector sees them."""
    rows = [(source, label) for (source, label), size in sizes.items() for _ in range(size)]
    frame = pd.DataFrame({"image": [f"DFBench/{source}/{i}.jpg" for i, (source, _) in enumerate(rows)]})
    frame["label"] = [label for _, label in rows]
    frame[["logit_A", "logit_B"]], frame[["prob_A", "prob_B"]] = np.nan, 0.5
    return join([Detector("x", frame)])


def detectors(
    num_images: int = 60, names: str = "xy", sources=SOURCES, folder: str = "DFBench", seed: int = 0
) -> list[Detector]:
    """Agents of which the first is good and the others are nearly blind."""
    rng = np.random.default_rng(seed)
    images = [f"{folder}/{source}/{i}.jpg" for source in sources for i in range(num_images)]
    labels = np.repeat([sources[source] for source in sources], num_images)
    found = []
    for k, name in enumerate(names):
        log_odds = np.where(labels == "B", 2, -2) * (1 if k == 0 else 0.1) + rng.normal(0, 1.5, len(images))
        frame = pd.DataFrame({"image": images, "label": labels})
        frame["prob_A"], frame["prob_B"] = (np.float32(1 / (1 + np.exp(sign * log_odds))) for sign in (1, -1))
        frame["answer"] = np.where(frame["prob_A"] > frame["prob_B"], "A", "B")
        frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
        found.append(Detector(name, frame))
    return found


def saved(tmp_path, agents: list[Detector]) -> list[Detector]:
    """The same agents, written and read again."""
    for agent in agents:
        write_detector(tmp_path / f"{agent.name}.csv", agent)
    return read_detectors([tmp_path / f"{agent.name}.csv" for agent in agents])


def test_calibration_finds_temperatures_and_biases():
    agents, is_fake = simulate()
    found = Calibrated.fit(agents, is_fake)
    np.testing.assert_allclose(found.temperature, [1, 4], rtol=0.1)
    np.testing.assert_allclose(found.bias, [0, 2], atol=0.15)
    pair = found.apply(agents)
    assert pair[is_fake, 1].mean() > 0.7
    np.testing.assert_allclose(pair.sum(axis=1), 1)


def test_stacking_is_logistic_regression_on_the_log_odds():
    agents, is_fake = simulate()
    found = Stacked.fit(agents, is_fake)
    # Two independent agents: the right log-odds are the sum of their calibrated ones, x_1 + x_2 / 4 + 2.
    np.testing.assert_allclose(found.weights, [1, 0.25], rtol=0.1)
    assert found.bias == pytest.approx(2, abs=0.2)
    expected = LogisticRegression(C=1.0).fit(agents.log_odds, is_fake).predict_proba(agents.log_odds)
    np.testing.assert_allclose(found.apply(agents), expected, atol=1e-3)


def test_fitted_weights_are_the_most_likely_of_a_grid():
    agents, is_fake = simulate(500, temperatures=(1.0, 1.5, 3.0), biases=(0.0, 1.0, -1.0))

    def likelihood(weights):
        pair = Weighted(weights).apply(agents)
        return np.log(np.where(is_fake, pair[:, 1], pair[:, 0])).mean()

    found = Weighted.fit(agents, is_fake).weights
    assert sum(found) == pytest.approx(1)
    assert min(found) >= 0
    grid = [(a, b, 1 - a - b) for a in np.linspace(0, 1, 41) for b in np.linspace(0, 1 - a, 41)]
    assert likelihood(found) >= max(map(likelihood, grid)) - 1e-9


def test_a_useless_agent_gets_no_weight():
    agents, is_fake = simulate(2000)
    reversed_agent = agents_from(np.stack([agents.log_odds[:, 0], -agents.log_odds[:, 0]], axis=1))
    np.testing.assert_allclose(Weighted.fit(reversed_agent, is_fake).weights, [1, 0], atol=1e-6)


def test_an_agent_worse_than_chance_cannot_be_calibrated():
    agents, is_fake = simulate(500)
    with pytest.raises(InputError, match="agent 2 is no better than chance"):
        Calibrated.fit(agents_from(np.stack([agents.log_odds[:, 0], -agents.log_odds[:, 0]], axis=1)), is_fake)


@pytest.mark.parametrize("rule", [Weighted, Calibrated, Stacked])
def test_agents_without_error_give_finite_numbers(rule):
    is_fake = np.arange(40) % 2 == 0
    found = rule.fit(agents_from(np.where(is_fake, 30.0, -30.0)[:, None]), is_fake)
    assert rule.from_parameters(found.parameters(), 1) == found


def test_sources_are_dealt_evenly_and_no_fold_lacks_a_class():
    sizes = {"a": 50, "b": 40, "c": 30, "d": 20, "e": 10}
    images = {(source, "A"): size for source, size in sizes.items()} | {(source, "B"): 7 for source in "vwxyz"}
    found = deal_sources(labelled_images(images), 3)
    # Real: a -> 0, b -> 1, c -> 2, d -> 2 (30 + 20 = 50), e -> 1 (40 + 10 = 50).
    assert {source: found[source] for source in sizes} == {"a": 0, "b": 1, "c": 2, "d": 2, "e": 1}
    assert sorted(found[source] for source in "vwxyz") == [0, 0, 1, 1, 2]


def test_folds_are_no_more_than_the_rarer_class_has_sources():
    images = labelled_images(dict.fromkeys(zip("abwxyz", "AABBBB", strict=True), 1))
    assert set(deal_sources(images, 5).values()) == {0, 1}
    with pytest.raises(InputError, match="1 sources of real images"):
        deal_sources(images.take(np.arange(1, 6)), 5)


@pytest.mark.parametrize("rule", [Weighted, Calibrated, Stacked])
def test_cross_fitting_never_fits_on_the_source_it_is_reported_on(rule):
    predictions = join(detectors())
    fusion = cross_fit(rule, predictions, 3)
    assert sorted(source for fold in fusion.folds for source in fold.sources) == sorted(SOURCES)
    for fold in fusion.folds:
        others = predictions.take(~np.isin(predictions.sources, fold.sources))
        assert fold.rule == rule.fit(agent_outputs(others), others.is_fake)
    # Answers on a source do not touch how that source is fused.
    prob = predictions.prob.copy()
    nova = predictions.sources == "NOVA"
    prob[nova, 0] = prob[nova, 0, ::-1]
    other = cross_fit(rule, replace(predictions, prob=prob), 3)
    number = next(i for i, fold in enumerate(fusion.folds) if "NOVA" in fold.sources)
    assert fusion.folds[number] == other.folds[number]
    assert fusion.rule != other.rule


def test_cross_fitting_leaves_unlabelled_images_out_of_the_fit_but_fuses_them():
    agents = detectors()
    for agent in agents:
        agent.frame.loc[:9, "label"] = ""
        agent.frame.loc[len(agent.frame)] = ["mine/1.jpg", "", np.float32(0.1), np.float32(0.9), "B", np.nan, np.nan]
    predictions = join(agents)
    fused = fused_frame(predictions, cross_fit(Stacked, predictions))
    assert fused["prob_B"].notna().all()
    assert len(fused) == len(predictions)


def test_stacking_beats_the_mean_where_one_agent_is_blind():
    agents = detectors(num_images=200, names="xyz")
    accuracy = {}
    for name in ("mean_prob", "stacked"):
        fused = fuse(agents, name).frame
        accuracy[name] = (fused["answer"] == fused["label"]).mean()
    assert accuracy["stacked"] > accuracy["mean_prob"] + 0.02


def test_fitting_on_validation_files(tmp_path):
    agents, validation = detectors(), saved(tmp_path, detectors(seed=1, folder="val"))
    fusion = fit_on_files(Stacked, [agent.path for agent in validation], agents)
    predictions = join(validation)
    assert fusion.rule == Stacked.fit(agent_outputs(predictions), predictions.is_fake)
    assert fusion.fitted_on.startswith("360 validation images of ")
    assert not fusion.folds


def test_validation_files_must_be_of_other_images_and_of_the_same_agents(tmp_path):
    agents = detectors()
    same = saved(tmp_path / "same", detectors(sources={"edit": "B", "LIVE": "A"}, seed=1))
    with pytest.raises(InputError, match=r"120 of the images to be fused were fitted on, such as DFBench/LIVE/0\.jpg"):
        fit_on_files(Stacked, [agent.path for agent in same], agents)
    other = saved(tmp_path / "other", detectors(folder="val"))
    with pytest.raises(InputError, match="the agents are x; expected x, y"):
        fit_on_files(Stacked, [other[0].path], agents)
    with pytest.raises(InputError, match="the agents are y, x; expected x, y"):
        fit_on_files(Stacked, [other[1].path, other[0].path], agents)
    one_class = saved(tmp_path / "one", detectors(folder="val", sources={"edit": "B"}))
    with pytest.raises(InputError, match="there are 60 fake and 0 real images to fit on"):
        fit_on_files(Stacked, [agent.path for agent in one_class], agents)


def test_what_was_fitted_is_saved_and_applies_to_other_images_only(tmp_path):
    agents = saved(tmp_path, detectors())
    fused = fuse(agents, "calibrated")
    write_detector(tmp_path / "moa_df.csv", fused)
    assert fused.name == "MoA-DF (calibrated)"
    assert fused.info["fitted_on"] == "images of other sources (3 folds by source)"
    others = detectors(folder="new", seed=3)
    assert saved_fusion(tmp_path / "moa_df.json", others).rule == cross_fit(Calibrated, join(agents)).rule
    with pytest.raises(InputError, match=r"x\.csv: 360 of the images to be fused"):
        saved_fusion(tmp_path / "moa_df.json", agents)
    with pytest.raises(InputError, match="the agents are x, y; expected y, x"):
        saved_fusion(tmp_path / "moa_df.json", others[::-1])


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
    with pytest.raises(InputError, match=r"a\.json: (there is no fitted fusion of 2 agents|the agents are )"):
        saved_fusion(tmp_path / "a.json", detectors())
