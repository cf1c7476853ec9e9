"""Fit the numbers of a fusion rule on images that it is not reported on.

Either on validation CSVs of the same agents, or by cross-fitting: the sources are dealt into folds, and the images of
each fold are fused with numbers fitted on the other folds, so that no generator is ever in both.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from dfbench.data.sources import FAKE
from dfbench.errors import InputError
from dfbench.fusion.rules import FITTED_METHODS, Agents, Parameters, Rule, agents_of, join_agents
from dfbench.predictions.reader import Detector, read_detector, read_detectors
from dfbench.predictions.schema import read_metadata


def fit(method: str, agents: Agents, is_fake: np.ndarray) -> Parameters:
    """The parameters that make the labels most likely (see `fusion.Rule`). is_fake: (N,) bool, both classes in it.

    No class is weighted: probabilities come out calibrated to the share of real images among those given.
    """
    if method == "weighted":
        return {"weights": _fit_weights(agents.pairs, is_fake)}
    if method == "stacked":
        weights, bias = _logistic_regression(agents.odds, is_fake)
        return {"weights": weights.tolist(), "bias": bias}
    fits = [_logistic_regression(odds[:, None], is_fake) for odds in agents.odds.T]
    if any(slope[0] <= 0 for slope, _ in fits):
        raise InputError(
            "calibrated fusion",
            found=f"agent {1 + [slope[0] <= 0 for slope, _ in fits].index(True)} no better than chance on these images",
            expected="P(fake) that is higher on fake images",
            remedy="leave this agent away, or take --fusion stacked",
        )
    return {"temperature": [1 / slope[0] for slope, _ in fits], "bias": [bias for _, bias in fits]}


def _logistic_regression(odds: np.ndarray, is_fake: np.ndarray) -> tuple[np.ndarray, float]:
    """(weights (K,), bias). The mild L2 penalty keeps them finite where agents separate the classes without error."""
    model = LogisticRegression(C=1.0, max_iter=1000).fit(odds, is_fake)
    return model.coef_[0], float(model.intercept_[0])


def _fit_weights(pairs: np.ndarray, is_fake: np.ndarray) -> list[float]:
    """Weights from 0 to 1 that sum to 1 and make the labels most likely under the weighted mean; a concave problem."""
    prob_label = np.where(is_fake[:, None], pairs[:, :, 1], pairs[:, :, 0])
    floor = 1e-12  # every agent may be certain and wrong

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = prob_label @ weights + floor
        return -np.log(mixed).mean(), -(prob_label / mixed[:, None]).mean(axis=0)

    num_agents = pairs.shape[1]
    found = minimize(
        loss,
        np.full(num_agents, 1 / num_agents),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * num_agents,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    weights = np.maximum(found.x, 0)
    return (weights / weights.sum()).tolist()


def fit_on_files(method: str, paths: Sequence[Path], detectors: Sequence[Detector], *, partial: bool = False) -> Rule:
    """A rule fitted on validation CSVs of the same agents, in the same order as `detectors`.

    Raises InputError where their number or order differs, where they share an image with `detectors`, and where they
    have images of one class only.
    """
    validation = read_detectors(paths)
    where = ", ".join(map(str, paths))
    _check_agents([found.name for found in validation], detectors, where)
    joined = join_agents(validation, partial=partial)
    _refuse_shared_images(joined["image"], detectors, where)
    labelled = joined[joined["label"] != ""]
    parameters = _fit_rows(method, labelled, len(detectors), where)
    fitted_on = f"{len(labelled):,} validation images of {where}"
    return Rule(method, parameters, fitted_on, tuple(str(path.resolve()) for path in paths))


def cross_fit(method: str, joined: pd.DataFrame, detectors: Sequence[Detector], num_folds: int = 5) -> Rule:
    """A rule whose folds were each fitted on the images of the other folds' sources.

    joined: the answers of `detectors`. `parameters` are fitted on all labelled images: for other files only. Raises
    InputError where there are not two sources of either class.
    """
    where = "cross-fitting by source"
    labelled = joined[joined["label"] != ""]
    fold_of_source = deal_sources(labelled, num_folds)
    folds = []
    for number in range(max(fold_of_source.values()) + 1):
        # A source without labels is in no fold's fit; the first fold's numbers are as good as any other's.
        held_out = sorted(source for source in joined["source"].unique() if fold_of_source.get(source, 0) == number)
        rows = labelled[~labelled["source"].isin(held_out)]
        folds.append({"sources": held_out, "parameters": _fit_rows(method, rows, len(detectors), where)})
    return Rule(
        method,
        _fit_rows(method, labelled, len(detectors), where),
        f"images of other sources ({len(folds)} folds by source)",
        tuple(str(detector.path.resolve()) for detector in detectors if detector.path),
        tuple(folds),
    )


def _fit_rows(method: str, rows: pd.DataFrame, num_agents: int, where: str) -> Parameters:
    is_fake = (rows["label"] == FAKE).to_numpy()
    if is_fake.all() or not is_fake.any():
        raise InputError(
            where,
            found=f"{is_fake.sum():,} fake and {(~is_fake).sum():,} real images to fit on",
            expected="some of either class",
            remedy="name validation CSVs that have both with --fit_csv",
        )
    return fit(method, agents_of(rows, num_agents), is_fake)


def deal_sources(labelled: pd.DataFrame, num_folds: int) -> dict[str, int]:
    """{source: its fold}: the largest first, each to the fold with the fewest images of its class.

    There are as many folds as the rarer class has sources, `num_folds` at most, so that none lacks a class in its fit.
    """
    counts = (
        labelled.groupby(["source", "label"]).size().unstack(fill_value=0).reindex(columns=["A", "B"], fill_value=0)
    )
    by_class = {label: counts[label][counts[label] > 0].sort_values(ascending=False, kind="stable") for label in "AB"}
    num_folds = min(num_folds, *(len(sizes) for sizes in by_class.values()))
    if num_folds < 2:
        few = min(by_class, key=lambda label: len(by_class[label]))
        raise InputError(
            "cross-fitting by source",
            found=f"{len(by_class[few])} sources of {'real' if few == 'A' else 'fake'} images",
            expected="two or more of either class",
            remedy="name validation CSVs with --fit_csv",
        )
    fold_of_source: dict[str, int] = {}
    for sizes in by_class.values():
        load = np.zeros(num_folds)
        for source, size in sizes.items():
            fold = fold_of_source.setdefault(str(source), int(load.argmin()))
            load[fold] += size
    return fold_of_source


def saved_rule(path: Path, detectors: Sequence[Detector]) -> Rule:
    """The rule that the metadata JSON of a fused CSV holds, for the agents at hand.

    Raises InputError where it holds none, where agents differ in number or order, and where the CSVs that it was fitted
    on are still there and share images with `detectors`.
    """
    info = read_metadata(path)
    method, parameters, agents = info.get("fusion"), info.get("parameters"), info.get("agents")
    if method not in FITTED_METHODS or not _fits(method, parameters, len(detectors)) or not isinstance(agents, list):
        raise InputError(
            path,
            found=f"no fitted fusion of {len(detectors)} agents",
            expected=f"one of {', '.join(FITTED_METHODS)} with its parameters",
            remedy="name the .json beside a CSV that logit_calculation.py fitted",
        )
    _check_agents([agent.get("name") if isinstance(agent, dict) else None for agent in agents], detectors, path)
    fitted_files = [Path(name) for name in info.get("fitted_files", []) if isinstance(name, str)]
    for fitted_file in fitted_files:
        if fitted_file.exists():
            _refuse_shared_images(read_detector(fitted_file).frame["image"], detectors, fitted_file)
    return Rule(method, parameters, f"other images ({path})", tuple(map(str, fitted_files)))


def _fits(method: str, parameters: Any, num_agents: int) -> bool:
    """Whether these are finite numbers of this method for so many agents."""
    sizes = {
        "weighted": {"weights": (num_agents,)},
        "calibrated": {"temperature": (num_agents,), "bias": (num_agents,)},
        "stacked": {"weights": (num_agents,), "bias": ()},
    }[method]
    if not isinstance(parameters, dict) or set(parameters) != set(sizes):
        return False
    try:
        values = {name: np.array(parameters[name], np.float64) for name in sizes}
    except (TypeError, ValueError):
        return False
    right_size = all(values[name].shape == size and np.isfinite(values[name]).all() for name, size in sizes.items())
    return right_size and bool((values.get("temperature", np.ones(1)) > 0).all())


def _check_agents(names: Sequence[Any], detectors: Sequence[Detector], where: object) -> None:
    """Refuse another number of agents, and the same names in another order."""
    expected = [detector.name for detector in detectors]
    if len(names) != len(expected) or (set(names) == set(expected) and list(names) != expected):
        raise InputError(
            where,
            found=f"the agents {', '.join(map(str, names))}",
            expected=", ".join(expected),
            remedy="name as many CSVs as agents, in the same order",
        )


def _refuse_shared_images(images: Iterable[str], detectors: Sequence[Detector], where: object) -> None:
    shared = set(images).intersection(detectors[0].frame["image"])
    if shared:
        raise InputError(
            where,
            found=f"{len(shared):,} of the images to be fused, such as {min(shared)}",
            expected="other images: what is fitted on an image must not be reported on it",
            remedy="fit on a validation file, or cross-fit by naming neither --fit_csv nor --apply",
        )
