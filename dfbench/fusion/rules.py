"""MoA-DF and its kin: several agents' per-image probabilities into one decision.

The paper's rule, `mean_prob` (arXiv:2506.03007, section on MoA-DF): the mean over the agents of the softmaxed pair,
decision by the larger one; a tie is B, as in upstream's `logit_calculation.py`. That script took the 4th and 5th
column of every file, which are log-probabilities in the Qwen file and probabilities in the two others; here columns go
by their names.

The others: `mean_logit` averages the agents' log-odds, `vote` their answers, `weighted` their probabilities under
given or fitted weights; `calibrated` gives each agent a temperature and a bias before the mean, `stacked` is a
logistic regression on the log-odds. `dfbench.fusion.fitting` fits the last three.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dfbench.errors import InputError
from dfbench.predictions.probabilities import answers
from dfbench.predictions.reader import Detector, join, write_detector
from dfbench.provenance import describe_software

FITTED_METHODS = ("weighted", "calibrated", "stacked")
METHODS = ("mean_prob", "mean_logit", "vote", *FITTED_METHODS)

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Agents:
    """What K agents say about N images.

    pairs: (N, K, 2) probabilities of A and B. odds: (N, K) log(P(B) / P(A)), all finite.
    """

    pairs: np.ndarray
    odds: np.ndarray

    def rows(self, chosen: np.ndarray) -> "Agents":
        return Agents(self.pairs[chosen], self.odds[chosen])


@dataclass(frozen=True)
class Rule:
    """How agents are fused.

    parameters: numbers of the method, by name: weights (K,) of `weighted`; temperature (K,) and bias (K,) of
        `calibrated`; weights (K,) and bias of `stacked`.
    fitted_on: on which images they were fitted, in words; empty where nothing was fitted. fitted_files: their CSVs.
    folds: parameters that were used for the images of some sources only, when they were cross-fitted.
    """

    method: str = "mean_prob"
    parameters: Parameters = field(default_factory=dict)
    fitted_on: str = ""
    fitted_files: tuple[str, ...] = ()
    folds: tuple[dict[str, Any], ...] = ()


def agents_of(joined: pd.DataFrame, num_agents: int) -> Agents:
    """The agents' answers out of a join (see `detectors.join`)."""
    columns = [[f"prob_{letter}_{i}" for i in range(num_agents)] for letter in "AB"]
    pairs = np.stack([joined[names].to_numpy(np.float64) for names in columns], axis=2)
    return Agents(pairs, np.stack([_odds(joined, pairs[:, i], i) for i in range(num_agents)], axis=1))


def _odds(joined: pd.DataFrame, pair: np.ndarray, agent: int) -> np.ndarray:
    """An agent's log-odds: the difference of its logits, or of the logarithms of its probabilities where it has none.

    A probability of exactly 0 only says that the file's digits end; it counts as half the smallest one above 0.
    """
    logits = joined[[f"logit_A_{agent}", f"logit_B_{agent}"]].to_numpy(np.float64)
    smallest = pair[pair > 0].min() / 2
    logarithms = np.log(np.maximum(pair, smallest))
    difference = np.where(np.isnan(logits), logarithms, logits)
    return difference[:, 1] - difference[:, 0]


def apply_rule(method: str, parameters: Parameters, agents: Agents) -> np.ndarray:
    """(N, 2) fused probabilities of A and B."""
    if method == "mean_prob":
        return agents.pairs.mean(axis=1)
    if method == "mean_logit":
        return _pair(agents.odds.mean(axis=1))
    if method == "vote":
        called_fake = (agents.pairs[:, :, 0] <= agents.pairs[:, :, 1]).mean(axis=1)
        return np.stack([1 - called_fake, called_fake], axis=1)
    if method == "weighted":
        return np.einsum("k,nkl->nl", parameters["weights"], agents.pairs)
    if method == "calibrated":
        calibrated = agents.odds / np.array(parameters["temperature"]) + np.array(parameters["bias"])
        return _pair(calibrated).mean(axis=1)
    return _pair(agents.odds @ np.array(parameters["weights"]) + parameters["bias"])


def _pair(odds: np.ndarray) -> np.ndarray:
    """Log-odds (...) -> probabilities of A and B (..., 2); neither tail is lost."""
    with np.errstate(over="ignore"):
        return np.stack([1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds))], axis=-1)


def fuse(joined: pd.DataFrame, names: Sequence[str], rule: Rule) -> pd.DataFrame:
    """Rows of a per-image CSV: its columns (logits NaN: a fused detector has none), then `prob_B_<name>` of each agent.

    joined: their answers (see `detectors.join`). The answer goes by the float32 pair that is written.
    """
    agents = agents_of(joined, len(names))
    if rule.folds:
        pair = np.full((len(joined), 2), np.nan)
        for fold in rule.folds:
            rows = joined["source"].isin(fold["sources"]).to_numpy()
            pair[rows] = apply_rule(rule.method, fold["parameters"], agents.rows(rows))
    else:
        pair = apply_rule(rule.method, rule.parameters, agents)
    pair = pair.astype(np.float32)
    frame = joined[["image", "label"]].copy()
    frame["answer"] = answers(pair)
    frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
    frame["prob_A"], frame["prob_B"] = pair[:, 0], pair[:, 1]
    for i, name in enumerate(names):
        frame[f"prob_B_{name}"] = joined[f"prob_B_{i}"]
    return frame


def given_weights(weights: Sequence[float], num_agents: int) -> Rule:
    """The rule `weighted` under these weights, scaled to sum to 1.

    Raises InputError unless there is one for each agent, none negative and not all 0.
    """
    values = np.asarray(weights, np.float64)
    if len(values) != num_agents or not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise InputError(
            "--weights",
            found=" ".join(f"{value:g}" for value in weights),
            expected=f"{num_agents} numbers of at least 0, not all 0, one for each CSV",
            remedy="correct them",
        )
    return Rule("weighted", {"weights": (values / values.sum()).tolist()})


def join_agents(detectors: Sequence[Detector], *, partial: bool = False) -> pd.DataFrame:
    """`detectors.join`, for fusion: refuses agents that are fusions themselves, which would count some agents twice."""
    for detector in detectors:
        if "fusion" in detector.info:
            raise InputError(
                detector.path or detector.name,
                found="a fused detector",
                expected="the CSVs of single agents",
                remedy="leave this file away",
            )
    return join(detectors, partial=partial)


def write_fused(path: Path, frame: pd.DataFrame, detectors: Sequence[Detector], rule: Rule) -> dict[str, Any]:
    """Write the fused per-image CSV and, beside it, how it came about; returns the latter."""
    agents = [
        {
            "name": detector.name,
            "csv": str(detector.path),
            "rows": len(detector.frame),
            "left_out": len(detector.frame) - len(frame),
            "errors": detector.num_errors,
        }
        for detector in detectors
    ]
    info = {
        "detector": "MoA-DF" if rule.method == "mean_prob" else f"MoA-DF ({rule.method})",
        "fusion": rule.method,
        "parameters": rule.parameters,
        **({"fitted_on": rule.fitted_on, "fitted_files": list(rule.fitted_files)} if rule.fitted_on else {}),
        **({"folds": list(rule.folds)} if rule.folds else {}),
        "agents": agents,
        "rows": len(frame),
        "answers": {letter: int((frame["answer"] == letter).sum()) for letter in "AB"},
        **describe_software(["numpy", "pandas"]),
    }
    extra = [column for column in frame.columns if column.startswith("prob_B_") or column == "decided_early"]
    write_detector(path, frame, info, extra=extra)
    return info
